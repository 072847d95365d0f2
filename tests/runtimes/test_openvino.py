"""OpenVINO computes in BF16 or fails."""

import sys
from types import SimpleNamespace

import pytest

from bench.variants import Device
from runtimes.openvino import load
from utils import UserError

CPU = Device(gpu=None, threads=1)


def test_another_precision_is_an_error(monkeypatch, tmp_path):
    hint = SimpleNamespace(get_type_name=lambda: "f32")
    compiled = SimpleNamespace(get_property={"INFERENCE_PRECISION_HINT": hint}.get)
    monkeypatch.setattr("openvino.compile_model", lambda *_: compiled)
    with pytest.raises(UserError, match="f32"):
        load(None, tmp_path, CPU)


def test_a_missing_openvino_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="pip install openvino"):
        load(None, tmp_path, CPU)
