"""What the cells of a sweep share, and its cache."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import refused
from tiny import make_tiny, make_tiny_distilbert, tiny_config, word_level_tokenizer
from tokenizers import normalizers
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from bench import inputs as room
from bench.batches import pad
from bench.inputs import identify, prepare_inputs
from bench.machine import count_flops
from bench.parity import probabilities
from bench.texts import load_tokenizer, tokenize
from runtimes.pytorch import load
from runtimes.runner import Place

FILLS = {"input_ids": 1, "attention_mask": 0}

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_inputs_are_what_the_tokenizer_and_the_model_say(tiny_model, texts):
    inputs = prepare_inputs(tiny_model, texts, None)
    ids = tokenize(load_tokenizer(tiny_model), texts, 128)["input_ids"]
    assert [row.tolist() for row in inputs.rows(range(len(texts)))["input_ids"]] == ids
    assert inputs.texts() == texts
    about = inputs.about
    assert (about["problem"], about["limit"], len(about["labels"])) == ("multi_label_classification", 128, 5)
    assert len(inputs.checked) == 256 and inputs.reference.shape == (256, 5)
    runner = load(tiny_model, Place(None, 1))
    last = int(inputs.checked[-1])
    alone = runner.fetch(runner.forward(runner.prepare(pad({"input_ids": [ids[last]]}, FILLS))))
    assert np.allclose(inputs.reference[-1], probabilities(alone, about["problem"]), atol=1e-6)
    assert inputs.flops == count_flops(tiny_model, inputs.lengths, max(ids, key=len))
    everything = prepare_inputs(tiny_model, texts, None, with_reference=False)
    assert len(everything.checked) == 300 and everything.reference.size == 0


@pytest.mark.parametrize("name", ["arrays.npz", "texts.json"])
@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda good: good[: len(good) // 2], lambda good: good[:-2], lambda _: b"x" * 99]
)
def test_damaged_inputs_in_the_cache_are_made_anew(damage, name, tiny_model, monkeypatch, tmp_path):
    made, make = [], room.make_inputs
    monkeypatch.setattr(room, "CACHE", tmp_path)
    monkeypatch.setattr(room, "make_inputs", lambda *arguments: made.append(1) or make(*arguments))
    first, again = (prepare_inputs(tiny_model, ["text"], None) for _ in range(2))
    assert len(made) == 1
    file = first.folder / name
    file.write_bytes(damage(file.read_bytes()))
    again = prepare_inputs(tiny_model, ["text"], None)
    assert (again.ids["input_ids"] == first.ids["input_ids"]).all() and len(made) == 2


def test_other_texts_and_another_model_have_inputs_of_their_own(tiny_model, texts, tmp_path):
    folders = {prepare_inputs(tiny_model, some, None, with_reference=False).folder for some in (texts[:3], texts[:4])}
    folders.add(prepare_inputs(make_tiny_distilbert(tmp_path / "d", texts), texts[:3], None, False).folder)
    assert len(folders) == 3
    same = shutil.copytree(tiny_model, tmp_path / "elsewhere")
    assert prepare_inputs(same, texts[:3], None, with_reference=False).folder in folders


KINDS = sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
NOT_HERE = {
    **dict.fromkeys(("layoutlmv2", "qdqbert", "jamba", "zamba", "zamba2", "qwen3_next"), "needs packages or a GPU"),
    **dict.fromkeys(("gemma3", "t5gemma", "deepseek_v2", "deepseek_v3", "lilt", "transfo-xl"), "has no small config"),
    **{"tapas": "reads tables, not texts", "canine": "takes no texts of a few letters"},
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOT_HERE])
def test_the_reference_of_every_type_is_what_transformers_gives(kind, tmp_path, monkeypatch):
    """And what a padded batch gives, but for types whose padding changes their answers."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.setattr(room, "CACHE", tmp_path / "cache")
    folder = make_tiny(tmp_path / kind, word_level_tokenizer(kind), tiny_config(kind))
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 196, words)) for words in (3, 40, 9, 1, 100, 17)]
    if kind == "fnet":
        assert "a fnet has no attention mask, so that padding would change" in refused(
            prepare_inputs, folder, texts, None
        )
        return
    inputs = prepare_inputs(folder, texts, None)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    given = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
    given = [{name: ids for name, ids in one.items() if name in inputs.about["fills"]} for one in given]
    with torch.inference_mode():
        logits = np.concatenate([model.eval()(**one).logits.numpy() for one in given])
    expected = probabilities(logits, inputs.about["problem"])
    assert np.abs(inputs.reference - expected).max() < 1e-6
    assert logits.std(axis=0).max() > 1e-3 or kind == "mra", "answers that are all alike prove nothing"
    if kind not in ("convbert", "doge", "nystromformer", "yoso"):
        runner = load(folder, Place(None, 1))
        batch = pad(inputs.rows(range(6)), inputs.about["fills"], inputs.about["side"])
        padded = probabilities(runner.fetch(runner.forward(runner.prepare(batch))), inputs.about["problem"])
        assert np.abs(padded - expected).max() < 1e-4


def test_a_decoder_without_a_padding_token_is_one_line(tmp_path):
    config = tiny_config("gpt2")
    config.pad_token_id = None
    folder = make_tiny(tmp_path / "gpt2", word_level_tokenizer("gpt2"), config)
    assert "this gpt2 has no pad_token_id" in refused(prepare_inputs, folder, ["w1 w2"], None)


@pytest.mark.parametrize("odd", [{"return_dict": False}, {"torchscript": True}])
def test_a_config_that_asks_for_tuples_changes_nothing(odd, tiny_model, texts, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | odd))
    expected = prepare_inputs(tiny_model, texts[:5], None).reference
    assert np.allclose(prepare_inputs(folder, texts[:5], None).reference, expected, atol=1e-6)


def test_weights_and_texts_that_change_make_other_inputs(tiny_model, texts, tmp_path):
    """Also where a file keeps its size and its time."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    first = prepare_inputs(folder, texts[:5], None)
    before = (folder / "model.safetensors").stat()
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-4000] + bytes(4000))
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    second = prepare_inputs(folder, texts[:5], None)
    assert first.folder != second.folder and np.abs(first.reference - second.reference).max() > 1e-3
    ids = [identify(folder, some) for some in (texts[:5], texts[1:6])]
    assert ids[0]["texts_id"] != ids[1]["texts_id"] and ids[0]["weights_id"] == ids[1]["weights_id"]
    assert identify(tiny_model, texts[:5])["weights_id"] != ids[0]["weights_id"]


def test_texts_without_any_token_are_left_out_and_counted(tmp_path):
    tokenizer = word_level_tokenizer("gpt2")
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("nothing", "")
    folder = make_tiny(tmp_path / "gpt2", tokenizer, tiny_config("gpt2"))
    inputs = prepare_inputs(folder, ["nothing", "w1 w2", "nothing", "w3"], None)
    assert (inputs.lengths.tolist(), inputs.about["empty"]) == ([2, 1], 2)
    assert inputs.texts() == ["w1 w2", "w3"] and inputs.reference.shape == (2, 3)
    assert "the tokenizer gives no token for any text" in refused(prepare_inputs, folder, ["nothing"], None)
