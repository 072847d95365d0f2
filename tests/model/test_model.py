"""Models as people save them, with the leftovers of versions, trainers and tools, give the answers of transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from conftest import refused
from safetensors.torch import load_file, save_file
from test_awkward_texts import AWKWARD, BATCHINGS, Truth, assert_the_truth, classifiers
from tiny import make_tiny, make_tiny_bert, tiny_config, word_level_tokenizer

from bench.model.batches import Batching
from bench.model.config import load_config
from bench.model.model import Model
from bench.model.resolve import open_model, resolve_model

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model, to be changed."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rename_weights(folder: Path, rename) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {rename(name): weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def answers_as_transformers_does(folder: Path, texts: list[str]) -> None:
    opened = classifiers(folder)
    assert_the_truth(texts, Truth(folder, opened[0].model.max_length), opened, BATCHINGS)


@pytest.mark.parametrize("make", [shutil.copytree, lambda _, folder, texts: make_tiny_bert(folder, texts)])
@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_left_sides_of_a_tokenizer_change_no_answer(make, side, tiny_model, tmp_path, texts):
    folder = tmp_path / "model"
    make(tiny_model, folder, *[texts] * (make is not shutil.copytree))
    change_json(folder / "tokenizer_config.json", **{side: "left"})
    answers_as_transformers_does(
        folder, [*AWKWARD, *texts[:20], " ".join(texts), "other words, " * 9_000 + "and the end"]
    )


def test_a_padding_token_that_only_the_tokenizer_names_does_not_end_a_text(tmp_path):
    """GPT-2 finds the end of a text by the config's pad_token_id; its tokenizer may name another token."""
    folder = tmp_path / "gpt2"
    folder.mkdir()
    make_tiny(folder, word_level_tokenizer("gpt2"), tiny_config("gpt2"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            change_json(folder / name, pad_token="</s>")
    answers_as_transformers_does(folder, AWKWARD)


def test_an_added_token_without_embedding_fails_only_its_texts(folder, capfd, texts):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[USER]", "[URL]"])
    tokenizer.save_pretrained(folder)
    [classifier] = classifiers(folder)
    err = capfd.readouterr().err
    assert "[USER]" in err and "[URL]" in err
    given = [*texts[:9], "hello [USER]!", *texts[9:12], "[URL]"]
    predictions = classifier.predict(given, Batching("sorted", 4))
    lost = [9, 13]
    assert list(np.flatnonzero(predictions.lengths == 0)) == lost and np.isnan(predictions.answers[lost]).all()
    assert np.isfinite(np.delete(predictions.answers, lost, axis=0)).all()


def test_a_padding_token_without_embedding_is_refused(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    change_json(folder / "config.json", pad_token_id=len(tokenizer) - 1, model_type="bert")
    message = refused(Model.from_folder, folder, "x")
    assert "pad_token_id" in message and "config.json" in message


def test_a_tokenizer_that_differs_from_its_file_is_refused(folder, monkeypatch):
    """transformers 5 does this if tokenizer_class doesn't fit tokenizer.json (its issues 45701 and 47706)."""
    load = transformers.AutoTokenizer.from_pretrained

    def rebuilt(*arguments, **options):
        tokenizer = load(*arguments, **options)
        tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
        return tokenizer

    assert Model.from_folder(folder, "x")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", rebuilt)
    message = refused(Model.from_folder, folder, "x")
    assert all(name in message for name in (transformers.__version__, "tokenizer.json", "tokenizer_class")), message


def test_the_error_for_a_model_of_a_newer_transformers_names_its_version(folder):
    change_json(folder / "config.json", transformers_version="99.1.0")
    assert Model.from_folder(folder, "x"), "nothing in it is new"
    change_json(folder / "config.json", rope_parameters_of_99={"theta": 1})
    names = ("config.json", "99.1.0", transformers.__version__)
    message = refused(load_config, folder)
    assert all(name in message for name in ("rope_parameters_of_99", *names)), message
    change_json(folder / "config.json", transformers_version="4.1.0")
    assert load_config(folder), "fields of an older version are left to transformers"
    change_json(folder / "config.json", transformers_version="99.1.0", model_type="bert_of_99")
    message = refused(load_config, folder)
    assert all(name in message for name in ("bert_of_99", *names)), message


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    message = refused(resolve_model, str(folder))
    assert name in message and "git lfs pull" in message


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "roberta._orig_mod."])
def test_weights_saved_with_a_trainers_wrapper_are_refused(prefix, folder):
    rename_weights(folder, lambda name: prefix + name)
    assert f"{prefix}classifier.dense.bias" in refused(Model.from_folder(folder, "x").load_torch)


def test_an_unused_head_does_not_count_as_an_extra_layer(folder, texts):
    weights = load_file(folder / "model.safetensors")
    head = {f"lm_head.layers.{i}.weight": weights["classifier.dense.weight"] + i for i in range(2)}
    save_file(weights | head, folder / "model.safetensors", {"format": "pt"})
    answers_as_transformers_does(folder, texts[:9])


def test_big_bird_does_not_depend_on_earlier_texts(tmp_path, capfd):
    folder = tmp_path / "big_bird"
    folder.mkdir()
    config = tiny_config("big_bird")
    config.max_position_embeddings, config.block_size, config.num_random_blocks = 1024, 16, 1
    tokenizer = word_level_tokenizer("big_bird")
    tokenizer.model_max_length = 1000
    make_tiny(folder, tokenizer, config)
    [classifier] = classifiers(folder)
    assert "attention" in capfd.readouterr().err, "it does not run as configured, which is printed"
    long = " ".join(f"w{i % 190}" for i in range(900))
    answers = classifier.predict([long, "w1 w2", long], Batching("in-order", 1)).answers
    assert np.array_equal(answers[0], answers[2])


def test_no_progress_bar_of_transformers_is_printed(folder, capfd):
    Model.from_folder(folder, "x").load_torch()
    assert capfd.readouterr() == ("", "")


def test_the_head_stays_in_fp32(folder, texts):
    """In BF16, logits near 8 have steps of 1/16, so many texts would get the same probability."""
    import torch

    network = Model.from_folder(folder, "x").load_torch("bf16")
    kinds = {name.split(".")[0]: parameter.dtype for name, parameter in network.named_parameters()}
    assert kinds == {"roberta": torch.bfloat16, "classifier": torch.float32}
    with torch.inference_mode():
        logits = network(input_ids=torch.arange(4, 400).reshape(99, 4)).logits
    assert logits.dtype == torch.float32
    assert len(logits[:, 0].unique()) > len(logits[:, 0].bfloat16().unique())


def test_a_local_model_has_its_folders_name_for_others(tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model)
    for given in (".", str(tiny_model), f"../{tiny_model.name}"):
        assert open_model(given).public_name == tiny_model.name
