"""Token ids and the reference, and their cache."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import refused
from tiny import make_tiny, make_tiny_distilbert, tiny_config, word_level_tokenizer
from tokenizers import normalizers

from bench.measure import token_cache
from bench.measure.peak import count_flops
from bench.measure.token_cache import load_or_tokenize
from bench.model.model import Model
from bench.model.reference import Reference

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def opened(tiny_model) -> Model:
    return Model.from_folder(tiny_model, "tiny")


def test_tokens_and_reference_are_those_of_the_tokenizer_and_the_model(opened, texts):
    tokens = load_or_tokenize(opened, texts, None)
    ids = opened.tokenize(texts)["input_ids"]
    assert [row.tolist() for row in tokens.rows(range(len(texts)))["input_ids"]] == ids
    assert tokens.texts() == texts
    assert (opened.task.problem_type, opened.max_length, len(opened.labels)) == ("multi_label_classification", 128, 5)
    assert len(tokens.sample) == 256 and tokens.reference.shape == (256, 5)
    alone = Reference.load(opened).of_batch(opened.pad({"input_ids": [ids[int(tokens.sample[-1])]]}))
    assert np.allclose(tokens.reference[-1], alone, atol=1e-6)
    assert tokens.flops == count_flops(opened, tokens.lengths, max(ids, key=len))


@pytest.mark.parametrize("name", ["arrays.npz", "texts.json"])
@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda good: good[: len(good) // 2], lambda good: good[:-2], lambda _: b"x" * 99]
)
def test_damaged_tokens_in_the_cache_are_made_again(damage, name, opened, monkeypatch, tmp_path):
    made, make = [], token_cache.tokenize_into
    monkeypatch.setattr(token_cache, "CACHE", tmp_path)
    monkeypatch.setattr(token_cache, "tokenize_into", lambda *arguments: made.append(1) or make(*arguments))
    first, again = (load_or_tokenize(opened, ["text"], None) for _ in range(2))
    assert len(made) == 1
    file = first.folder / name
    file.write_bytes(damage(file.read_bytes()))
    again = load_or_tokenize(opened, ["text"], None)
    assert (again.ids["input_ids"] == first.ids["input_ids"]).all() and len(made) == 2


def test_other_texts_and_another_model_have_tokens_of_their_own(opened, texts, tmp_path):
    folders = {load_or_tokenize(opened, some, None).folder for some in (texts[:3], texts[:4])}
    other = Model.from_folder(make_tiny_distilbert(tmp_path / "d", texts), "d")
    folders.add(load_or_tokenize(other, texts[:3], None).folder)
    assert len(folders) == 3
    same = Model.from_folder(shutil.copytree(opened.folder, tmp_path / "elsewhere"), "elsewhere")
    assert load_or_tokenize(same, texts[:3], None).folder in folders


def test_a_decoder_without_a_padding_token_is_one_line(tmp_path):
    config = tiny_config("gpt2")
    config.pad_token_id = None
    folder = make_tiny(tmp_path / "gpt2", word_level_tokenizer("gpt2"), config)
    message = refused(Model.from_folder, folder, "gpt2")
    assert "gpt2" in message and "pad_token_id" in message


@pytest.mark.parametrize("odd", [{"return_dict": False}, {"torchscript": True}])
def test_a_config_that_asks_for_tuples_changes_nothing(odd, tiny_model, texts, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | odd))
    expected = load_or_tokenize(Model.from_folder(tiny_model, "tiny"), texts[:5], None).reference
    found = load_or_tokenize(Model.from_folder(folder, "odd"), texts[:5], None).reference
    assert np.allclose(found, expected, atol=1e-6)


def test_weights_that_change_make_other_tokens(tiny_model, texts, tmp_path):
    """Even if the file keeps its size and modification time."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    old = Model.from_folder(folder, "model")
    first = load_or_tokenize(old, texts[:5], None)
    before = (folder / "model.safetensors").stat()
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-4000] + bytes(4000))
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    new = Model.from_folder(folder, "model")
    second = load_or_tokenize(new, texts[:5], None)
    assert first.folder != second.folder and np.abs(first.reference - second.reference).max() > 1e-3
    assert old.weights_id == Model.from_folder(tiny_model, "tiny").weights_id != new.weights_id


def test_texts_without_any_token_are_left_out_and_counted(tmp_path):
    tokenizer = word_level_tokenizer("gpt2")
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("nothing", "")
    folder = make_tiny(tmp_path / "gpt2", tokenizer, tiny_config("gpt2"))
    model = Model.from_folder(folder, "gpt2")
    tokens = load_or_tokenize(model, ["nothing", "w1 w2", "nothing", "w3"], None)
    assert (tokens.lengths.tolist(), tokens.n_empty) == ([2, 1], 2)
    assert tokens.texts() == ["w1 w2", "w3"] and tokens.reference.shape == (2, 3)
    assert "token" in refused(load_or_tokenize, model, ["nothing"], None)
