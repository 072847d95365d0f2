"""How much work a device can do, and how much a model has."""

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.machine import cpu_cores
from bench.model.model import TORCH_DTYPES, Model
from bench.variants import Device
from runtimes.onnx import start_session

# rows, inner, columns. On a CPU these were the fastest, and short enough to fall between what others do; a GPU wants
# more work at once
PEAK_PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048))
GPU_PEAK_PRODUCTS = ((8192, 8192, 8192), (8192, 1024, 4096), (4096, 4096, 4096))
PEAK_SECONDS = 0.25  # for each of them
# precision -> onnxruntime's operator, and the types of what it gets, of the weights and of the product
ONNX_TYPES = {
    "fp32": ("MatMul", np.float32, np.float32, np.float32),
    "int8": ("MatMulInteger", np.uint8, np.int8, np.int32),
}
COUNTED_LENGTHS = [0, 16, 64, 256, 10**9]  # tokens, cut to those of the texts: shortest, some between, longest


def measure_peaks(precisions: list[str], device: Device) -> dict[str, float]:
    """Measures for each precision the FLOP/s that the best of a few large matrix products reaches on all of the device.

    On a CPU each is tried in torch and in onnxruntime, on a GPU in torch, whose products both take from cuBLAS. That is
    what a user can get of it, not what its data sheet says.
    """
    import torch

    torch.set_num_threads(cpu_cores())
    torch.backends.cuda.matmul.allow_tf32 = False
    place = torch.device("cpu" if device.gpu is None else f"cuda:{device.gpu}")
    wait = (lambda: None) if device.gpu is None else (lambda: torch.cuda.synchronize(place))
    repeats = 1 if device.gpu is None else 10  # products between two waits
    peaks = {}
    for precision in precisions:
        for sizes in PEAK_PRODUCTS if device.gpu is None else GPU_PEAK_PRODUCTS:
            products = [torch_product(precision, sizes, place)] if precision in TORCH_DTYPES else []
            products += [onnx_product(precision, sizes)] if precision in ONNX_TYPES and device.gpu is None else []
            for multiply in products:
                multiply()
                begin = time.monotonic()
                while time.monotonic() - begin < PEAK_SECONDS:
                    wait()
                    start = time.monotonic()
                    for _ in range(repeats):
                        multiply()
                    wait()
                    seconds = (time.monotonic() - start) / repeats
                    peaks[precision] = max(peaks.get(precision, 0), 2 * math.prod(sizes) / seconds)
    return peaks


def torch_product(precision: str, sizes: tuple[int, int, int], place) -> Callable:
    import torch

    rows, inner, columns = sizes
    dtype = getattr(torch, TORCH_DTYPES[precision])
    left, right = (torch.rand(n, inner, device=place).to(dtype) for n in (rows, columns))
    return lambda: torch.mm(left, right.T)


def onnx_product(precision: str, sizes: tuple[int, int, int]) -> Callable:
    """Makes a product of onnxruntime on all cores, of numbers that it gets and constant weights, as a model's are."""
    import onnx
    from onnx import helper, numpy_helper

    rows, inner, columns = sizes
    operator, given, weights, result = ONNX_TYPES[precision]
    right = numpy_helper.from_array(np.ones((inner, columns), weights), "right")
    left = helper.make_tensor_value_info("left", helper.np_dtype_to_tensor_dtype(np.dtype(given)), [rows, inner])
    product = helper.make_tensor_value_info(
        "product", helper.np_dtype_to_tensor_dtype(np.dtype(result)), [rows, columns]
    )
    node = helper.make_node(operator, ["left", "right"], ["product"])
    graph = helper.make_graph([node], "product", [left], [product], [right])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(model, file)
        session = start_session(file, Device(None, cpu_cores()))
    inputs = {"left": np.ones((rows, inner), given)}
    return lambda: session.run(None, inputs)


def count_flops(model: Model, lengths: np.ndarray, example: list[int]) -> float:
    """Counts the FLOPs that a model's answers to texts of so many tokens need.

    Padding is not counted, and of the last layer only what the head reads, see runtimes/first_token.py. `example`: the
    token ids of the longest text, of which beginnings and the last token are run.

    torch's counter counts some lengths with eager attention (of others it misses the products on a CPU); between them
    the FLOPs a token are interpolated, which are linear in the length but for the head, the last layer and relative
    positions. A multiplication and an addition are 2 FLOPs. What is done element by element is left out.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from runtimes.first_token import first_token_only

    network = model.load_torch(attn_implementation="eager")
    if model.padding_side == "right":
        first_token_only(network, model.task.output)
    counted = np.unique(np.clip(COUNTED_LENGTHS, lengths.min(), lengths.max()))
    per_token = []
    for length in counted:
        ids = torch.tensor([[*example[: length - 1], example[-1]]])
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(input_ids=ids, attention_mask=torch.ones_like(ids))
        per_token.append(counter.get_total_flops() / length)
    return float((np.interp(lengths, counted, per_token) * lengths).sum())
