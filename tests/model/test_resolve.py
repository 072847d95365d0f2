"""Models that are found, downloaded, broken, or bring code of their own."""

import contextlib
import json
import pickle
import runpy
import shutil
from pathlib import Path

import pytest
import transformers
from conftest import refused
from tiny import make_tiny_bert

from bench.export.select import export_model
from bench.measure.token_cache import load_or_tokenize
from bench.model.batches import pad
from bench.model.model import Model
from bench.model.random_model import RANDOM_MODEL
from bench.model.resolve import open_model, resolve_model
from bench.model.tokenizing import load_tokenizer
from bench.variants import Device
from runtimes.pytorch import load

CPU = Device(gpu=None, threads=1)
PAD_VALUES = {"input_ids": 1, "attention_mask": 0}

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def configure(model: Path, **changes) -> None:
    """Changes fields of a model's config; None removes one."""
    config = json.loads((model / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None or key not in changes}
    (model / "config.json").write_text(json.dumps(config))


def unlink(*names: str):
    return lambda model: [(model / name).unlink() for name in names]


def write(name: str, content: bytes):
    return lambda model: (model / name).write_bytes(content)


def cut(name: str, size: int):
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:size])


def set_config(**changes):
    return lambda model: configure(model, **changes)


def pickled(model: Path) -> None:
    """Its weights as a pickle instead of safetensors."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def without_head(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights = {name: weight for name, weight in weights.items() if not name.startswith("classifier")}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def all_of(*steps):
    return lambda model: [step(model) for step in steps]


TOKENIZER = ("merges.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


BROKEN_MODELS = {
    "no tokenizer": (unlink(*TOKENIZER), "has no tokenizer that can be loaded: no tokenizer.json"),
    "tokenizer.json cut": (cut("tokenizer.json", 999), "has no tokenizer that can be loaded: EOF while parsing"),
    "tokenizer.json a list": (write("tokenizer.json", b"[]"), "has no tokenizer that can be loaded"),
    "tokenizer_config cut": (write("tokenizer_config.json", b"{"), "tokenizer_config.json can't be read"),
    "no weights": (unlink("model.safetensors"), "can't be loaded: Error no file named"),
    "weights cut": (cut("model.safetensors", 99_999), "can't be loaded: Error while deserializing header"),
    "weights cut in their header": (cut("model.safetensors", 20), "can't be loaded: Error while deserializing header"),
    "weights empty": (cut("model.safetensors", 0), "can't be loaded: Error while deserializing header"),
    "weights of noise": (write("model.safetensors", b"\1\2\3" * 999), "can't be loaded: Error while deserializing"),
    "pickle cut": (all_of(pickled, cut("pytorch_model.bin", 99_999)), "can't be loaded: Unable to load weights"),
    "pickle empty": (all_of(pickled, cut("pytorch_model.bin", 0)), "can't be loaded: Unable to load weights"),
    "pickle of noise": (all_of(pickled, write("pytorch_model.bin", b"\1" * 999)), "can't be loaded: Unable to load"),
    "another type": (set_config(model_type="bert"), "lacks weights: bert."),
    "more layers": (set_config(num_hidden_layers=3), "lacks weights: roberta.encoder.layer.2."),
    "fewer layers": (set_config(num_hidden_layers=1), "has layers that its config.json doesn't count"),
    "another width": (set_config(hidden_size=64), "is not of the size [64], as config.json has it"),
    "more labels": (
        set_config(id2label={i: "x" for i in range(7)}),
        "is not of the size [7], as config.json has it",
    ),
    "smaller vocabulary": (set_config(vocab_size=100), "the model has 100: they don't belong together"),
    "no heads of attention": (set_config(num_attention_heads=0), "can't be loaded: "),
    "width in words": (set_config(hidden_size="many"), "can't be loaded: "),
    "padding outside": (
        set_config(pad_token_id=10**6),
        "max_position_embeddings is 130, where a whole number from 1000004 on is needed",
    ),
    "a vocabulary that fills the memory": (set_config(vocab_size=10**12), "can't be loaded: "),
    "unknown type of numbers": (set_config(dtype="float12"), "config.json can't be used: "),
    "quantized with what is not installed": (
        set_config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "is quantized, so there is no FP32 original",
    ),
    "no head": (without_head, "lacks weights: classifier."),
    "no head, and no word of one": (all_of(without_head, set_config(architectures=None)), "lacks weights: classifier."),
    "another head": (set_config(architectures=["RobertaForMaskedLM"]), "no sequence-classification head, it is a Robe"),
    "heads of numbers": (set_config(architectures=[5]), "no sequence-classification head, it is a 5"),
    "a head that is no list": (set_config(architectures="RobertaForMaskedLM"), "its architectures are not a list"),
    "a number of heads": (set_config(architectures=5), "its architectures are not a list"),
    "no type": (set_config(model_type=None), "config.json has no model_type"),
    "a number as type": (set_config(model_type=5), "config.json has no model_type"),
    "unknown type": (set_config(model_type="newest"), "config.json can't be used: "),
    "a type that is no encoder": (set_config(model_type="t5"), "can't be loaded: "),
    "unknown kind of problem": (set_config(problem_type="ranking"), "config.json can't be used: "),
    "labels that skip a number": (
        set_config(id2label={i: f"L{i}" for i in (0, 1, 2, 3, 5)}),
        "id2label in config.json names 5 labels, but none with the number 4: they go from 0 to 4",
    ),
    "labels that begin with 1": (set_config(id2label={i: f"L{i}" for i in range(1, 6)}), "none with the number 0"),
    "labels without numbers": (set_config(id2label={"x": "a"}), "config.json can't be used: "),
    "attention from the Hub": (set_config(_attn_implementation="ann/kernel"), "asks for the attention 'ann/kernel'"),
    "CVE-2026-4372": (set_config(_attn_implementation_internal="ann/kernel"), "asks for the attention 'ann/kernel'"),
    "attention from the Hub, inside": (
        set_config(text_config={"attn_implementation": "flash_attention_2"}),
        "asks for the attention 'flash_attention_2'",
    ),
    "an adapter": (write("adapter_config.json", b"{}"), "is an adapter of another model"),
    "config empty": (write("config.json", b""), "config.json can't be read"),
    "config cut": (cut("config.json", 99), "config.json can't be read"),
    "config a list": (write("config.json", b"[]"), "config.json can't be read: it holds a list"),
    "config null": (write("config.json", b"null"), "config.json can't be read: it holds a NoneType"),
    "config of noise": (write("config.json", b"\xff\xfe\0"), "config.json can't be read"),
    "config without bottom": (write("config.json", b"[" * 99_999), "config.json can't be read: maximum recursion"),
    "no config": (unlink("config.json"), "is not a model's folder: it has no config.json"),
    "code for the config": (set_config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), "code of its own"),
    "code for the model": (
        set_config(auto_map={"AutoModelForSequenceClassification": "mine.Model"}),
        "needs code of its own (auto_map in config.json), which is never run here",
    ),
    "code elsewhere": (set_config(auto_map={"AutoConfig": "ann/evil--mine.Config"}), "code of its own"),
    "code for the tokenizer": (
        write("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["mine.Tokenizer", null]}}'),
        "needs code of its own (auto_map in tokenizer_config.json), which is never run here",
    ),
}


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_a_broken_model_is_refused_in_one_line_by_the_benchmark_and_before_the_export(name, model, texts):
    damage, message = BROKEN_MODELS[name]
    damage(model)
    marker = model / "was run"
    (model / "mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    assert message in refused(lambda: load_or_tokenize(open_model(str(model)), texts[:3], None))
    (model.parent / "out").mkdir()
    refused(lambda: export_model(open_model(str(model)), "fp32", model.parent / "out"))
    assert not marker.exists()
    if "code" in name:
        runpy.run_path(str(model / "mine.py"))
        assert marker.exists(), "code that leaves no trace proves nothing"


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("form", ["plain", "zip"])
def test_a_pickle_is_never_run(form, model, texts, tmp_path):
    import torch

    marker, file = model / "was run", model / "pytorch_model.bin"
    evil = {"classifier.dense.bias": Evil(marker)}
    file.write_bytes(pickle.dumps(evil, protocol=2)) if form == "plain" else torch.save(evil, file)
    opened = Model.from_folder(model, "model")
    runner = load(opened, None, CPU)  # from the safetensors beside it
    assert runner.forward(runner.prepare(pad({"input_ids": [[0, 5, 2]]}, PAD_VALUES))).shape == (1, 5)
    (model / "model.safetensors").unlink()
    assert "can't be loaded" in refused(load_or_tokenize, opened, texts[:3], None)
    assert "can't be loaded" in refused(export_model, opened, "fp32", tmp_path)
    assert not marker.exists()
    with contextlib.suppress(RuntimeError):  # once it has run what it finds, torch sees that it is none of its files
        torch.load(file, weights_only=False)
    assert marker.exists(), "a pickle that leaves no trace proves nothing"


def test_weights_in_a_pickle_are_loaded_where_there_are_no_others(model, texts):
    pickled(model)
    assert load_or_tokenize(open_model(str(model)), texts[:3], None).reference.shape == (3, 5)


def test_a_tokenizer_of_another_model_is_refused(model, texts, tmp_path):
    other = load_tokenizer(make_tiny_bert(tmp_path / "bert", texts))
    unlink(*TOKENIZER)(model)
    other.save_pretrained(model)
    configure(model, vocab_size=3000)
    resize(model, 3000)
    assert "the model has 3000: they don't belong together" in refused(open_model, str(model))


def resize(model: Path, vocabulary: int) -> None:
    """Cuts a model's embeddings to those of its first tokens."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    name = "roberta.embeddings.word_embeddings.weight"
    weights[name] = weights[name][:vocabulary].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_a_model_comes_from_the_hub_without_pickles_and_then_from_the_cache(hub, tiny_model, tmp_path, monkeypatch):
    served = shutil.copytree(tiny_model, tmp_path / "served")
    for name in ("pytorch_model.bin", "model.onnx", "tf_model.h5"):
        (served / name).write_bytes(b"not asked for")
    hub.models["ann/tiny"] = served
    folder = resolve_model("ann/tiny")
    assert sorted(hub.sent) == sorted(file.name for file in tiny_model.iterdir())
    assert (folder / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert resolve_model("ann/tiny") == folder


def test_random_roberta_base_is_built_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.model.random_model.CACHE", tmp_path)
    build = "bench.model.random_model.build_random_roberta_base"
    monkeypatch.setattr(build, lambda folder: (folder / "config.json").touch())
    assert resolve_model(RANDOM_MODEL) == resolve_model(RANDOM_MODEL)
    assert resolve_model(RANDOM_MODEL) == tmp_path / f"transformers-{transformers.__version__}" / RANDOM_MODEL
    assert capsys.readouterr().err.count("building random-roberta-base") == 1


def test_a_kernel_of_the_hub_is_never_fetched(model, tmp_path, monkeypatch):
    """With a stand-in for the package that fetches and runs them."""
    from transformers.integrations import hub_kernels

    fetched = []
    monkeypatch.setattr(hub_kernels, "_kernels_available", True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda repo, **_: fetched.append(repo), raising=False)
    configure(model, _attn_implementation="ann/kernel")
    assert "asks for the attention 'ann/kernel'" in refused(resolve_model, str(model))
    assert not fetched
    with contextlib.suppress(Exception):
        load(Model.from_folder(model, "model"), None, CPU)
    assert fetched == ["ann/kernel"], "a stand-in that is not asked proves nothing"


@pytest.mark.parametrize("shard", ["w/model-00001.safetensors", "../other/model.safetensors", "/etc/x", 5])
def test_weights_outside_of_the_folder_are_refused(shard, model):
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    assert "names weights that are not in the model's folder" in refused(resolve_model, str(model))


def test_names_that_are_too_long_are_one_line():
    assert "no model folder ./" in refused(resolve_model, "./" + "x" * 300)
