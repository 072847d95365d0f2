"""PyTorch, eager or compiled, on a GPU or a CPU. It loads the model's own folder."""

import contextlib
import ctypes
import os
import shutil
import sysconfig
from functools import partial
from pathlib import Path

from bench.model.model import Model
from bench.variants import Device, TokenRunner, Variant
from utils import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def load(model: Model, _, device: Device, precision: str = "fp32", compiled: bool = False) -> TokenRunner:
    """Load the model in torch, with SDPA if it has it. FP32 is IEEE FP32, without TF32.

    If the head reads only the first token, the rest of the last layer is computed for that token only, see
    first_token.py. Compiled, it is one graph with dynamic shapes; a graph break or the recompile limit, after which
    torch would silently run eagerly, is an error. Raises UserError, see Model.load_torch.
    """
    import torch

    from bench.model.first_token import first_token_only

    torch.set_flush_denormal(True)  # denormals are very slow on some CPUs; must precede torch's threads
    torch.set_num_threads(device.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch_device = torch.device(device.torch_name)
    if device.gpu is None:
        keep_freed_memory()
    else:
        torch.cuda.set_device(torch_device)
    network = model.load_torch(precision).to(torch_device)
    if model.padding_side == "right":
        first_token_only(network, model.task.output)
    if compiled:
        check_compiler(device.gpu)
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        network.compile(dynamic=True, fullgraph=True)

    @torch.inference_mode()
    def forward(inputs):
        return getattr(network(**inputs, return_dict=True), model.task.output)

    return TokenRunner(
        prepare=lambda inputs: {name: torch.from_numpy(array).to(torch_device) for name, array in inputs.items()},
        forward=forward,
        synchronize=(lambda: None) if device.gpu is None else partial(torch.cuda.synchronize, torch_device),
        to_host=lambda logits: logits.float().cpu().numpy(),
        warm_up=forward if compiled or device.gpu is not None else partial(run_first_and_last_layer, network, forward),
    )


def keep_freed_memory() -> None:
    """Make glibc keep the memory of one batch for the next, instead of returning it and getting zeroed pages again.

    Each batch's activations would cost up to 7,000 page faults, a twentieth of the time in FP32.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(option, 2**30)


def run_first_and_last_layer(network, forward, inputs) -> None:
    """Warm up a shape with two layers: oneDNN caches what it prepares, and the inner layers repeat the first."""
    from bench.model.first_token import stack_of_layers

    layers = stack_of_layers(network)
    if not layers:
        forward(inputs)
        return
    whole = list(layers)
    del layers[1:-1]
    try:
        forward(inputs)
    finally:
        del layers[:]
        layers.extend(whole)


def check_compiler(gpu: int | None) -> None:
    """Raise UserError if torch.compile lacks a C compiler (C++ on a CPU) or Python's headers.

    Triton builds its launcher at run time, and inductor its kernels for a CPU.
    """
    names = [os.environ.get("CXX"), "g++", "clang++"] if gpu is None else [os.environ.get("CC"), "gcc", "cc", "clang"]
    if not any(shutil.which(name) for name in names if name):
        raise UserError(f"torch.compile needs a compiler; install one of {', '.join(filter(None, names))}")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise UserError(f"torch.compile needs Python's headers, but {header} is missing; install python3-dev")


def variant(precision: str, compiled: bool = False, **options) -> Variant:
    load_it = partial(load, precision=precision, compiled=compiled)
    return Variant(load_it, precision, ("torch",), compiles=compiled, **options)


BF16 = {"required_cpu_feature": "bf16", "new_shapes_are_costly": lambda gpu: gpu is None}  # by oneDNN
VARIANTS = {
    "torch": variant("fp32"),
    "torch-compile": variant("fp32", compiled=True),
    "torch-fp16": variant("fp16", default_on=("gpu",)),
    "torch-compile-fp16": variant("fp16", compiled=True, default_on=("gpu",)),
    "torch-bf16": variant("bf16", **BF16),
    "torch-compile-bf16": variant("bf16", compiled=True, **BF16),
}
