"""Exports of embedding models: every pooling in the graph, the same vectors in sentence-transformers, the card."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from conftest import refused
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from tiny import make_sentence_model, make_tiny_encoder

import export_onnx
from bench.export.ensure import ensure_export
from bench.export.select import export_model
from bench.judge import WITHIN
from bench.model.batches import Batching
from bench.model.model import Model
from bench.model.reference import Reference
from bench.model.resolve import open_model
from bench.provenance import missing_packages
from bench.variants import Device, digest_export
from runtimes import VARIANTS
from runtimes.classifier import Classifier, ClassifierSpec

MODES = "cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, texts) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny", texts)


@pytest.fixture(scope="module")
def model(tmp_path_factory, encoder) -> Path:
    head = [Pooling(32, MODES), Dense(192, 24), Normalize()]
    prompts = {"query": "which *one*: "}
    return make_sentence_model(tmp_path_factory.mktemp("sentence") / "many", encoder, head, prompts=prompts)


@pytest.mark.needs("optimum")
def test_the_graph_pools_as_the_model_and_sentence_transformers_loads_it(tmp_path, monkeypatch, call, model, texts):
    monkeypatch.chdir(tmp_path)
    options = "--precision", "fp32", "--no-upload", "--limit", 40, "--batch-size", 8, "--device", "cpu"
    code, out, err = call(export_onnx, model, *options)
    folder = tmp_path / "many-onnx"
    assert code == 0 and WITHIN in out.splitlines()[-1], err
    outputs = {value.name: value for value in onnx.load(folder / "model.onnx").graph.output}
    assert {"token_embeddings", "sentence_embedding"} <= outputs.keys()
    some = [*texts[:12], "[SEP] here", " ".join(texts[:30])]
    expected = np.stack([SentenceTransformer(str(model), device="cpu").encode(text) for text in some])
    kwargs = {"file_name": "model.onnx", "provider": "CPUExecutionProvider"}
    library = SentenceTransformer(str(folder), backend="onnx", device="cpu", model_kwargs=kwargs)
    assert np.abs(library.encode(some) - expected).max() < 1e-5
    for variant in ("onnx", "sentence-transformers-onnx"):
        spec = ClassifierSpec(Model.from_folder(model, "many"), variant, folder, Device(None, 1))
        assert np.abs(Classifier(spec).predict(some, Batching("in-order", 5)).answers - expected).max() < 1e-5
    _, metadata, card = (folder / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(metadata)
    assert (fields["library_name"], fields["pipeline_tag"]) == ("sentence-transformers", "sentence-similarity")
    assert "which *one*: " in card and not re.search(r"{{|{%|None|Undefined", card)
    [example] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(example, names)
    assert names["vectors"].shape == (2, 24)
    before = digest_export(folder)
    (folder / "2_Dense/config.json").write_text("{}")
    assert digest_export(folder) != before


@pytest.mark.needs("optimum")
@pytest.mark.skipif(bool(missing_packages(VARIANTS["sentence-transformers-openvino"])), reason="needs optimum-intel")
def test_the_openvino_backend_loads_the_export_as_optimum_makes_it(tmp_path, in_this_process, model, texts):
    opened = Model.from_folder(model, "many")
    export_model(opened, "fp32-plain", tmp_path)
    spec = ClassifierSpec(opened, "sentence-transformers-openvino", tmp_path, Device(None, 1))
    expected = SentenceTransformer(str(model), device="cpu").encode(texts[:12])
    assert np.abs(Classifier(spec).predict(texts[:12], Batching("in-order", 5)).answers - expected).max() < 1e-5


@pytest.mark.needs("optimum")
def test_a_fused_export_of_a_plain_encoder_pools_in_fp32(tmp_path, in_this_process, encoder, texts):
    model = Model.from_folder(encoder, "tiny", "embedding", {"pooling": "cls"})
    graph = export_model(model, "fp16", tmp_path)
    assert graph["findings"] == [] and "2 Attention" in graph["nodes"]
    proto = onnx.load(tmp_path / "model.onnx")
    assert {value.type.tensor_type.elem_type for value in proto.graph.output} == {onnx.TensorProto.FLOAT}
    spec = ClassifierSpec(model, "onnx-fp16", tmp_path, Device(None, 1))
    answers = Classifier(spec).predict(texts[:20], Batching("sorted", 5)).answers
    expected = Classifier(ClassifierSpec(model, "torch", None, Device(None, 1))).predict(
        texts[:20], Batching("sorted", 5)
    )
    assert model.task.differences(answers, expected.answers).max() < 1e-2
    library = SentenceTransformer(str(tmp_path), backend="onnx", device="cpu", model_kwargs={"file_name": "model.onnx"})
    assert np.abs(library.encode(texts[:20]) - answers).max() < 1e-2 * np.abs(answers).max()
    alone = open_model(str(tmp_path), task="embedding", original=str(encoder), options={"pooling": "cls"})
    reference = Reference.load(alone.original, threads=1).of_items(texts[:2])
    assert np.abs(reference - expected.answers[:2]).max() < 1e-5
    assert "mean" in refused(lambda: open_model(str(tmp_path), task="embedding", original=str(encoder)))


def test_a_prompt_that_is_not_pooled_needs_torch(tmp_path, in_this_process, encoder):
    head = [Pooling(32, "mean", include_prompt=False)]
    folder = make_sentence_model(tmp_path / "model", encoder, head, prompts={"query": "q "})
    model = Model.from_folder(folder, "model", None, {"prompt_name": "query"})
    assert "torch" in refused(ensure_export, model, "fp32")
