"""How much work a device can do, and how much a model has."""

import time

import numpy as np

from bench.inputs.model import TORCH_DTYPES, Model
from bench.machine import cpu_cores
from bench.variants import Device

# rows, inner, columns. On a CPU these were the fastest, and short enough to fall between what others do; a GPU wants
# more work at once
PEAK_PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048))
GPU_PEAK_PRODUCTS = ((8192, 8192, 8192), (8192, 1024, 4096), (4096, 4096, 4096))
PEAK_SECONDS = 0.5  # for each of them
COUNTED_LENGTHS = [0, 16, 64, 256, 10**9]  # tokens, cut to those of the texts: shortest, some between, longest


def measure_peaks(precisions: list[str], device: Device) -> dict[str, float]:
    """Measures for each precision the FLOP/s that the best of a few large matrix products reaches on all of the device.

    That is what a user can get of it, not what its data sheet says. INT8 has none: torch's product is far from it.
    """
    import torch

    torch.set_num_threads(cpu_cores())
    torch.backends.cuda.matmul.allow_tf32 = False
    place = torch.device("cpu" if device.gpu is None else f"cuda:{device.gpu}")
    wait = (lambda: None) if device.gpu is None else (lambda: torch.cuda.synchronize(place))
    repeats = 1 if device.gpu is None else 10  # products between two waits
    peaks = {}
    for precision in set(precisions) & {*TORCH_DTYPES}:
        for rows, inner, columns in PEAK_PRODUCTS if device.gpu is None else GPU_PEAK_PRODUCTS:
            dtype = getattr(torch, TORCH_DTYPES[precision])
            left, right = (torch.rand(n, inner, device=place).to(dtype) for n in (rows, columns))
            torch.mm(left, right.T)
            begin = time.monotonic()
            while time.monotonic() - begin < PEAK_SECONDS:
                wait()
                start = time.monotonic()
                for _ in range(repeats):
                    torch.mm(left, right.T)
                wait()
                seconds = (time.monotonic() - start) / repeats
                peaks[precision] = max(peaks.get(precision, 0), 2 * rows * inner * columns / seconds)
    return peaks


def count_flops(model: Model, lengths: np.ndarray, example: list[int]) -> float:
    """Counts the FLOPs of the model's forward pass over texts of so many tokens, padding not counted.

    `example`: the token ids of the longest text, of which beginnings and the last token are run.

    torch's counter counts some lengths with eager attention (of others it misses the products on a CPU); between them
    the FLOPs a token are interpolated, which are linear in the length but for the head and for relative positions.
    A multiplication and an addition are 2 FLOPs. What is done element by element is left out.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = model.load_torch(attn_implementation="eager")
    counted = np.unique(np.clip(COUNTED_LENGTHS, lengths.min(), lengths.max()))
    per_token = []
    for length in counted:
        ids = torch.tensor([[*example[: length - 1], example[-1]]])
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(input_ids=ids, attention_mask=torch.ones_like(ids))
        per_token.append(counter.get_total_flops() / length)
    return float((np.interp(lengths, counted, per_token) * lengths).sum())
