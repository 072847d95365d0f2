"""ONNX Runtime on a GPU or a CPU. It loads the ONNX export that each variant asks for."""

import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from runtimes.runner import Place, Runner, Variant
from utils import UserError, first_line

# compute capabilities for which the wheel onnxruntime-gpu 1.31.1 has kernels; read, not measured
KERNELS = {(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)}


def load(file: Path, place: Place) -> Runner:
    """Starts an onnxruntime session with `place.threads` threads, which spin-wait only if no other worker runs.

    On a GPU, FP32 is IEEE FP32 (no TF32), inputs and outputs stay in device memory, and a run only queues its work.
    Raises UserError if the session did not get the CUDA provider.
    """
    if place.gpu is not None:
        import torch  # before onnxruntime: it brings the CUDA libraries
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = place.threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it would allocate anew in the second run of each shape, inside the timing
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if place.alone else "0")
    provider, settings = "CPUExecutionProvider", {}
    if place.gpu is not None:
        provider, settings = "CUDAExecutionProvider", {"device_id": place.gpu, "use_tf32": 0}
    session = onnxruntime.InferenceSession(str(file), options, providers=[(provider, settings)], enable_fallback=0)
    if session.get_providers()[0] != provider:
        raise UserError(f"onnxruntime gave a session on {session.get_providers()[0]} instead of {provider}")
    if place.gpu is not None:
        torch.cuda.set_device(place.gpu)
        return bind(session, torch.device(f"cuda:{place.gpu}"))
    names = [node.name for node in session.get_inputs()]
    [output] = session.get_outputs()
    largest = 0  # tokens, of the runs so far

    def warm_up(inputs):
        """Runs what is larger than all before: that grows the memory. The kernels prepare nothing for a shape."""
        nonlocal largest
        if inputs["input_ids"].size > largest:
            session.run([output.name], inputs)
            largest = inputs["input_ids"].size

    return Runner(
        prepare=partial(feed, names),
        forward=lambda inputs: session.run([output.name], inputs)[0],
        synchronize=lambda: None,
        fetch=lambda logits: logits,
        warm_up=warm_up,
    )


def bind(session, device) -> Runner:
    """Runs a session on inputs and outputs that stay in the memory of a torch device, without waiting for them."""
    import onnxruntime
    import torch

    names = [node.name for node in session.get_inputs()]
    [output] = session.get_outputs()
    dtypes = {"tensor(float)": (torch.float32, np.float32), "tensor(float16)": (torch.float16, np.float16)}
    dtype, numpy_dtype = dtypes[output.type]
    only_queue = onnxruntime.RunOptions()
    only_queue.add_run_config_entry("disable_synchronize_execution_providers", "1")
    labels = output.shape[1] if isinstance(output.shape[1], int) else None  # not in every graph

    def prepare(inputs):
        nonlocal labels
        labels = labels or session.run([output.name], feed(names, inputs))[0].shape[1]
        tensors = {name: torch.from_numpy(array).to(device) for name, array in feed(names, inputs).items()}
        binding = session.io_binding()
        logits = torch.empty((len(inputs["input_ids"]), labels), dtype=dtype, device=device)
        at = (device.type, device.index or 0)
        for name, tensor in tensors.items():
            binding.bind_input(name, *at, np.int64, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output(output.name, *at, numpy_dtype, tuple(logits.shape), logits.data_ptr())
        return binding, logits, tensors  # the tensors own the memory that is bound

    def forward(inputs):
        binding, logits, _ = inputs
        session.run_with_iobinding(binding, only_queue)
        return logits

    return Runner(
        prepare=prepare,
        forward=forward,
        synchronize=partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None,
        fetch=lambda logits: logits.float().cpu().numpy(),
        warm_up=forward,
    )


def feed(names: list[str], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Picks a graph's inputs; token types that the model did not ask for are zeros. Raises UserError for others."""
    if unknown := set(names) - {*inputs, "token_type_ids"}:
        raise UserError(f"the graph asks for {', '.join(sorted(unknown))}, which no tokenizer gives")
    return {name: inputs[name] if name in inputs else np.zeros_like(inputs["input_ids"]) for name in names}


def check(gpu: int | None) -> None:
    """Raises UserError if onnxruntime gets no session on this GPU; tried with a graph that does nothing."""
    if gpu is None:
        return
    import torch

    with tempfile.TemporaryDirectory() as folder:
        try:
            load(write_probe(Path(folder) / "probe.onnx"), Place(gpu, threads=1))
        except Exception as error:  # onnxruntime's
            capability = torch.cuda.get_device_capability(gpu)
            words = f"onnxruntime can't use this GPU: {first_line(error)}"
            if capability not in KERNELS:
                words += f"; its wheel has no kernels for compute capability {'.'.join(map(str, capability))}, torch's"
                words += " variants may have"
            raise UserError(words) from error


def load_fast(file: Path, place: Place) -> Runner:
    """Loads an FP16 graph whose products are summed in FP16: half the time on cards that halve FP32 sums (GeForce).

    Source: onnxruntime's pull request 7253; read, not measured.
    """
    os.environ["ORT_CUDA_GEMM_OPTIONS"] = "1"
    return load(file, place)


def has_cudnn_attention(gpu: int | None) -> bool:
    """Says whether FP16 attention is cuDNN's, which plans each shape: from compute capability 9.0 on.

    Source: onnxruntime's pull request 29717; read, not measured.
    """
    if gpu is None:
        return False
    import torch

    return torch.cuda.get_device_capability(gpu) >= (9, 0)


def write_probe(file: Path) -> Path:
    """Writes a graph with a classifier's input and output that does nothing."""
    import onnx
    from onnx import TensorProto, helper

    shape = ["texts", "tokens"]
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    cast = helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)
    graph = helper.make_graph([cast], "probe", [tokens], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def variant(export: str, **options) -> Variant:
    return Variant(load, export, ("onnxruntime-gpu", "onnxruntime"), export=export, check=check, **options)


VARIANTS = {
    "onnx": variant("fp32"),
    "onnx-fp16": variant(
        "fp16",
        cpu_precision="fp32",
        all_on=("gpu",),
        notes={"cpu": "onnxruntime has no FP16 kernels for it on a CPU: it computes in FP32 between casts"},
        plans_shapes=has_cudnn_attention,
    ),
    "onnx-int8": variant(
        "int8", all_on=("cpu",), refused={"gpu": "dynamic INT8 quantization has kernels for CPUs only"}
    ),
}
VARIANTS["onnx-fp16-fast"] = replace(
    VARIANTS["onnx-fp16"], load=load_fast, all_on=(), refused={"cpu": "its sums in FP16 are CUDA's"}
)
