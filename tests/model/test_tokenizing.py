"""Token ids as transformers gives them, and invalid limits."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused
from tiny import STRANGE, make_tiny_bert, make_tiny_xlm_roberta
from transformers import PreTrainedTokenizerFast

from bench.model import tokenizing
from bench.model.model import Model
from bench.model.tokenizing import load_tokenizer, resolve_max_length, tokenize


def max_length(positions="none", model_max_length=10**30, **config) -> int:
    tokenizer = SimpleNamespace(model_max_length=model_max_length, num_special_tokens_to_add=lambda: 2)
    config = {"model_type": "bert", "pad_token_id": 1} | config
    return resolve_max_length(
        SimpleNamespace(**config | ({} if positions == "none" else {"max_position_embeddings": positions})), tokenizer
    )


def test_max_length_is_the_models():
    assert max_length(514, model_type="roberta") == 512
    assert max_length(130, 512, model_type="roberta") == 128
    assert max_length(128) == 128
    assert max_length(8192) == 8192
    assert max_length(-1, 64) == max_length(None, 64) == max_length("none", 64.0) == 64
    assert max_length() == max_length(-1) == 512, "without any limit"


@pytest.mark.parametrize("wrong", ["512", -1, 0, 1, 2, 64.5, [512]])
def test_an_invalid_max_length_is_one_line(wrong):
    message = refused(max_length, 128, wrong)
    assert "model_max_length" in message and str(wrong) in message
    if wrong != -1:
        message = refused(max_length, wrong)
        assert "max_position_embeddings" in message and str(wrong) in message


# every character of ASCII between letters, where accents and Chinese characters are not looked for
ASCII = [f"A{chr(code)}b [SEP]{chr(code)}" for code in range(128)]


class Watched:
    """A fast tokenizer that records the length of the longest text it gets."""

    is_fast, truncation_side = True, "right"

    def __init__(self, tokenizer):
        self.tokenizer, self.backend_tokenizer, self.longest = tokenizer.backend_tokenizer, self, 0

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def encode_batch_fast(self, texts: list[str]):
        self.longest = max([self.longest, *map(len, texts)])
        return self.tokenizer.encode_batch_fast(texts)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, tiny_model, texts) -> dict:
    """Byte-level BPE, WordPiece and SentencePiece, all of them fast."""
    folder = tmp_path_factory.mktemp("tokenizers")
    models = [tiny_model, make_tiny_bert(folder / "bert", texts), make_tiny_xlm_roberta(folder / "xlm", texts)]
    return {model.name: load_tokenizer(model) for model in models}


class Slow:
    """A tokenizer that doesn't return the tokens that it cut off."""

    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts, **options):
        if not options:
            self.tokenizer.backend_tokenizer.no_truncation()
        return self.tokenizer(texts, **options)

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("name", ["tiny", "bert", "xlm"])
def test_only_the_beginning_of_a_long_text_is_tokenized_and_gives_the_same_tokens(name, tokenizers, texts, monkeypatch):
    monkeypatch.setattr(tokenizing, "CHARACTERS_PER_TOKEN", 8_000 // 256)
    letters = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 20_000))
    long = [" ".join(texts), " ".join(letters[i : i + 5] for i in range(0, 20_000, 5)), "é😀 ß" * 5_000]
    needs_all = [" " * 9_000 + "after white space", "x" + "\0" * 9_000 + "y"]
    one_word = [letters, "a" * 20_000]  # one token of a WordPiece tokenizer
    (needs_all if name == "bert" else long).extend(one_word)
    watched = Watched(tokenizers[name])
    given = ["short", *long, "short too"]
    ids = tokenize(watched, given, 128)
    assert watched.longest == 8_000 // 256 * 256
    mixed = tokenize(watched, [*given, *needs_all], 128)
    monkeypatch.setattr(tokenizing, "CHARACTERS_PER_TOKEN", 10**9)
    assert ids == tokenize(tokenizers[name], given, 128)
    assert mixed == tokenize(tokenizers[name], [*given, *needs_all], 128)


@pytest.mark.parametrize("name", ["tiny", "bert", "xlm"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("fast", [True, False])
def test_lost_tokens_are_those_of_the_whole_text_beyond_the_limit(name, side, fast, tokenizers, texts, monkeypatch):
    tokenizer = tokenizers[name]
    monkeypatch.setattr(tokenizer, "truncation_side", side)
    monkeypatch.setattr(tokenizing, "CHARACTERS_PER_TOKEN", 10**9)  # otherwise the number is estimated
    given = ["", "short", *texts, "\ud800 is no Unicode"]
    found = tokenize(tokenizer if fast else Slow(tokenizer), given, 24, ["input_ids", "lost"])
    tokenizer.backend_tokenizer.no_truncation()
    whole = [len(tokenizer(text)["input_ids"]) for text in given[:-1]]
    assert found["lost"] == [max(0, length - 24) for length in whole] + [0]
    assert sum(found["lost"]) > 1000 and found["input_ids"][-1] == []


def test_the_lost_tokens_of_a_very_long_text_are_estimated(tokenizers, texts):
    text = " ".join(texts * 20)
    whole = len(tokenizers["bert"](text)["input_ids"])
    [lost] = tokenize(tokenizers["bert"], [text], 24, ["input_ids", "lost"])["lost"]
    assert whole > 20 * 2 * 24 * 10 / 5 and lost == pytest.approx(whole - 24, rel=0.3)


@pytest.mark.parametrize("name", ["tiny", "bert", "xlm"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_are_those_of_transformers(name, side, tokenizers, texts, monkeypatch):
    tokenizer = tokenizers[name]
    monkeypatch.setattr(tokenizer, "truncation_side", side)
    tokenizer.backend_tokenizer.enable_padding(length=99)  # as in the files of some tokenizers
    given = [*STRANGE[:-1], *texts, *ASCII]  # the last one of STRANGE has 10 MB
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    expected = tokenizer(given, truncation=True, max_length=24)
    found = tokenize(tokenizer, given, 24, names)
    assert found.pop("item") == list(range(len(given)))
    assert found == {name: expected[name] for name in names} and len(found) == 1 + (name == "bert")
    assert {len(row) for row in found["input_ids"]} > {23, 24}


@pytest.mark.parametrize("token_type", [0, 1])
def test_padded_inputs_are_those_of_transformers(token_type, tmp_path, texts):
    file = make_tiny_bert(tmp_path / "bert", texts) / "tokenizer.json"
    content = json.loads(file.read_text())
    for piece in content["post_processor"]["single"]:
        next(iter(piece.values()))["type_id"] = token_type
    file.write_text(json.dumps(content))
    model, tokenizer = Model.from_folder(file.parent, "bert"), PreTrainedTokenizerFast.from_pretrained(file.parent)
    expected = tokenizer(texts, padding=True, truncation=True, max_length=model.max_length, return_tensors="np")
    inputs = model.pad(model.tokenize(texts))
    assert all((inputs[name] == expected[name]).all() for name in ("input_ids", "attention_mask", "token_type_ids"))
    assert inputs["token_type_ids"].max() == token_type
