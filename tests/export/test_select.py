"""Exports of tiny classifiers: their graphs and weights, and which exporter's file is kept."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import onnx
import pytest
from conftest import refused
from tiny import make_tiny, tiny_config, with_a_wrong_head, word_level_tokenizer

from bench.export.ensure import stale_reason
from bench.export.select import EXPORT_KINDS, MANIFEST, export_model
from bench.exporters import graph
from bench.label.on_ray import read_files
from bench.model.batches import pad
from bench.model.classification import Classification
from bench.model.model import Model
from bench.variants import Device
from runtimes.classifier import ClassifierSpec
from runtimes.onnx import load

CPU = Device(gpu=None, threads=1)
PAD_VALUES = {"input_ids": 1, "attention_mask": 0}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_external_weights_are_found_under_the_name_that_loaders_expect(
    precision, tiny_model, tiny_exports, tmp_path, monkeypatch
):
    inside = tiny_exports / f"tiny{EXPORT_KINDS[precision].suffix}"
    assert not (inside / "model.onnx_data").exists()
    monkeypatch.setattr(graph, "INSIDE_BYTES", 1000)
    for name in ("outside", "fresh"):
        (tmp_path / name).mkdir()
    export_model(Model.from_folder(tiny_model, "tiny"), precision, tmp_path / "outside")
    for name in ("model.onnx", "model.onnx_data"):
        shutil.move(tmp_path / "outside" / name, tmp_path / "fresh" / name)
    assert not list((tmp_path / "outside").glob("*.data"))
    assert (tmp_path / "fresh" / "model.onnx").stat().st_size < (inside / "model.onnx").stat().st_size / 2
    logits = []
    for folder in (inside, tmp_path / "fresh"):
        runner = load(SimpleNamespace(task=Classification), folder, CPU)
        logits.append(runner.forward(runner.prepare(pad({"input_ids": [[0, 5, 6, 2], [0, 7, 2]]}, PAD_VALUES))))
    assert (logits[0] == logits[1]).all()


@pytest.mark.needs("optimum")
def test_no_file_outside_the_target_is_written_whatever_templates_are_called(tiny_model, tmp_path):
    folder, target = shutil.copytree(tiny_model, tmp_path / "1/2/model"), tmp_path / "a/b/c/export"
    target.mkdir(parents=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    names = "default", "plain", *("../" * n + "pwned" for n in range(1, 9))
    settings["chat_template"] = [{"name": name, "template": "x"} for name in names]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    before = {*tmp_path.parent.rglob("*")}
    model = Model.from_folder(folder, "tiny")
    export_model(model, "fp16", target)
    assert {file.parent for file in {*tmp_path.parent.rglob("*")} - before} == {target}
    assert stale_reason(target, model.weights_id) == ""


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_last_layer_runs_for_the_first_token_only(precision, tiny_exports):
    file = tiny_exports / f"tiny{EXPORT_KINDS[precision].suffix}" / "model.onnx"
    products = [node.output[0] for node in onnx.load(file).graph.node if node.op_type == "MatMul"]
    values = graph.load_with(file, products)(pad({"input_ids": [[0, 5, 6, 7, 2], [0, 7, 2]]}, PAD_VALUES))
    of_one_token = [name for name, value in values.items() if value.shape[1:-1] == (1,)]
    assert len(of_one_token) == 4, "the query, the attention's output, and two of the feed-forward part"


def test_a_model_type_that_no_exporter_supports_is_refused(tmp_path):
    folder = tmp_path / "xlnet"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    make_tiny(folder, word_level_tokenizer("xlnet"), tiny_config("xlnet"))
    message = refused(export_model, Model.from_folder(folder, "xlnet"), "fp32", tmp_path / "out")
    assert all(name in message for name in ("xlnet", *EXPORT_KINDS["fp32"].backends))
    assert "fp32" in message.lower() and not list((tmp_path / "out").iterdir())


@pytest.mark.needs("optimum")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_next_exporter_is_tried_after_a_wrong_file(precision, tiny_model, tmp_path, monkeypatch):
    model, kind = Model.from_folder(tiny_model, "tiny"), EXPORT_KINDS[precision]
    wrong = {"optimum": with_a_wrong_head(kind.backends["optimum"])}
    monkeypatch.setitem(EXPORT_KINDS, precision, replace(kind, backends=kind.backends | wrong))
    made = export_model(model, precision, tmp_path)
    assert "optimum" in made["findings"][0] and re.search(r"\b0\.\d", made["findings"][0])
    assert ("Attention" in made["nodes"]) == (precision == "fp16")
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["exporter"] == made["exporter"] == list(kind.backends)[1]
    assert manifest["files"] == sorted(path.name for path in tmp_path.iterdir() if path.name != MANIFEST)
    monkeypatch.setitem(EXPORT_KINDS, precision, replace(kind, backends=wrong))
    (tmp_path / "other").mkdir()
    message = refused(export_model, model, precision, tmp_path / "other")
    assert "optimum" in message and re.search(r"\b0\.\d", message)


def test_a_kind_may_convert_the_onnx_file_into_several_files_and_all_of_them_travel(tiny_model, tmp_path, monkeypatch):
    model, kind = Model.from_folder(tiny_model, "tiny"), EXPORT_KINDS["fp32"]

    def convert(model, file, folder, words):
        for name in ("graph.xml", "weights.bin"):
            (folder / name).write_bytes(file.read_bytes()[:5])
        return f"two files of {words}", {"bits": 4}

    monkeypatch.setitem(EXPORT_KINDS, "fp32", replace(kind, convert=convert))
    assert export_model(model, "fp32", tmp_path)["options"].startswith("two files of ")
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert {"graph.xml", "weights.bin", "config.json"} <= set(manifest["files"]) and manifest["bits"] == 4
    assert not (tmp_path / "model.onnx").exists() and stale_reason(tmp_path, model.weights_id) == ""
    sent = read_files(ClassifierSpec(model, "onnx", tmp_path, CPU))
    assert {"export/graph.xml", "export/weights.bin", "model/config.json"} <= set(sent)
    assert "model/model.safetensors" not in sent
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in stale_reason(tmp_path, model.weights_id)
