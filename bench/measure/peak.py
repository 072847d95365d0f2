"""The peak FLOP/s of a device, and the FLOPs that a model needs."""

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from bench.exporters.graph import start_session
from bench.machine import cpu_cores
from bench.model.model import TORCH_DTYPES, Model
from bench.model.reference import cached_array
from bench.variants import Device

# (rows, inner, columns): the fastest on the CPUs we measured, and short enough to run while other processes pause;
# a GPU needs more work at once
PEAK_PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048))
GPU_PEAK_PRODUCTS = ((8192, 8192, 8192), (8192, 1024, 4096), (4096, 4096, 4096))
PEAK_SECONDS = 0.25  # for each product
# precision -> onnxruntime's operator, and the types of its input, weights and product
ONNX_TYPES = {
    "fp32": ("MatMul", np.float32, np.float32, np.float32),
    "int8": ("MatMulInteger", np.uint8, np.int8, np.int32),
}
COUNTED_LENGTHS = [0, 16, 64, 256, 10**9]  # tokens; clipped to the shortest and longest text


def measure_peaks(precisions: list[str], device: Device) -> dict[str, float]:
    """Return the FLOP/s of the fastest of a few large matrix products, for each precision, on the whole device.

    On a CPU both torch and onnxruntime are tried; on a GPU only torch, since both use cuBLAS.
    """
    import torch

    torch.set_num_threads(cpu_cores())
    torch.backends.cuda.matmul.allow_tf32 = False
    torch_device = torch.device(device.torch_name)
    synchronize = (lambda: None) if device.gpu is None else (lambda: torch.cuda.synchronize(torch_device))
    repeats = 1 if device.gpu is None else 10  # products between two synchronizations
    peaks = {}
    for precision in precisions:
        for sizes in PEAK_PRODUCTS if device.gpu is None else GPU_PEAK_PRODUCTS:
            products = [torch_product(precision, sizes, torch_device)] if precision in TORCH_DTYPES else []
            products += [onnx_product(precision, sizes)] if precision in ONNX_TYPES and device.gpu is None else []
            for multiply in products:
                multiply()
                begin = time.monotonic()
                while time.monotonic() - begin < PEAK_SECONDS:
                    synchronize()
                    start = time.monotonic()
                    for _ in range(repeats):
                        multiply()
                    synchronize()
                    seconds = (time.monotonic() - start) / repeats
                    peaks[precision] = max(peaks.get(precision, 0), 2 * math.prod(sizes) / seconds)
    return peaks


def torch_product(precision: str, sizes: tuple[int, int, int], torch_device) -> Callable:
    import torch

    rows, inner, columns = sizes
    dtype = getattr(torch, TORCH_DTYPES[precision])
    left, right = (torch.rand(n, inner, device=torch_device).to(dtype) for n in (rows, columns))
    return lambda: torch.mm(left, right.T)


def onnx_product(precision: str, sizes: tuple[int, int, int]) -> Callable:
    """Return a function that multiplies with constant weights in onnxruntime, as a model does, on all cores."""
    import onnx

    rows, inner, columns = sizes
    operator, *types = ONNX_TYPES[precision]
    left, _, product = (np.dtype(kind).name.replace("float32", "float") for kind in types)
    weights = onnx.numpy_helper.from_array(np.ones((inner, columns), types[1]), "right")
    signature = f"product ({left}[{rows}, {inner}] left) => ({product}[{rows}, {columns}] product)"
    graph = f"{signature} {{product = {operator}(left, right)}}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}')
    model.graph.initializer.append(weights)
    session = start_session(model.SerializeToString())
    inputs = {"left": np.ones((rows, inner), types[0])}
    return lambda: session.run(None, inputs)


def count_flops(model: Model, lengths: np.ndarray, example: list[int], call: Callable) -> float:
    """Return the FLOPs of a model for texts with these token counts; nan if torch cannot count them.

    Padding is not counted. `example`: token ids of the longest text; `call` runs a function in a helper process. FLOPs
    per token are counted at some lengths and interpolated between them: they are linear in the length except for the
    head, the last layer and relative positions.
    """
    counted = np.unique(np.clip(COUNTED_LENGTHS, lengths.min(), lengths.max())).tolist()
    inputs = "flops", counted, example, model.weights_id
    per_token = cached_array(lambda: call(flops_per_token, model, counted, example), (len(counted),), *inputs)
    return float((np.interp(lengths, counted, per_token) * lengths).sum())


def flops_per_token(model: Model, lengths: list[int], example: list[int]) -> np.ndarray:
    """Count the FLOPs per token of texts of these lengths [lengths]; nan if torch cannot count them.

    A multiplication and an addition are 2 FLOPs; elementwise operations are left out. Of the last layer only what the
    head reads counts, see bench/model/first_token.py. The texts are beginnings of the `example` with its last token.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from bench.model.first_token import first_token_only

    per_token = []
    try:
        load = partial(model.task.auto_class().from_config, model.config) if model.onnx_precision else model.load_torch
        network = load(attn_implementation="eager").eval()  # the counter misses products of other kinds on a CPU
        if model.padding_side == "right":
            first_token_only(network, model.task.output)
        for length in lengths:
            ids = torch.tensor([[*example[: length - 1], example[-1]]])
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                network(input_ids=ids, attention_mask=torch.ones_like(ids))
            per_token.append(counter.get_total_flops() / length)
    except Exception:  # the counter fails for Perceiver, and CANINE takes no short texts
        return np.full(len(lengths), np.nan)
    return np.array(per_token)
