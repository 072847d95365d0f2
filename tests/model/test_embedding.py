"""Embedding models, against SentenceTransformer.encode of the same folder, one text at a time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from tiny import make_sentence_model, make_tiny_encoder
from transformers import AutoModel

from bench.judge import NOT_WITHIN, WITHIN
from bench.label.on_ray import read_files
from bench.model.batches import Batching
from bench.model.embedding import MARGIN, Embedding
from bench.model.model import Model
from bench.model.parity import ParityCounter
from bench.model.reference import Reference
from bench.model.resolve import resolve_model
from bench.model_files import model_files
from bench.report.evidence import evidence_key
from bench.variants import Device
from runtimes.classifier import Classifier, ClassifierSpec

MODES = "cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"
BATCHING = Batching("sorted", 8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, texts) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny", texts)


@pytest.fixture(scope="module")
def some(texts) -> list[str]:
    """Texts of all lengths, one of them above the model's limit."""
    return [*sorted(texts, key=len)[::30], "[SEP] [CLS] here", " ".join(texts[:20])]


def open_folder(folder: Path, **options) -> Model:
    return Model.from_folder(folder, "tiny", "embedding", options)


def predict(model: Model, texts: list, batching: Batching = BATCHING, variant: str = "torch") -> np.ndarray:
    return Classifier(ClassifierSpec(model, variant, None, Device(None, 1))).predict(texts, batching).answers


def encode(folder: Path, texts: list[str], **options) -> np.ndarray:
    kwargs = {"model_kwargs": options.pop("model_kwargs", None)}
    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True, **kwargs)
    return np.stack([library.encode(text, show_progress_bar=False, **options) for text in texts])


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


HEADS = {mode: [Pooling(32, mode), Normalize()] for mode in MODES}
HEADS |= {
    "not normalized": [Pooling(32, "mean")],
    "joined": [Pooling(32, ("mean", "cls")), Dense(64, 8)],
    "several": [Pooling(32, "mean"), Dense(32, 16, activation_function=torch.nn.GELU()), Dense(16, 12), Normalize()],
    "normalized before": [Pooling(32, "cls"), Normalize(), Dense(32, 8, activation_function=torch.nn.Identity())],
}


@pytest.mark.parametrize("name", HEADS)
def test_vectors_equal_those_of_encode_for_every_pooling_and_module(tmp_path, encoder, some, name):
    folder = make_sentence_model(tmp_path / "model", encoder, HEADS[name])
    model, expected = open_folder(resolve_model(str(folder))), encode(folder, some)
    assert isinstance(model.task, Embedding) and expected.shape[1] == len(model.labels)
    answers = predict(model, some)
    assert answers.dtype == np.float32 and np.abs(answers - expected).max() < 1e-5
    assert np.abs(Reference.load(model, threads=1).of_items(some[:4]) - expected[:4]).max() < 1e-6


def test_a_model_as_older_versions_saved_it(tmp_path, encoder, some):
    """Its limit, its lower case and its prompt count, and a pickled Dense with the default activation."""
    folder = shutil.copytree(encoder, tmp_path / "model")
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling | {"pooling_mode_max_tokens": True}))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense/config.json").write_text(json.dumps({"in_features": 64, "out_features": 8, "bias": True}))
    torch.save(
        {"linear.weight": torch.randn(8, 64), "linear.bias": torch.randn(8)}, folder / "2_Dense/pytorch_model.bin"
    )
    settings = {"max_seq_length": 20, "do_lower_case": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    prompts = {"prompts": {"query": "which ", "passage": "there "}, "default_prompt_name": "passage"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    model, upper = open_folder(folder), [text.upper() for text in some]
    assert model.max_length == 20 and model.task.prompt == "there "
    assert np.abs(predict(model, upper) - encode(folder, upper)).max() < 1e-5
    assert np.abs(predict(model, upper) - predict(model, some)).max() < 1e-6, "lower case"
    asked = open_folder(folder, prompt_name="query", truncate_dim=3, normalize=True)
    expected = encode(folder, some, prompt_name="query", truncate_dim=3, normalize_embeddings=True)
    assert np.abs(predict(asked, some) - expected).max() < 1e-5 and expected.shape[1] == 3
    names = [str(file.relative_to(folder)) for file in model_files(folder)]
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"} <= {*names}
    change_json(folder / "1_Pooling/config.json", pooling_mode_max_tokens=False, pooling_mode_cls_token=True)
    assert open_folder(folder).weights_id != model.weights_id


def test_a_prompt_can_be_left_out_of_the_pooling(tmp_path, encoder, some):
    head = [Pooling(32, "mean", include_prompt=False)]
    folder = make_sentence_model(tmp_path / "model", encoder, head, prompts={"query": "which of these "})
    asked = open_folder(folder, prompt_name="query")
    assert np.abs(predict(asked, some) - encode(folder, some, prompt_name="query")).max() < 1e-5
    assert np.abs(predict(open_folder(folder, prompt="which of these "), some) - predict(asked, some)).max() == 0


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_plain_encoders_are_pooled_as_asked(encoder, some, pooling):
    model = open_folder(encoder, pooling=pooling)
    with torch.inference_mode():
        network = model.load_torch().base_model
        hidden = [network(**model.tokenizer(text, return_tensors="pt", truncation=True))[0][0] for text in some]
    expected = np.stack([states.mean(dim=0) if pooling == "mean" else states[0] for states in hidden])
    assert np.abs(predict(model, some) - expected).max() < 1e-5
    baseline = predict(model, some, Batching("in-order", 4), "sentence-transformers")
    assert np.abs(baseline - expected).max() < 1e-5
    if pooling == "mean":  # as sentence-transformers does for a folder without modules.json
        assert np.abs(encode(encoder, some) - expected).max() < 1e-5
    assert open_folder(encoder, pooling="cls").weights_id != open_folder(encoder, pooling="mean").weights_id


@pytest.mark.parametrize("name", ["mean", "cls", "lasttoken", "not normalized", "joined"])
def test_windows_are_averaged_and_normalized_again(tmp_path, encoder, texts, name):
    folder = make_sentence_model(tmp_path / "model", encoder, HEADS[name])
    model, long = open_folder(folder, truncate_dim=5, normalize=name == "joined"), " ".join(texts[:30])
    windows = model.tokenizer(long, truncation=True, max_length=128, stride=32, return_overflowing_tokens=True)
    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    vectors = [
        library({"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=int)})
        for ids in windows["input_ids"]
    ]
    mean = np.mean([vector["sentence_embedding"][0].numpy(force=True) for vector in vectors], axis=0)
    mean = (mean / np.linalg.norm(mean) if name in MODES else mean)[:5]
    mean = mean / np.linalg.norm(mean) if name == "joined" else mean
    answers = predict(model, [long, texts[0]], Batching("sorted", 8, long="windows"))
    assert len(vectors) > 2 and np.abs(answers[0] - mean).max() < 1e-5
    reference = Reference.load(model, threads=1, long="windows").of_items([long, texts[0]])
    assert np.abs(reference - answers).max() < 1e-5


@pytest.mark.parametrize("saved_as", ["float16", "named float16"])
def test_the_reference_is_fp32_whatever_the_checkpoint(tmp_path, encoder, some, saved_as):
    """transformers 5 loads the precision that the files have, or that config.json names."""
    network = AutoModel.from_pretrained(encoder)
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    (network.half() if saved_as == "float16" else network).save_pretrained(folder)
    change_json(folder / "config.json", dtype="float16", torch_dtype="float16")
    model = make_sentence_model(tmp_path / "model", folder, [Pooling(32, "mean"), Normalize()])
    shutil.copy(folder / "model.safetensors", model)
    change_json(model / "config.json", dtype="float16", torch_dtype="float16")
    expected = encode(model, some, model_kwargs={"dtype": torch.float32})
    opened = open_folder(model)
    assert np.abs(Reference.load(opened, threads=1).of_items(some) - expected).max() < 1e-6
    assert np.abs(predict(opened, some) - expected).max() < 1e-5
    plain = open_folder(folder, pooling="mean")
    expected = encode(folder, some, model_kwargs={"dtype": torch.float32})
    assert np.abs(Reference.load(plain, threads=1).of_items(some) - expected).max() < 1e-6


def test_options_that_change_the_vectors_are_other_evidence_and_other_rows(dense_model):
    options = [{}, {"prompt": "which "}, {"prompt_name": "query"}, {"truncate_dim": 5}, {"normalize": True}]
    options += [{"truncate_dim": 5, "normalize": True}, {"prompt": "there ", "truncate_dim": 5}]
    models = [open_folder(dense_model, **chosen) for chosen in options]
    vectors = [np.pad(predict(model, ["one text"]), ((0, 0), (0, 8 - len(model.labels)))) for model in models]
    assert len({array.tobytes() for array in vectors}) == len(options)
    keys = {tuple(evidence_key(model, "torch-bf16", "", dataset="x", device="d").items()) for model in models}
    assert len(keys) == len({model.task.rule_id for model in models}) == len(options)
    assert [model.task.rule_id for model in models].index("") == 0
    unchanged = open_folder(dense_model, normalize=False, prompt=None, truncate_dim=None)
    assert unchanged.task.rule_id == "", "as a command line without options gives"


def test_several_columns_are_joined_by_a_blank_line(encoder, some):
    model = open_folder(encoder)
    pairs = list(zip(some, some[::-1], strict=True))
    joined = [f"{first}\n\n{second}" for first, second in pairs]
    assert np.array_equal(predict(model, pairs), predict(model, joined))
    assert np.array_equal(Reference.load(model, threads=1).of_items(pairs[:2]), encode(encoder, joined[:2]))


def test_a_changed_decision_is_another_nearest_anchor_beyond_the_margin():
    task = Embedding(("0", "1"), 2, "mean", is_plain=True, has_unit_length=False, include_prompt=True)
    angles = np.radians([0, 40, 79, 120])
    reference = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    turned = reference.copy()
    turned[2] = [np.cos(np.radians(81)), np.sin(np.radians(81))]  # now nearer to 120 degrees than to 40
    loss = np.cos(np.radians(39)) - np.cos(np.radians(41))
    assert loss > MARGIN and task.flips(turned, reference, reference).sum() == 1
    near = reference.copy()
    reference[2] = [np.cos(np.radians(79.9)), np.sin(np.radians(79.9))]
    near[2] = [np.cos(np.radians(80.1)), np.sin(np.radians(80.1))]
    assert task.flips(near, reference, reference).sum() == 0, "a near-tie"
    near[0] = np.nan
    assert task.flips(near, reference, reference).sum() == 1
    assert task.flips(reference[:1], reference[:1]).sum() == 0, "a single text has no other anchor"


def test_changes_are_those_of_each_text_with_the_same_anchors():
    task = Embedding(("0", "1"), 2, "mean", is_plain=True, has_unit_length=False, include_prompt=True)
    reference, noise = np.random.default_rng(0).normal(size=(2, 300, 2))
    answers = reference + 0.1 * noise
    parity = ParityCounter(task, basis=task.basis(reference))
    parity.add(answers, reference, [f"text {i}" for i in range(300)])
    alone = [task.flips(answers[i : i + 1], reference[i : i + 1], parity.basis).sum() for i in range(300)]
    assert list(parity.changes.values()) == alone and 0 < sum(alone) == parity.changed


def test_texts_of_later_calls_have_those_of_earlier_ones_as_anchors():
    """As a labelling job compares its first part, and the later ones at the end."""
    task = Embedding(("0", "1"), 2, "mean", is_plain=True, has_unit_length=False, include_prompt=True)
    reference, noise = np.random.default_rng(0).normal(size=(2, 90, 2))
    answers, parity = reference + 0.3 * noise, ParityCounter(task)
    parity.add(answers[:80], reference[:80])
    parity.add(answers[80:], reference[80:])
    expected = int(task.flips(answers[:80], reference[:80], reference[:80]).sum())
    expected += int(task.flips(answers[80:], reference[80:], reference).sum())
    assert parity.changed == expected > 0
    assert int(task.flips(answers[80:], reference[80:]).sum()) != expected


def test_differences_tell_a_missing_normalization_and_wrong_vectors():
    task = Embedding(("0", "1"), 2, "mean", is_plain=True, has_unit_length=False, include_prompt=True)
    vectors = np.random.default_rng(0).normal(size=(300, 2))
    same, scaled = ParityCounter(task, "fp32"), ParityCounter(task, "fp32")
    same.add(vectors + 1e-6, vectors)
    scaled.add(2 * vectors, vectors)
    assert same.verdict() == WITHIN and same.max_diff < 1e-3
    assert scaled.max_diff == pytest.approx(1) and scaled.verdict() != WITHIN
    shuffled = ParityCounter(task, "int8")
    shuffled.add(vectors[::-1], vectors)
    assert shuffled.verdict() == NOT_WITHIN


def with_code(folder: Path) -> str:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "modeling.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "modeling.py").write_text("raise SystemExit('executed')")
    return "modeling.Pooling"


def with_a_wrong_dense(folder: Path) -> str:
    change_json(folder / "2_Dense/config.json", in_features=31)
    return "2_Dense"


def with_an_activation_of_its_own(folder: Path) -> str:
    change_json(folder / "2_Dense/config.json", activation_function="os.abort")
    return "os.abort"


def with_a_tokenizer_elsewhere(folder: Path) -> str:
    change_json(folder / "sentence_bert_config.json", tokenizer_name_or_path="/elsewhere")
    return "tokenizer_name_or_path"


def with_a_module_elsewhere(folder: Path) -> str:
    (folder / "modules.json").write_text((folder / "modules.json").read_text().replace("1_Pooling", "../1_Pooling"))
    return "../1_Pooling"


def with_another_kind_of_module(folder: Path) -> str:
    (folder / "modules.json").write_text((folder / "modules.json").read_text().replace(".Dense", ".LSTM"))
    return "LSTM"


def without_a_list(folder: Path) -> str:
    (folder / "modules.json").write_text("{}")
    return "modules.json"


BREAKS = [with_code, with_a_wrong_dense, with_an_activation_of_its_own, with_a_tokenizer_elsewhere]
BREAKS += [with_a_module_elsewhere, with_another_kind_of_module, without_a_list]


@pytest.fixture(scope="module")
def dense_model(tmp_path_factory, encoder) -> Path:
    head = [Pooling(32, "mean"), Dense(32, 8)]
    return make_sentence_model(tmp_path_factory.mktemp("sentence") / "model", encoder, head, prompts={"query": "q: "})


@pytest.mark.parametrize("spoil", BREAKS)
def test_models_that_are_broken_or_need_code_are_refused(tmp_path, dense_model, spoil):
    folder = shutil.copytree(dense_model, tmp_path / "model")
    named = spoil(folder)
    assert named in refused(lambda: open_folder(resolve_model(str(folder), "embedding")))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt_name": "nothing"}, ("--prompt-name", "query")),
        ({"truncate_dim": 9}, ("--truncate-dim", "8")),
        ({"pooling": "cls"}, ("--pooling", "mean")),
    ],
)
def test_options_that_do_not_suit_the_model_are_refused(dense_model, options, named):
    message = refused(lambda: open_folder(dense_model, **options))
    assert all(word in message for word in named)


def test_other_machines_get_all_files_that_the_model_needs(tmp_path, dense_model):
    """As an actor of Ray does."""
    model = open_folder(dense_model)
    for name, content in read_files(ClassifierSpec(model, "torch", None, Device(None, 1))).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    texts = ["one text", "and another one"]
    assert np.array_equal(predict(open_folder(tmp_path / "model"), texts), predict(model, texts))


def test_a_download_has_the_modules(hub, dense_model):
    hub.models["ann/tiny"] = dense_model
    folder = resolve_model("ann/tiny")
    texts = ["one text", "and another one"]
    assert np.abs(predict(open_folder(folder), texts) - encode(dense_model, texts)).max() < 1e-5
