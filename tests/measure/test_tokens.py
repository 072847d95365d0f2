"""Token ids, the reference, and its cache."""

import io
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import call_here, refused
from tiny import make_tiny, make_tiny_distilbert, tiny_config, word_level_tokenizer
from tokenizers import normalizers

from bench.measure.peak import count_flops
from bench.measure.tokens import TokenizedTexts, prepare_tokens, tokenize, with_reference
from bench.measure.warnings import note_slow_tokenizer
from bench.model import reference
from bench.model.model import Model
from bench.model.reference import CachedReference, Reference, cached_array

pytestmark = pytest.mark.usefixtures("in_this_process")


def prepare(model: Model, texts: list[str]) -> TokenizedTexts:
    return with_reference(prepare_tokens(model, texts, call_here), model, None)


@pytest.fixture
def opened(tiny_model) -> Model:
    return Model.from_folder(tiny_model, "tiny")


def test_tokens_and_reference_are_those_of_the_tokenizer_and_the_model(opened, texts):
    tokens = prepare(opened, texts)
    ids = opened.tokenize(texts)["input_ids"]
    assert tokens.rows(range(len(texts)))["input_ids"] == ids
    assert tokens.texts == texts
    assert (opened.task.problem_type, opened.max_length, len(opened.labels)) == ("multi_label_classification", 128, 5)
    assert len(tokens.sample) == 256 and tokens.reference.shape == (256, 5)
    alone = Reference.load(opened).of_batch(opened.pad({"input_ids": [ids[int(tokens.sample[-1])]]}))
    assert np.allclose(tokens.reference[-1], alone, atol=1e-6)
    assert tokens.flops == count_flops(opened, tokens.lengths, max(ids, key=len), call_here)


def zipped() -> bytes:
    np.savez(content := io.BytesIO(), array=np.zeros((2, 3)))
    return content.getvalue()


DAMAGES = [lambda _: b"", lambda good: good[: len(good) // 2], lambda good: good[:-2], lambda _: b"x" * 99]
DAMAGES += [lambda good: good.replace(b"(2, 3)", b"(3, 2)"), lambda good: good.replace(b"<f8", b"<i8")]
DAMAGES.append(lambda _: zipped())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_reference_in_the_cache_is_computed_again(damage, monkeypatch, tmp_path):
    monkeypatch.setattr(reference, "CACHE", tmp_path)
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(6.0).reshape(2, 3)

    assert all((cached_array(compute, (2, 3), "inputs") == compute()).all() for _ in range(2)) and len(calls) == 3
    [file] = (tmp_path / "references").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cached_array(compute, (2, 3), "inputs").shape == (2, 3) and len(calls) == 4
    cached_array(compute, (2, 3), "other inputs")
    assert len(calls) == 5 and len(list((tmp_path / "references").iterdir())) == 2


def test_the_model_is_loaded_only_for_results_missing_from_the_cache(opened, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "CACHE", tmp_path)
    loaded, load = [], Model.load_torch

    def count_and_load(*arguments, **options):
        loaded.append(1)
        return load(*arguments, **options)

    monkeypatch.setattr(Model, "load_torch", count_and_load)
    first = prepare(opened, texts[:3])
    assert len(loaded) == 2, "for the reference, and to count the FLOPs"
    copy = Model.from_folder(shutil.copytree(opened.folder, tmp_path / "elsewhere"), "elsewhere")
    again = prepare(copy, texts[:3])
    assert len(loaded) == 2
    assert (again.reference == first.reference).all() and again.flops == first.flops
    prepare(opened, texts[:4])
    assert len(loaded) > 2
    other = Model.from_folder(make_tiny_distilbert(tmp_path / "d", texts), "d")
    assert (prepare(other, texts[:3]).reference != first.reference).any()


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
    expected = prepare(Model.from_folder(tiny_model, "tiny"), texts[:5]).reference
    found = prepare(Model.from_folder(folder, "odd"), texts[:5]).reference
    assert np.allclose(found, expected, atol=1e-6)


def test_changed_weights_get_a_new_reference(tiny_model, texts, tmp_path):
    """Even if the file keeps its size and modification time."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    old = Model.from_folder(folder, "model")
    first = prepare(old, texts[:5])
    before = (folder / "model.safetensors").stat()
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-4000] + bytes(4000))
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    new = Model.from_folder(folder, "model")
    second = prepare(new, texts[:5])
    assert np.abs(first.reference - second.reference).max() > 1e-3
    assert old.weights_id == Model.from_folder(tiny_model, "tiny").weights_id != new.weights_id


def test_texts_without_any_token_are_left_out_and_counted(tmp_path):
    tokenizer = word_level_tokenizer("gpt2")
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("nothing", "")
    folder = make_tiny(tmp_path / "gpt2", tokenizer, tiny_config("gpt2"))
    model = Model.from_folder(folder, "gpt2")
    tokens = prepare(model, ["nothing", "w1 w2", "nothing", "w3"])
    assert (tokens.lengths.tolist(), tokens.n_empty) == ([2, 1], 2)
    assert tokens.texts == ["w1 w2", "w3"] and tokens.reference.shape == (2, 3)
    assert "token" in refused(prepare, model, ["nothing"])


def test_a_cached_answer_that_is_not_finite_counts_only_for_a_text_without_tokens(
    tiny_model, texts, monkeypatch, tmp_path, in_this_process
):
    monkeypatch.setattr(reference, "CACHE", tmp_path)
    items = [texts[0], "", texts[1]]
    model = Model.from_folder(tiny_model, "tiny")
    tokenize = Model.tokenize

    def without_tokens(self, items, *arguments, **options):
        rows = tokenize(self, items, *arguments, **options)
        return rows | {"input_ids": [ids if item else [] for item, ids in zip(items, rows["input_ids"], strict=True)]}

    monkeypatch.setattr(Model, "tokenize", without_tokens)
    expected = Reference.load(model).of_items(items)
    for bad in (0, 1):
        with CachedReference(model, None) as cached:
            assert np.array_equal(cached.answers(items), expected)
        [file] = (tmp_path / "references").iterdir()
        array = np.load(file)
        array[bad, 2] = np.nan
        np.save(file, array)
        with CachedReference(model, None) as cached:
            assert np.isnan(cached.answers(items)).any() == bool(bad)
    file.unlink()
    os.mkfifo(file)
    with CachedReference(model, None) as cached:
        assert np.array_equal(cached.answers(items), expected)


@pytest.mark.parametrize(("speed", "is_fast", "is_named"), [(50, True, False), (200, True, True), (50, False, True)])
def test_a_tokenizer_that_is_slower_than_the_model_is_named(speed, is_fast, is_named, opened, texts, capsys):
    tokens = replace(tokenize(opened, texts[:9]), tokens_speed=100.0, is_fast=is_fast)
    failed = {"status": "failed", "messages/s": ""}
    note_slow_tokenizer(tokens, [{"status": "ok", "messages/s": speed}, failed])
    assert (type(opened.tokenizer).__name__ in capsys.readouterr().err) == is_named
