"""ONNX Runtime on a GPU or a CPU, and the kinds of export that its variants load."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bench.exporters import int8
from bench.exporters.backends import with_optimum, with_torch
from bench.exporters.graph import select_inputs, start_session
from bench.model.model import Model
from bench.model_files import graph_of
from bench.variants import Device, ExportKind, TokenRunner, Variant
from utils import UserError, first_line

PACKAGES = "onnxruntime-gpu", "onnxruntime"  # one of them is installed

FP32 = ExportKind(
    precision="fp32",
    variant="onnx",
    suffix="-onnx",
    description="FP32",
    backends={"optimum": with_optimum, "torch, not fused": with_torch},
    max_deviation=1e-3,
)
FP16 = ExportKind(
    precision="fp16",
    variant="onnx-fp16",
    suffix="-onnx-fp16",
    description="FP16 with fused nodes",
    backends={
        "optimum": partial(with_optimum, optimized=True),
        "torch": partial(with_torch, fused=True, half=True),
        "torch, not fused": partial(with_torch, half=True),
    },
    max_deviation=0.1,
    fused=True,
)
INT8 = replace(
    FP32,
    precision="int8",
    variant="onnx-int8",
    suffix="-onnx-int8",
    description="INT8 (dynamically quantized, for CPUs)",
    convert=int8.quantize,
    batches_matter=True,  # one scale for a whole activation, that is for all texts of a batch
    caveat=int8.caveat,
)


def load(model: Model, exported: Path, device: Device) -> TokenRunner:
    """Start an onnxruntime session on the ONNX file in `exported`, see start_session and io_bound_runner."""
    session = start_session(str(graph_of(exported)), device)
    if device.gpu is not None:
        import torch

        torch.cuda.set_device(device.gpu)
        return io_bound_runner(session, model.task.output, torch.device(device.torch_name))
    names = [node.name for node in session.get_inputs()]
    output = select_output(session, model.task.output)
    largest = 0  # padded tokens of the runs so far

    def warm_up(inputs):
        """Run a batch larger than all earlier ones, so that memory grows outside the timing."""
        nonlocal largest
        if inputs["input_ids"].size > largest:  # CPU kernels need no set-up per shape
            session.run([output.name], inputs)
            largest = inputs["input_ids"].size

    return TokenRunner(
        prepare=partial(select_inputs, names),
        forward=lambda inputs: session.run([output.name], inputs)[0],
        warm_up=warm_up,
    )


def select_output(session, name: str):
    outputs = session.get_outputs()
    return next((output for output in outputs if output.name == name), outputs[0])


def io_bound_runner(session, output_name: str, device) -> TokenRunner:
    """Return a runner whose inputs and outputs stay on a torch device and which does not wait for results."""
    import onnxruntime
    import torch

    names = [node.name for node in session.get_inputs()]
    output = select_output(session, output_name)
    dtypes = {"tensor(float)": (torch.float32, np.float32), "tensor(float16)": (torch.float16, np.float16)}
    dtype, numpy_dtype = dtypes[output.type]
    only_queue = onnxruntime.RunOptions()
    only_queue.add_run_config_entry("disable_synchronize_execution_providers", "1")
    labels = output.shape[1] if isinstance(output.shape[1], int) else None  # some graphs leave it open

    def prepare(inputs):
        nonlocal labels
        labels = labels or session.run([output.name], select_inputs(names, inputs))[0].shape[1]
        tensors = {name: torch.from_numpy(array).to(device) for name, array in select_inputs(names, inputs).items()}
        binding = session.io_binding()
        logits = torch.empty((len(inputs["input_ids"]), labels), dtype=dtype, device=device)
        at = (device.type, device.index or 0)
        for name, tensor in tensors.items():
            binding.bind_input(name, *at, np.int64, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output(output.name, *at, numpy_dtype, tuple(logits.shape), logits.data_ptr())
        return binding, logits, tensors  # the tensors own the bound memory

    def forward(inputs):
        binding, logits, _ = inputs
        session.run_with_iobinding(binding, only_queue)
        return logits

    return TokenRunner(
        prepare=prepare,
        forward=forward,
        synchronize=partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None,
        to_host=lambda logits: logits.float().cpu().numpy(),
        warm_up=forward,
    )


def check_gpu(gpu: int) -> None:
    """Raise UserError if onnxruntime can't start a session on this GPU; tried with a trivial graph."""
    try:
        start_session(probe_model(), Device(gpu, threads=1))
    except Exception as error:  # onnxruntime raises many types
        raise UserError(f"onnxruntime can't use this GPU: {first_line(error)}. Try the torch variants") from error


def has_cudnn_attention(gpu: int | None) -> bool:
    """True if FP16 attention uses cuDNN (compute capability 9.0 or newer), which builds a plan per shape.

    Source: onnxruntime's pull request 29717 (from the source code; not measured).
    """
    if gpu is None:
        return False
    import torch

    return torch.cuda.get_device_capability(gpu) >= (9, 0)


def probe_model() -> bytes:
    """Return a trivial model with a classifier's input and output."""
    import onnx

    graph = "probe (int64[texts, tokens] input_ids) => (float[texts, tokens] logits) {logits = Cast<to=1>(input_ids)}"
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}').SerializeToString()


def variant(kind: ExportKind, **options) -> Variant:
    # transformers, here for its tokenizer only, would otherwise import torch, which takes seconds
    environment = {"USE_TORCH": "0"}
    return Variant(load, kind.precision, PACKAGES, export=kind, environment=environment, **options)


VARIANTS = {
    "onnx": variant(FP32),
    "onnx-fp16": variant(
        FP16,
        cpu_precision="fp32",  # between casts: onnxruntime has no FP16 kernels for CPUs
        default_on=("gpu",),
        new_shapes_are_costly=has_cudnn_attention,
    ),
    "onnx-int8": variant(
        INT8,
        default_on=("cpu",),
        required_cpu_feature="vnni",  # without it: 1.1 to 1.4 times as fast as FP32, and seldom within tolerance
        unsupported={"gpu": "dynamic INT8 quantization has kernels for CPUs only"},
    ),
}
# also accumulates in FP16, twice as fast on cards with half-rate FP32 accumulation (GeForce); see onnxruntime pull
# request 7253, not measured
VARIANTS["onnx-fp16-fast"] = replace(
    VARIANTS["onnx-fp16"],
    environment={"USE_TORCH": "0", "ORT_CUDA_GEMM_OPTIONS": "1"},
    default_on=(),
    unsupported={"cpu": "FP16 accumulation needs CUDA"},
)
