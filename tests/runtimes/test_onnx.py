"""ONNX Runtime: warm-up, a session without CUDA, and the code path of GPUs, here on the CPU."""

import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused

from bench.model.classification import Classification
from bench.model.model import Model
from bench.processes import run_in_subprocess
from bench.variants import Device
from runtimes import VARIANTS
from runtimes.classifier import Classifier, ClassifierSpec
from runtimes.onnx import check_gpu, io_bound_runner, load, probe_model
from utils import UserError

MODEL = SimpleNamespace(task=Classification)


def ones(texts: int, tokens: int) -> dict:
    return dict.fromkeys(("input_ids", "attention_mask"), np.ones((texts, tokens), np.int64))


def test_a_cpu_warms_up_only_shapes_larger_than_all_before(tiny_exports, monkeypatch):
    runner = load(MODEL, tiny_exports / "tiny-onnx", Device(gpu=None, threads=1))
    ran = []
    monkeypatch.setattr("onnxruntime.InferenceSession.run", lambda _, __, inputs: ran.append(inputs["input_ids"].shape))
    for shape in ((2, 9), (1, 9), (3, 6), (4, 5)):
        runner.warm_up(runner.prepare(ones(*shape)))
    assert ran == [(2, 9), (4, 5)]


def test_a_session_without_cuda_is_an_error(tiny_exports, monkeypatch):
    """Without a GPU, onnxruntime returns a session on the CPU instead of raising."""
    monkeypatch.setattr("onnxruntime.InferenceSession.get_providers", lambda _: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match="CPUExecutionProvider"):
        load(MODEL, tiny_exports / "tiny-onnx", Device(gpu=0, threads=1))


def test_bound_inputs_and_outputs_are_correct(tiny_exports):
    """Each batch has its own outputs, even if two batches have the same shape."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(tiny_exports / "tiny-onnx" / "model.onnx")
    runner = io_bound_runner(session, "logits", torch.device("cpu"))
    rng = np.random.default_rng(0)
    batches = [ones(*shape) | {"input_ids": rng.integers(4, 90, shape)} for shape in [(2, 9), (3, 5), (2, 9)]]
    outputs = [runner.forward(inputs) for inputs in map(runner.prepare, batches)]
    for inputs, logits in zip(batches, outputs, strict=True):
        assert np.allclose(runner.to_host(logits), session.run(None, inputs)[0], atol=1e-6)


@pytest.mark.parametrize(("capability", "plans"), [((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_only_newer_gpus_plan_for_each_shape(capability, plans, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda gpu: capability)
    assert VARIANTS["onnx-fp16"].new_shapes_are_costly(0) == plans
    assert not VARIANTS["onnx-fp16"].new_shapes_are_costly(None) and not VARIANTS["onnx"].new_shapes_are_costly(0)


def test_a_gpu_that_onnxruntime_cannot_use_is_refused():
    assert "onnxruntime" in refused(check_gpu, 0)


def test_sums_in_fp16_run_only_if_their_variant_is_named(tiny_model, tiny_exports, monkeypatch, in_this_process):
    monkeypatch.setenv("ORT_CUDA_GEMM_OPTIONS", "0")
    fast = VARIANTS["onnx-fp16-fast"]
    exported = tiny_exports / "tiny-onnx"
    Classifier(ClassifierSpec(Model.from_folder(tiny_model, "tiny"), "onnx-fp16-fast", exported, Device(None, 1)))
    assert os.environ["ORT_CUDA_GEMM_OPTIONS"] == "1"
    assert not fast.default_on and "cpu" in fast.unsupported and fast.export.precision == "fp16"


def test_names_in_a_file_and_in_a_config_print_no_escape_codes(tmp_path, capfd):
    import onnx

    graph = onnx.load_from_string(probe_model())
    graph.graph.node[0].CopyFrom(onnx.helper.make_node("Gather", ["input_ids", "at"], ["logits"], name="\x1b[31m"))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([99]), "at"))
    graph.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(graph, tmp_path / "model.onnx")
    runner = load(MODEL, tmp_path, Device(gpu=None, threads=1))
    with pytest.raises(Exception, match="indices"):
        runner.forward(runner.prepare(ones(1, 1)))
    run_in_subprocess(logging.getLogger("transformers").error, "\x1b[31m")
    assert "\x1b" not in "".join(capfd.readouterr())


def test_a_session_runs_the_probe_of_a_gpu():
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(probe_model())
    runner = io_bound_runner(session, "logits", torch.device("cpu"))
    assert runner.to_host(runner.forward(runner.prepare({"input_ids": np.array([[5, 7]])}))).tolist() == [[5, 7]]
