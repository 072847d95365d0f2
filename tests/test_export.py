"""Exports of tiny classifiers: their graphs and weights, and which export a variant loads."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import refused
from tiny import make_tiny, make_tiny_bert, tiny_config, with_a_wrong_head, word_level_tokenizer

from bench import export as room
from bench import graph
from bench.batches import pad
from bench.export import export, find_export
from bench.inputs import identify
from bench.models import DEFAULT_MODEL
from runtimes.onnx import load
from runtimes.runner import Place

CPU = Place(gpu=None, threads=1)
FILLS = {"input_ids": 1, "attention_mask": 0}


@pytest.mark.needs("optimum")  # and transformers 4, with relative positions
def test_attention_that_does_not_fuse_is_said(tmp_path, texts):
    model = make_tiny_bert(tmp_path / "relative", texts, position_embedding_type="relative_key")
    (tmp_path / "out").mkdir()
    findings = export(model, tmp_path / "out", "fp16")["findings"]
    assert any(finding.startswith("0 of 2 Attention/MultiHeadAttention nodes") for finding in findings)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_external_weights_are_found_under_the_name_that_loaders_expect(
    precision, tiny_model, tiny_exports, tmp_path, monkeypatch
):
    inside = tiny_exports / f"tiny{room.EXPORTS[precision].suffix}"
    assert not (inside / "model.onnx_data").exists()
    monkeypatch.setattr(graph, "INSIDE_BYTES", 1000)
    for name in ("outside", "fresh"):
        (tmp_path / name).mkdir()
    export(tiny_model, tmp_path / "outside", precision)
    for name in ("model.onnx", "model.onnx_data"):
        shutil.move(tmp_path / "outside" / name, tmp_path / "fresh" / name)
    assert not list((tmp_path / "outside").glob("*.data"))
    assert (tmp_path / "fresh" / "model.onnx").stat().st_size < (inside / "model.onnx").stat().st_size / 2
    logits = []
    for folder in (inside, tmp_path / "fresh"):
        runner = load(folder / "model.onnx", CPU)
        logits.append(runner.forward(runner.prepare(pad({"input_ids": [[0, 5, 6, 2], [0, 7, 2]]}, FILLS))))
    assert (logits[0] == logits[1]).all()


def test_a_type_that_no_exporter_knows_is_refused(tmp_path):
    folder = tmp_path / "xlnet"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    make_tiny(folder, word_level_tokenizer("xlnet"), tiny_config("xlnet"))
    words = refused(export, folder, tmp_path / "out", "fp32")
    assert words.startswith("a classifier of type xlnet can't be exported to ONNX fp32 (optimum: ")
    assert "; torch, not fused: " in words and not list((tmp_path / "out").iterdir())


@pytest.mark.needs("optimum")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_exporter_whose_file_is_wrong_gives_way_to_the_next(precision, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(room.EXPORTERS, "optimum", with_a_wrong_head(room.EXPORTERS["optimum"]))
    made = export(tiny_model, tmp_path, precision)
    assert "optimum: its file is wrong, by up to 0." in made["findings"][0]
    assert ("2 Attention" in made["nodes"]) == (precision == "fp16")
    about = json.loads((tmp_path / room.ABOUT).read_text())
    assert about["exporter"] == made["exporter"] == room.NAMES[precision][1]
    assert about["files"] == sorted(path.name for path in tmp_path.iterdir() if path.name != room.ABOUT)
    monkeypatch.setitem(room.NAMES, precision, ("optimum",))
    (tmp_path / "other").mkdir()
    assert "its file is wrong, by up to 0." in refused(export, tiny_model, tmp_path / "other", precision)


def test_an_export_of_other_weights_is_made_anew_and_what_is_not_ours_is_refused(
    tiny_model, tmp_path, monkeypatch, capsys, in_this_process
):
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny_model, tmp_path / "tiny")
    assert find_export("fp32", "tiny", model)[1].startswith("exported now")
    before = Path("tiny-onnx/model.onnx").read_bytes()
    assert find_export("fp32", "tiny", model)[1] == "local export ./tiny-onnx/model.onnx"
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-4] + weights[-8:-4])
    capsys.readouterr()
    assert find_export("fp32", "tiny", model)[1].startswith("exported now")
    assert "is of another model, or of weights that changed since: exporting anew" in capsys.readouterr().err
    assert Path("tiny-onnx/model.onnx").read_bytes() != before
    Path("tiny-onnx/export.json").unlink()
    words = refused(find_export, "fp32", "tiny", model)
    assert "has no export.json" in words and "which no export made; move it away" in words
    Path("tiny-onnx/parity.json").write_text("{}")
    assert "export_onnx.py --overwrite makes and checks it anew" in refused(find_export, "fp32", "tiny", model)


def test_the_default_models_published_export_is_taken_before_exporting(
    hub, tiny_model, tmp_path, capsys, monkeypatch, in_this_process
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "published" / "onnx").mkdir(parents=True)
    for name in ("onnx/model.onnx", "onnx/model_quantized.onnx", "config.json"):
        (tmp_path / "published" / name).write_bytes(name.encode())
    hub.models["SamLowe/roberta-base-go_emotions-onnx"] = tmp_path / "published"
    file, origin = find_export("fp32", DEFAULT_MODEL, tiny_model)
    assert file.read_bytes() == b"onnx/model.onnx"
    assert origin == "published export SamLowe/roberta-base-go_emotions-onnx, onnx/model.onnx"
    assert hub.sent == ["model.onnx"]
    file, origin = find_export("fp16", DEFAULT_MODEL, tiny_model)
    assert origin == "exported now into ./roberta-base-go_emotions-onnx-fp16"
    assert "no published export: no model joaopn/" in capsys.readouterr().err
    assert file.stat().st_size > 10_000


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_broken_report_beside_an_export_is_one_line(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny-onnx").mkdir()
    Path("tiny-onnx/model.onnx").touch()
    Path("tiny-onnx/export.json").write_bytes(content)
    assert "tiny-onnx/export.json can't be read" in refused(find_export, "fp32", "tiny", tmp_path)
    Path("tiny-onnx/export.json").write_text(json.dumps(identify(tmp_path, [])))
    Path("tiny-onnx/parity.json").write_bytes(content)
    assert "tiny-onnx/parity.json can't be read" in refused(find_export, "fp32", "tiny", tmp_path)
