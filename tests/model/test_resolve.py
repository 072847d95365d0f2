"""Models that are local, downloaded, broken, or come with custom code."""

import contextlib
import json
import pickle
import runpy
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
import transformers
from conftest import call_here, refused
from tiny import make_tiny_bert

import classify_texts
import export_onnx
import run_benchmark
from bench.export.ensure import export_folder
from bench.export.select import export_model
from bench.measure.tokens import prepare_tokens, with_reference
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


def reference_of(model: Model, texts: list[str]):
    return with_reference(prepare_tokens(model, texts, call_here), model, None).reference


def configure(model: Path, **changes) -> None:
    """Change fields of a model's config; None removes one."""
    config = json.loads((model / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None or key not in changes}
    (model / "config.json").write_text(json.dumps(config))


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def unlink(*names: str):
    return lambda model: [(model / name).unlink() for name in names]


def write(name: str, content: bytes):
    return lambda model: (model / name).write_bytes(content)


def cut(name: str, size: int):
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:size])


def set_config(**changes):
    return lambda model: configure(model, **changes)


def pickled(model: Path) -> None:
    """Save the weights as a pickle instead of safetensors."""
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


# what is broken -> how to break it, and the names that the message must have; FOLDER is the model's folder
BROKEN_MODELS = {
    "no tokenizer": (unlink(*TOKENIZER), "FOLDER tokenizer.json"),
    "tokenizer.json cut": (cut("tokenizer.json", 999), "FOLDER tokenizer line 53"),
    "tokenizer.json a list": (write("tokenizer.json", b"[]"), "FOLDER tokenizer sequence"),
    "tokenizer_config cut": (write("tokenizer_config.json", b"{"), "tokenizer_config.json line 1"),
    "no weights": (unlink("model.safetensors"), "FOLDER model.safetensors"),
    "weights cut": (cut("model.safetensors", 99_999), "FOLDER model.safetensors"),
    "weights cut in their header": (cut("model.safetensors", 20), "FOLDER model.safetensors"),
    "weights empty": (cut("model.safetensors", 0), "FOLDER model.safetensors"),
    "weights of noise": (write("model.safetensors", b"\1\2\3" * 999), "FOLDER model.safetensors"),
    "pickle cut": (all_of(pickled, cut("pytorch_model.bin", 99_999)), "FOLDER pytorch_model.bin"),
    "pickle empty": (all_of(pickled, cut("pytorch_model.bin", 0)), "FOLDER pytorch_model.bin"),
    "pickle of noise": (all_of(pickled, write("pytorch_model.bin", b"\1" * 999)), "FOLDER pytorch_model.bin"),
    "another type": (set_config(model_type="bert"), "FOLDER bert.embeddings.LayerNorm.bias"),
    "more layers": (set_config(num_hidden_layers=3), "FOLDER roberta.encoder.layer.2."),
    "fewer layers": (set_config(num_hidden_layers=1), "FOLDER roberta.encoder.layer.1."),
    "another width": (set_config(hidden_size=64), "FOLDER classifier.dense.bias [64] config.json"),
    "more labels": (
        set_config(id2label={i: f"x{i}" for i in range(7)}),
        "FOLDER classifier.out_proj.bias [7] id2label",
    ),
    "smaller vocabulary": (set_config(vocab_size=100), "tokenizer 100"),
    "no heads of attention": (set_config(num_attention_heads=0), "FOLDER"),
    "width in words": (set_config(hidden_size="many"), "FOLDER"),
    "padding outside": (set_config(pad_token_id=10**6), "max_position_embeddings 130 1000004"),
    "a vocabulary that fills the memory": (set_config(vocab_size=10**12), "FOLDER memory"),
    "unknown number type": (set_config(dtype="float12"), "FOLDER config.json float12"),
    "quantized with a package that is not installed": (
        set_config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "FOLDER quantiz",
    ),
    "no head": (without_head, "FOLDER classifier.dense.bias"),
    "no head, and no architecture": (
        all_of(without_head, set_config(architectures=None)),
        "FOLDER classifier.dense.bias",
    ),
    "another head": (set_config(architectures=["RobertaForMaskedLM"]), "FOLDER RobertaForMaskedLM"),
    "a number as head": (set_config(architectures=[5]), "FOLDER 5"),
    "architectures are a string": (set_config(architectures="RobertaForMaskedLM"), "config.json architectures"),
    "architectures are a number": (set_config(architectures=5), "config.json architectures"),
    "no type": (set_config(model_type=None), "config.json model_type"),
    "a number as type": (set_config(model_type=5), "config.json model_type"),
    "unknown type": (set_config(model_type="newest"), "config.json newest"),
    "a type that is not an encoder": (set_config(model_type="t5"), "FOLDER"),
    "unknown problem type": (set_config(problem_type="ranking"), "config.json problem_type ranking"),
    "labels that skip a number": (
        set_config(id2label={i: f"L{i}" for i in (0, 1, 2, 3, 5)}),
        "config.json id2label 5 4",
    ),
    "labels that begin with 1": (set_config(id2label={i: f"L{i}" for i in range(1, 6)}), "config.json id2label 5 0"),
    "labels without numbers": (set_config(id2label={"x": "a"}), "config.json 'x'"),
    "labels twice": (set_config(id2label=dict(enumerate("aabcd"))), "config.json id2label 'a'"),
    "labels that look the same": (
        set_config(id2label=dict(enumerate(["a b", "a\nb", "c", "d", "e"]))),
        "config.json id2label 'a",
    ),
    "an empty label": (set_config(id2label=dict(enumerate([" ", "b", "c", "d", "e"]))), "config.json id2label"),
    "millions of labels": (set_config(id2label=None, label2id=None, num_labels=10**12), "config.json num_labels"),
    "millions of layers": (set_config(text_config={"num_hidden_layers": 10**12}), "config.json num_hidden_layers"),
    "vocabulary in words": (set_config(vocab_size="30"), "FOLDER config.json"),
    "a config that is a text": (set_config(text_config="x"), "FOLDER config.json"),
    "names of inputs that are a number": (
        lambda model: edit_json(model / "tokenizer_config.json", model_input_names=5),
        "FOLDER tokenizer_config.json",
    ),
    "attention from the Hub": (set_config(_attn_implementation="ann/kernel"), "config.json ann/kernel"),
    "CVE-2026-4372": (set_config(_attn_implementation_internal="ann/kernel"), "config.json ann/kernel"),
    "attention from the Hub, nested": (
        set_config(text_config={"attn_implementation": "flash_attention_2"}),
        "config.json flash_attention_2",
    ),
    "an adapter": (write("adapter_config.json", b"{}"), "FOLDER adapter"),
    "config empty": (write("config.json", b""), "FOLDER config.json line 1"),
    "config cut": (cut("config.json", 99), "FOLDER config.json line 5"),
    "config a list": (write("config.json", b"[]"), "FOLDER config.json"),
    "config null": (write("config.json", b"null"), "FOLDER config.json"),
    "config of noise": (write("config.json", b"\xff\xfe\0"), "FOLDER config.json 0xff"),
    "config nested too deeply": (write("config.json", b"[" * 99_999), "FOLDER config.json recursion"),
    "no config": (unlink("config.json"), "FOLDER config.json"),
    "code for the config": (
        set_config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        "FOLDER config.json auto_map",
    ),
    "code for the model": (
        set_config(auto_map={"AutoModelForSequenceClassification": "mine.Model"}),
        "FOLDER config.json auto_map",
    ),
    "code elsewhere": (set_config(auto_map={"AutoConfig": "ann/evil--mine.Config"}), "FOLDER config.json auto_map"),
    "code for the tokenizer": (
        write("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["mine.Tokenizer", null]}}'),
        "FOLDER tokenizer_config.json auto_map",
    ),
}


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_a_broken_model_is_refused_in_one_line_by_the_benchmark_and_before_the_export(name, model, texts):
    damage, names = BROKEN_MODELS[name]
    damage(model)
    marker = model / "was run"
    (model / "mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    message = refused(lambda: reference_of(open_model(str(model)), texts[:3])).replace(str(model), "FOLDER")
    assert [word for word in names.split() if word not in message] == [], message
    (model.parent / "out").mkdir()
    refused(lambda: export_model(open_model(str(model)), "fp32", model.parent / "out"))
    assert not marker.exists()
    if "code" in name:
        runpy.run_path(str(model / "mine.py"))
        assert marker.exists(), "the test proves nothing if the code leaves no trace"


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
    message = refused(reference_of, opened, texts[:3])
    assert f"{model} can't be loaded: pytorch_model.bin" in message and "open" in message, "its class is named"
    assert "weights_only" not in message and "from_tf" not in message, "advice that would run it"
    assert str(model) in refused(export_model, opened, "fp32", tmp_path)
    assert not marker.exists()
    with contextlib.suppress(RuntimeError):  # torch rejects the file, but only after it has run the pickle
        torch.load(file, weights_only=False)
    assert marker.exists(), "the test proves nothing if the pickle leaves no trace"


def test_weights_in_a_pickle_are_loaded_if_there_are_no_others(model, texts):
    pickled(model)
    assert reference_of(open_model(str(model)), texts[:3]).shape == (3, 5)


def test_a_tokenizer_of_another_model_is_refused(model, texts, tmp_path):
    other = load_tokenizer(make_tiny_bert(tmp_path / "bert", texts))
    unlink(*TOKENIZER)(model)
    other.save_pretrained(model)
    configure(model, vocab_size=3000)
    resize(model, 3000)
    message = refused(open_model, str(model))
    assert "tokenizer" in message and "3000" in message


def resize(model: Path, vocabulary: int) -> None:
    """Cut a model's embeddings to the first tokens of its vocabulary."""
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


def test_a_model_in_a_pickle_beside_other_safetensors_comes_from_the_hub(hub, model):
    pickled(model)
    (model / "model.fp16.safetensors").write_bytes(b"not asked for")
    hub.models["ann/tiny"] = model
    folder = resolve_model("ann/tiny")
    assert (folder / "pytorch_model.bin").read_bytes() == (model / "pytorch_model.bin").read_bytes()
    assert "model.fp16.safetensors" not in hub.sent
    assert Model.from_folder(folder, "x").load_torch()


@pytest.mark.parametrize("format", ["safetensors", "pickle"])
def test_weights_in_several_files_come_from_the_hub(format, hub, model):
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model)
    (model / "model.safetensors").unlink()
    network.save_pretrained(model, max_shard_size="50KB")
    if format == "pickle":
        import torch
        from safetensors.torch import load_file

        index = json.loads((model / "model.safetensors.index.json").read_text())
        for shard in set(index["weight_map"].values()):
            torch.save(load_file(model / shard), model / shard.replace(".safetensors", ".bin"))
        for file in [*model.glob("*.safetensors*")]:
            file.unlink()
        index["weight_map"] = {key: one.replace(".safetensors", ".bin") for key, one in index["weight_map"].items()}
        (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    hub.models["ann/tiny"] = model
    opened = Model.from_folder(resolve_model("ann/tiny"), "x")
    assert opened.load_torch() and len(hub.sent) == len(set(hub.sent))
    assert opened.weights_id == Model.from_folder(model, "x").weights_id


def test_weights_that_the_config_names_come_from_the_hub(hub, model):
    (model / "sub").mkdir()
    (model / "model.safetensors").rename(model / "sub" / "w.safetensors")
    configure(model, transformers_weights="sub/w.safetensors")
    hub.models["ann/tiny"] = model
    assert Model.from_folder(resolve_model("ann/tiny"), "x").load_torch()


def test_weights_for_tensorflow_alone_on_the_hub_are_refused(hub, model):
    (model / "model.safetensors").rename(model / "tf_model.h5")
    hub.models["ann/tiny"] = model
    message = refused(resolve_model, "ann/tiny")
    assert "tf_model.h5" in message and "from_tf" not in message


PAGES = {
    "ann/tiny/": "ann/tiny",
    "https://huggingface.co/ann/tiny": "ann/tiny",
    "https://huggingface.co/ann/tiny/?library=transformers#use": "ann/tiny",
    "https://hf.co/ann/tiny/tree/main": "ann/tiny",
    "https://huggingface.co/ann/tiny/tree/v2": "ann/tiny@v2",
    "https://huggingface.co/ann/tiny/tree/refs%2Fpr%2F1": "ann/tiny@refs%2Fpr%2F1",
    "ann/tiny@v2": "ann/tiny@v2",
    "ann/tiny@refs/pr/1": "ann/tiny@refs%2Fpr%2F1",
    "ann/tiny@main": "ann/tiny",
}


@pytest.mark.parametrize("given", PAGES)
def test_a_model_may_be_a_page_or_a_revision(given, hub, model, tmp_path):
    """The folder of its export and its rows are named after it."""
    hub.models["ann/tiny"] = model
    other = shutil.copytree(model, tmp_path / "v2")
    configure(other, id2label={i: f"new {i}" for i in range(5)})
    revision = PAGES[given].partition("@")[2]
    hub.models[f"ann/tiny@{unquote(revision) or 'other'}"] = other
    opened = open_model(given, call_here)
    assert opened.id == PAGES[given] and opened.labels[0] == ("new 0" if revision else "LABEL_0")
    assert str(export_folder(opened.id, "fp32")) == f"tiny{revision and '-' + unquote(revision).replace('/', '-')}-onnx"


def test_an_unknown_revision_and_a_page_of_something_else_are_one_line(hub, model):
    hub.models["ann/tiny"] = model
    assert "v3" in refused(resolve_model, "ann/tiny@v3")
    assert "datasets/ann/tiny" in refused(resolve_model, "https://huggingface.co/datasets/ann/tiny")


NLI = {"id2label": {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"}}
PAIRS = {
    "entailment": NLI,
    "two labels": {"id2label": {"0": "entailment", "1": "not_entailment"}},
    "sentence_transformers": {"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid", "version": "5.1.0"}},
    "sbert_ce_default_activation_function": {"sbert_ce_default_activation_function": "torch.nn.Identity"},
    "LABEL_0": {"id2label": {"0": "LABEL_0"}, "problem_type": None},
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_model_for_pairs_is_refused_unless_its_task_is_given(name, model, tmp_path, call, monkeypatch):
    configure(model, **PAIRS[name])
    resize_head(model, len(PAIRS[name].get("id2label", range(5))))
    (tmp_path / "texts.csv").write_text("body\none\ntwo\n")
    monkeypatch.chdir(tmp_path)
    device, data = ["--device", "cpu"], ["--dataset", "texts.csv"]
    runs = {
        classify_texts: [model, "texts.csv", "--output", "out", "--variant", "torch", *device],
        run_benchmark: ["--model", "torch", "--model-id", model, *data, *device, "--resume", "--dry-run"],
        export_onnx: [model, *data, *device, "--no-upload", "--precision", "fp32", "--tolerance", 1],
    }
    for script, options in runs.items():
        code, _, err = call(script, *options)
        assert code == 2 and str(model) in err.splitlines()[-1] and "--task classification" in err, err
        assert call(script, *options, "--task", "classification")[0] == 0
    assert (tmp_path / "out").is_dir() and (tmp_path / "model-onnx").is_dir()


def resize_head(model: Path, labels: int) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    for name in ("classifier.out_proj.weight", "classifier.out_proj.bias"):
        weights[name] = weights[name][:labels].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {"0": "LABEL_0"}, "problem_type": "regression"},
        {"id2label": {"0": "toxic"}, "problem_type": None},
        {"id2label": {str(i): f"a presentailment {i}" for i in range(5)}},
    ],
)
def test_other_models_need_no_task(changes, model):
    configure(model, **changes)
    assert resolve_model(str(model)) == model


def test_random_roberta_base_is_built_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.model.random_model.CACHE", tmp_path)
    build, built = "bench.model.random_model.build_random_roberta_base", []
    monkeypatch.setattr(build, lambda folder: built.append(folder) or (folder / "config.json").touch())
    assert resolve_model(RANDOM_MODEL) == resolve_model(RANDOM_MODEL)
    assert resolve_model(RANDOM_MODEL) == tmp_path / f"transformers-{transformers.__version__}" / RANDOM_MODEL
    assert len(built) == 1 and "random-roberta-base" in capsys.readouterr().err


def test_a_kernel_of_the_hub_is_never_fetched(model, tmp_path, monkeypatch):
    """A stand-in replaces the package that fetches and runs kernels."""
    from transformers.integrations import hub_kernels

    fetched = []
    monkeypatch.setattr(hub_kernels, "_kernels_available", True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda repo, **_: fetched.append(repo), raising=False)
    configure(model, _attn_implementation="ann/kernel")
    assert "ann/kernel" in refused(resolve_model, str(model))
    assert not fetched
    with contextlib.suppress(Exception):
        load(Model.from_folder(model, "model"), None, CPU)
    assert fetched == ["ann/kernel"], "the test proves nothing if the stand-in is never called"


@pytest.mark.parametrize("shard", ["w/model-00001.safetensors", "../other/model.safetensors", "/etc/x", 5])
def test_weights_outside_of_the_folder_are_refused(shard, model):
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    assert "model.safetensors.index.json" in refused(resolve_model, str(model))


def test_names_that_are_too_long_are_one_line():
    assert "x" * 300 in refused(resolve_model, "./" + "x" * 300)
