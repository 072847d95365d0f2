"""Which export a variant loads: a local one, or one that is made now."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import refused
from tiny import make_report

from bench.export.ensure import check_target, ensure_export
from bench.export.reports import write_report
from bench.judge import NOT_WITHIN, WITHIN
from bench.model.model import Model
from bench.variants import digest_export


def test_an_export_of_other_weights_is_made_again_and_foreign_files_are_refused(
    tiny_model, tmp_path, monkeypatch, capsys, in_this_process
):
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny_model, tmp_path / "tiny")

    def ensure() -> tuple[Path, str]:
        return ensure_export(Model.from_folder(model, "tiny"), "fp32")

    made, graph = ensure(), Path("tiny-onnx/model.onnx")
    before, written = graph.read_bytes(), graph.stat().st_mtime_ns
    folder, origin = ensure()
    assert folder == made[0] == Path("tiny-onnx") and graph.stat().st_mtime_ns == written
    assert "tiny-onnx" in origin and origin != made[1], "the origin tells a local export from a new one"
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-4] + weights[-8:-4])
    capsys.readouterr()
    assert ensure() == made and "tiny-onnx" in capsys.readouterr().err
    assert graph.read_bytes() != before
    Path("tiny-onnx/export.json").unlink()
    message = refused(ensure)
    assert "export.json" in message and "config.json" in message and "--overwrite" not in message
    Path("tiny-onnx/parity.json").write_text("{}")
    assert "export_onnx.py --overwrite" in refused(ensure)


def test_a_check_at_other_thresholds_leaves_no_mark(tiny_model, tiny_exports, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(tiny_exports / "tiny-onnx", tmp_path / "tiny-onnx")
    (tmp_path / "own.json").write_text('{"LABEL_0": 0.2}')
    model = Model.from_folder(tiny_model, "tiny")
    at = {threshold: model.with_thresholds(threshold) for threshold in (None, "0.4", "own.json")}
    for threshold, verdict in {"0.4": WITHIN, None: NOT_WITHIN, "own.json": WITHIN}.items():
        report = make_report() | {
            "threshold": at[threshold].task.rule_id,
            "verdict": verdict,
            "reason": f"of {threshold}",
        }
        write_report(folder, tiny_model, report)
    for threshold, marked in {"0.4": False, None: True, "own.json": False}.items():
        capsys.readouterr()
        ensure_export(at[threshold], "fp32")
        assert ("of None" in capsys.readouterr().err) == marked
    check_target(folder, tiny_model, overwrite=True)  # all files are the export's own


def test_the_onnx_file_counts_although_the_manifest_does_not_name_it(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, folder = Model.from_folder(tiny_model, "tiny"), Path("tiny-onnx")
    folder.mkdir()
    (folder / "export.json").write_text(json.dumps({"weights_id": model.weights_id, "files": ["export.json"]}))
    (folder / "model.onnx").write_text("one")
    before = digest_export(ensure_export(model, "fp32")[0])
    (folder / "model.onnx").write_text("another")
    assert digest_export(folder) != before
    (folder / "model.onnx").rename("outside.onnx")
    (folder / "model.onnx").symlink_to("../outside.onnx")
    assert "model.onnx" in refused(ensure_export, model, "fp32")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"weights_id": 5, "verdict": 5}', b'{"bits": NaN}'])
def test_a_broken_report_or_manifest_is_named(content, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Model.from_folder(tiny_model, "tiny")
    Path("tiny-onnx").mkdir()
    Path("tiny-onnx/model.onnx").touch()
    Path("tiny-onnx/export.json").write_bytes(content)
    assert "tiny-onnx/export.json" in refused(ensure_export, model, "fp32")
    Path("tiny-onnx/export.json").write_text(json.dumps({"weights_id": model.weights_id}))
    Path("tiny-onnx/parity.json").write_bytes(content)
    assert "tiny-onnx/parity.json" in refused(ensure_export, model, "fp32")
