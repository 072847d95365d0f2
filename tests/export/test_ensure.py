"""Which export a variant loads: what lies here, what is published, or what is made now."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import refused

from bench.export.ensure import ensure_export
from bench.model.model import Model
from bench.model.resolve import DEFAULT_MODEL


def test_an_export_of_other_weights_is_made_anew_and_what_is_not_ours_is_refused(
    tiny_model, tmp_path, monkeypatch, capsys, in_this_process
):
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny_model, tmp_path / "tiny")

    def ensure() -> tuple[Path, str]:
        return ensure_export(Model.from_folder(model, "tiny"), "fp32")

    assert ensure()[1].startswith("exported now")
    before = Path("tiny-onnx/model.onnx").read_bytes()
    assert ensure() == (Path("tiny-onnx"), "local export ./tiny-onnx")
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-4] + weights[-8:-4])
    capsys.readouterr()
    assert ensure()[1].startswith("exported now")
    assert "is of another model, or of weights that changed since: exporting anew" in capsys.readouterr().err
    assert Path("tiny-onnx/model.onnx").read_bytes() != before
    Path("tiny-onnx/export.json").unlink()
    words = refused(ensure)
    assert "has no export.json" in words and "which no export made; move it away" in words
    Path("tiny-onnx/parity.json").write_text("{}")
    assert "export_onnx.py --overwrite makes and checks it anew" in refused(ensure)


def test_the_default_models_published_export_is_taken_before_exporting(
    hub, tiny_model, tmp_path, capsys, monkeypatch, in_this_process
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "published" / "onnx").mkdir(parents=True)
    for name in ("onnx/model.onnx", "onnx/model_quantized.onnx", "config.json"):
        (tmp_path / "published" / name).write_bytes(name.encode())
    hub.models["SamLowe/roberta-base-go_emotions-onnx"] = tmp_path / "published"
    model = Model.from_folder(tiny_model, DEFAULT_MODEL)
    folder, origin = ensure_export(model, "fp32")
    assert (folder / "model.onnx").read_bytes() == b"onnx/model.onnx"
    assert origin == "published export SamLowe/roberta-base-go_emotions-onnx, onnx/model.onnx"
    assert hub.sent == ["model.onnx"]
    folder, origin = ensure_export(model, "fp16")
    assert origin == "exported now into ./roberta-base-go_emotions-onnx-fp16"
    assert "no published export: no model joaopn/" in capsys.readouterr().err
    assert (folder / "model.onnx").stat().st_size > 10_000


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_broken_report_beside_an_export_is_one_line(content, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Model.from_folder(tiny_model, "tiny")
    Path("tiny-onnx").mkdir()
    Path("tiny-onnx/model.onnx").touch()
    Path("tiny-onnx/export.json").write_bytes(content)
    assert "tiny-onnx/export.json can't be read" in refused(ensure_export, model, "fp32")
    Path("tiny-onnx/export.json").write_text(json.dumps({"weights_id": model.weights_id}))
    Path("tiny-onnx/parity.json").write_bytes(content)
    assert "tiny-onnx/parity.json can't be read" in refused(ensure_export, model, "fp32")
