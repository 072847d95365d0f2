"""Models that hold only ONNX: which file counts, what it computes in, and that nothing outside the folder is read."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import refused
from onnx import TensorProto, helper, numpy_helper

from bench.files import digest
from bench.model.model import Model
from bench.model.onnx_file import read_precision
from bench.model.reference import Reference
from bench.model.resolve import open_model, resolve_model
from bench.model_files import SMALL_FILES, model_files
from bench.variants import Device
from runtimes.classifier import Classifier, ClassifierSpec
from runtimes.onnx import FP16, FP32, INT8

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory) -> Path:
    """The tiny model as optimum alone exports and saves it."""
    pytest.importorskip("optimum.onnxruntime")
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("optimum")
    ORTModelForSequenceClassification.from_pretrained(tiny_model, export=True).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy, to be changed."""
    return shutil.copytree(exported, tmp_path / "model")


def move_graph(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "model.onnx").rename(folder / name)


def answers(folder: Path, variant: str, texts: list[str]) -> np.ndarray:
    """Return the answers of our variant, as the labelling gets them."""
    from bench.export.ensure import ensure_export
    from bench.model.batches import Batching
    from runtimes import VARIANTS

    model = open_model(str(folder))
    path, _ = ensure_export(model, VARIANTS[variant].export.precision)
    classifier = Classifier(ClassifierSpec(model, variant, path, Device(None, 1)))
    return classifier.predict(texts, Batching("token-budget", batch_tokens=256)).answers


@pytest.mark.needs("optimum")
@pytest.mark.parametrize("name", ["model.onnx", "model_optimized.onnx", "onnx/model.onnx"])
def test_optimums_export_gives_the_answers_of_optimums_own_class(name, folder, tiny_model, texts):
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    network, tokenizer = (
        ORTModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    inputs = [tokenizer(text, truncation=True, max_length=128, return_tensors="np") for text in texts[:20]]
    expected = np.concatenate([1 / (1 + np.exp(-network(**row).logits)) for row in inputs])
    move_graph(folder, name)
    assert answers(folder, "onnx", texts[:20]) == pytest.approx(expected, abs=1e-5)
    original = Reference.load(Model.from_folder(tiny_model, "tiny")).of_items(texts[:20])
    assert original == pytest.approx(expected, abs=1e-5)
    model = open_model(str(folder))
    assert model.weights_id == digest(model_files(folder)) and folder / name in model_files(folder)
    assert str(folder) in refused(model.load_torch)


@pytest.mark.parametrize("kind", [FP32, FP16, INT8], ids=lambda kind: kind.precision)
def test_the_precision_is_that_of_the_graph_whatever_the_manifest_says(kind, tiny_exports, tmp_path):
    folder = shutil.copytree(tiny_exports / f"tiny{kind.suffix}", tmp_path / "model")
    assert open_model(str(folder)).onnx_precision == kind.precision
    (folder / "export.json").unlink()
    assert open_model(str(folder)).onnx_precision == kind.precision


def test_a_hub_repository_with_onnx_only_is_downloaded_and_then_comes_from_the_cache(hub, folder, texts, monkeypatch):
    move_graph(folder, "onnx/model.onnx")
    (folder / "onnx" / "model.onnx_data").write_bytes(b"")
    (folder / "onnx" / "notes.txt").write_text("not asked for")
    (folder / "tf_model.h5").write_text("not asked for")
    hub.models["ann/tiny-onnx"] = folder
    model = open_model("ann/tiny-onnx")
    assert not {"notes.txt", "tf_model.h5"} & set(hub.sent) and hub.sent.count("model.onnx") == 1
    assert model.onnx_precision == "fp32" and model.weights_id == open_model(str(folder)).weights_id
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert open_model("ann/tiny-onnx").folder == model.folder
    assert answers("ann/tiny-onnx", "onnx", texts[:3]).shape == (3, 5)


UNCLEAR = "model.onnx model_quantized.onnx", "model_quantized.onnx", "model.onnx onnx/model.onnx"


@pytest.mark.parametrize("names", UNCLEAR)
def test_an_unclear_choice_is_refused_with_the_list_and_before_a_download(names, hub, folder):
    graph = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()
    (folder / "onnx").mkdir()
    for name in names.split():
        (folder / name).write_bytes(graph)
    hub.models["ann/tiny-onnx"] = folder
    for model_id in ("ann/tiny-onnx", str(folder)):
        message = refused(resolve_model, model_id)
        assert all(name in message for name in names.split()), message
    assert set(hub.sent) <= set(SMALL_FILES)


def test_the_manifest_chooses_among_several_files(folder):
    shutil.copy(folder / "model.onnx", folder / "model_quantized.onnx")
    assert "model_quantized.onnx" in refused(resolve_model, str(folder))
    (folder / "export.json").write_text(json.dumps({"files": ["config.json", "model.onnx"]}))
    assert resolve_model(str(folder)) == folder
    assert folder / "model_quantized.onnx" not in model_files(folder)
    (folder / "export.json").write_text(json.dumps({"files": 5}))
    assert "export.json" in refused(resolve_model, str(folder))


def save_outside(folder: Path, location: str) -> bytes:
    """Move the weights of model.onnx into a file, which the graph calls `location`. Return the file's content."""
    model = onnx.load(folder / "model.onnx")
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="moved.bin", size_threshold=0)
    content = (folder / "moved.bin").read_bytes()
    (folder / "moved.bin").unlink()
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return content


@pytest.mark.parametrize("name", ["model.onnx_data", "model.onnx.data"])
def test_data_beside_the_graph_is_loaded_and_belongs_to_the_models_id(name, folder, texts):
    before = answers(folder, "onnx", texts[:3])
    content = save_outside(folder, name)
    assert name in refused(open_model, str(folder)), "the file is missing"
    (folder / name).write_bytes(content)
    assert (answers(folder, "onnx", texts[:3]) == before).all()
    first = open_model(str(folder))
    (folder / name).write_bytes(content + b"\0")
    assert open_model(str(folder)).weights_id != first.weights_id


ELSEWHERE = "../secret.bin", "ABSOLUTE", "other.bin", "sub/model.onnx_data", "model.onnx_data"


@pytest.mark.parametrize("location", ELSEWHERE)
def test_data_elsewhere_is_refused(location, folder):
    secret = folder.parent / "secret.bin"
    secret.write_bytes(save_outside(folder, str(secret) if location == "ABSOLUTE" else location))
    (folder / "sub").mkdir()
    for name in ("other.bin", "sub/model.onnx_data"):
        shutil.copy(secret, folder / name)
    if location == "model.onnx_data":
        (folder / location).symlink_to(secret)
    message = refused(open_model, str(folder))
    assert str(folder) in message and (str(secret) if location == "ABSOLUTE" else location) in message


def test_a_link_of_the_graph_itself_out_of_the_folder_is_refused(folder):
    (folder / "model.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")
    assert "model.onnx" in refused(resolve_model, str(folder))


def tensor_in_a_subgraph(location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_data_of_a_constant_in_a_subgraph_is_found(folder):
    model = onnx.load(folder / "model.onnx")
    constant = helper.make_node("Constant", [], ["w"], value=tensor_in_a_subgraph("../secret.bin"))
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("w", 1, [4])])
    condition = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    branch = helper.make_node("If", ["yes"], ["unused"], then_branch=inner, else_branch=inner)
    model.graph.node.extend([condition, branch])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert "../secret.bin" in refused(open_model, str(folder))


def change_graph(folder: Path, change) -> None:
    model = onnx.load(folder / "model.onnx")
    change(model.graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def to_bf16(graph) -> None:
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.data_type = TensorProto.BFLOAT16


def fix_shape(graph) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def quantize_to_4_bits(graph) -> None:
    graph.node[-1].op_type = "MatMulNBits"


CHANGES = {"BFLOAT16": to_bf16, "input_ids": fix_shape, "model.onnx": quantize_to_4_bits}


@pytest.mark.parametrize("name", CHANGES)
def test_files_that_no_variant_runs_are_refused(name, folder):
    change_graph(folder, CHANGES[name])
    message = refused(open_model, str(folder))
    assert str(folder / "model.onnx") in message and name in message


@pytest.mark.parametrize("content", [b"", b"\1\2\3" * 999, b"<html>"])
def test_a_damaged_file_is_refused(content, folder):
    (folder / "model.onnx").write_bytes(content)
    assert str(folder / "model.onnx") in refused(read_precision, folder)


def test_another_model_is_no_original(folder, tiny_model, tmp_path):
    assert open_model(str(folder), original=str(tiny_model)).original.folder == tiny_model
    assert "--original" in refused(lambda: open_model(str(tiny_model), original=str(tiny_model)))
    assert "--original" in refused(lambda: open_model(str(folder), original=str(folder)))
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"id2label": {str(i): f"new {i}" for i in range(5)}}))
    message = refused(lambda: open_model(str(folder), original=str(other)))
    assert "--original" in message and "new 0" in message
