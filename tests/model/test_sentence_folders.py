"""Folders of embedding models as other programs save them, against SentenceTransformer.encode of the same folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from tiny import make_sentence_model, make_tiny_encoder, tiny_config, word_level_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from bench.export.select import export_model
from bench.model.batches import Batching
from bench.model.model import Model
from bench.model.reference import Reference
from bench.variants import Device
from runtimes.classifier import Classifier, ClassifierSpec

WORDS = [" ".join(f"w{i * n % 196}" for i in range(n)) for n in (3, 1, 20, 7, 40, 12)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, texts) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny", texts)


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory, encoder) -> Path:
    folder = tmp_path_factory.mktemp("sentence") / "model"
    return make_sentence_model(folder, encoder, [Pooling(32, "mean")], prompts={"query": "which "})


@pytest.fixture
def model(tmp_path, sentence_model) -> Path:
    return shutil.copytree(sentence_model, tmp_path / "model")


def make_plain(folder: Path, kind: str, auto_class=AutoModel, **options) -> Path:
    """Save an encoder or a decoder of a type, without modules.json."""
    config = tiny_config(kind)
    vars(config).update(options)
    torch.manual_seed(0)
    auto_class.from_config(config).save_pretrained(folder)
    word_level_tokenizer(kind).save_pretrained(folder)
    return folder


def open_folder(folder: Path, **options) -> Model:
    return Model.from_folder(folder, "tiny", "embedding", options)


def predict(model: Model, texts: list, **batching) -> np.ndarray:
    spec = ClassifierSpec(model, "torch", None, Device(None, 1))
    return Classifier(spec).predict(texts, Batching("sorted", 8, **batching)).answers


def encode(folder: Path, texts: list[str], **options) -> np.ndarray:
    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.stack([library.encode(text, show_progress_bar=False, **options) for text in texts])


def check_equal(folder: Path, texts: list[str], **options) -> None:
    """Compare the vectors and those of the reference, which the proof uses, with encode()."""
    model, expected = open_folder(folder, **options), encode(folder, texts, **options)
    assert np.abs(predict(model, texts) - expected).max() < 1e-5
    assert np.abs(Reference.load(model, threads=1).of_items(texts) - expected).max() < 1e-5


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | changes))


def text_config(output: str | list) -> dict:
    return {"text": {"method": "forward", "method_output_name": output}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modality_config", text_config(["hidden_states", -2])),
        ("modality_config", text_config("last_hidden_state") | {"message": {}}),
        ("module_output_name", "sentence_embedding"),
        ("transformer_task", "fill-mask"),
    ],
)
def test_settings_that_change_the_encoders_output_are_refused(model, name, value):
    change_json(model / "sentence_bert_config.json", **{name: value})
    assert name in refused(lambda: open_folder(model))


@pytest.mark.parametrize("kind", ["plain", "sentence"])
def test_a_chat_template_that_encode_would_apply_is_refused(tmp_path, encoder, sentence_model, texts, kind):
    folder = shutil.copytree({"plain": encoder, "sentence": sentence_model}[kind], tmp_path / "model")
    template = "{% for m in messages %}one {{m['content']}} of{% endfor %}"
    change_json(folder / "tokenizer_config.json", chat_template=template)
    if kind == "sentence":  # its settings say that it takes texts
        check_equal(folder, texts[:4])
        (folder / "sentence_bert_config.json").unlink()
    assert "chat_template" in refused(lambda: open_folder(folder))


def test_a_plain_decoder_is_pooled_as_encode_does(tmp_path):
    folder = make_plain(tmp_path / "model", "qwen2", AutoModelForCausalLM)
    check_equal(folder, WORDS)
    assert np.abs(predict(open_folder(folder, pooling="mean"), WORDS) - encode(folder, WORDS)).max() > 1e-3


def test_a_plain_encoder_has_no_settings_of_sentence_transformers(tmp_path, encoder, texts):
    folder = shutil.copytree(encoder, tmp_path / "model")
    change_json(folder / "sentence_bert_config.json", max_seq_length=8, do_lower_case=True)
    prompts = {"prompts": {"query": "which "}, "default_prompt_name": "query", "truncate_dim": 4}
    change_json(folder / "config_sentence_transformers.json", **prompts)
    check_equal(folder, texts[:4])


@pytest.mark.parametrize("kind", ["CrossEncoder", "SparseEncoder"])
def test_a_model_of_another_kind_is_refused(model, kind):
    change_json(model / "config_sentence_transformers.json", model_type=kind)
    assert kind in refused(lambda: open_folder(model))


def test_a_limit_above_the_positions_is_refused(tmp_path, model):
    change_json(model / "sentence_bert_config.json", max_seq_length=200)
    assert "max_seq_length" in refused(lambda: open_folder(model))


def test_a_model_without_a_limit_is_refused(tmp_path):
    folder = make_plain(tmp_path / "model", "xlnet")
    change_json(folder / "tokenizer_config.json", model_max_length=10**30)
    assert "model_max_length" in refused(lambda: open_folder(folder))


def test_a_roberta_is_truncated_to_the_positions_it_has(tmp_path):
    folder = make_plain(tmp_path / "model", "xlm-roberta")
    change_json(folder / "tokenizer_config.json", model_max_length=10**30)
    model, long = open_folder(folder), [" ".join(WORDS) * 3]
    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    library.max_seq_length = AutoConfig.from_pretrained(folder).max_position_embeddings - 2
    expected = library.encode(long)
    assert np.abs(predict(model, long) - expected).max() < 1e-5
    assert np.abs(Reference.load(model, threads=1).of_items(long) - expected).max() < 1e-5


def test_the_reference_does_not_depend_on_what_is_read_here(sentence_model, encoder, texts):
    long = [" ".join(texts[:9])]
    for folder in sentence_model, encoder:
        model = open_folder(folder)
        wrong = replace(model, max_length=50, task=replace(model.task, prompt="which ", pooling="cls"))
        assert np.abs(Reference.load(wrong, threads=1).of_items(long) - encode(folder, long)).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("truncate_dim", "16"),
        ("truncate_dim", 1.5),
        ("default_prompt_name", []),
        ("default_prompt_name", "nothing"),
        ("prompts", "which "),
        ("prompts", ["which "]),
        ("prompts", None),
        ("prompts", {"query": 5}),
    ],
)
def test_defaults_of_another_type_are_refused(model, name, value):
    change_json(model / "config_sentence_transformers.json", **{name: value})
    assert name in refused(lambda: open_folder(model)).replace("--truncate-dim", "truncate_dim")


@pytest.mark.parametrize("mode", ["weightedmean", "lasttoken", "cls"])
def test_vectors_of_xlnet_do_not_depend_on_the_batch(tmp_path, mode):
    encoder = make_plain(tmp_path / "encoder", "xlnet")
    check_equal(make_sentence_model(tmp_path / "model", encoder, [Pooling(32, mode)]), WORDS)


def test_a_prompt_above_the_limit_that_is_not_pooled(tmp_path, encoder, texts):
    head = [Pooling(32, "mean", include_prompt=False)]
    folder = make_sentence_model(tmp_path / "model", encoder, head)
    check_equal(folder, texts[:3], prompt=" ".join(texts[:30]))


def test_modules_in_nested_folders_are_saved(tmp_path, model, texts):
    (model / "modules").mkdir()
    (model / "1_Pooling").rename(model / "modules/1_Pooling")
    list_of_modules = (model / "modules.json").read_text()
    (model / "modules.json").write_text(list_of_modules.replace("1_Pooling", "modules/1_Pooling"))
    opened, target = open_folder(model), tmp_path / "export"
    target.mkdir()
    opened.task.save_files(opened, target)
    assert (target / "modules/1_Pooling/config.json").is_file()
    check_equal(model, texts[:3])


@pytest.mark.needs("optimum")
def test_an_encoder_without_a_mask_can_be_exported(tmp_path, in_this_process):
    folder = make_plain(tmp_path / "model", "fnet")
    model = open_folder(folder)
    export_model(model, "fp32", tmp_path)
    spec = ClassifierSpec(model, "onnx", tmp_path, Device(None, 1))
    vectors = Classifier(spec).predict(WORDS, Batching("sorted", 8)).answers
    assert np.abs(vectors - encode(folder, WORDS)).max() < 1e-5


def test_a_plain_name_of_an_activation_is_known(tmp_path, encoder, texts):
    head = [Pooling(32, "mean"), Dense(32, 8, activation_function=torch.nn.Identity())]
    folder = make_sentence_model(tmp_path / "model", encoder, head)
    change_json(folder / "2_Dense/config.json", activation_function="torch.nn.Identity")
    check_equal(folder, texts[:3])


def test_modules_that_do_not_make_the_vector_are_refused(tmp_path, encoder):
    head = [Pooling(32, "mean"), Dense(32, 8, module_input_name="token_embeddings")]
    folder = make_sentence_model(tmp_path / "model", encoder, head)
    assert str(folder) in refused(lambda: open_folder(folder).load_torch())


@pytest.mark.parametrize("kind", ["dpr", "reformer", "clip"])
def test_encoders_without_hidden_states_are_refused(tmp_path, kind):
    folder = make_plain(tmp_path / "model", kind)
    assert str(folder) in refused(lambda: open_folder(folder).load_torch())
