"""Warnings before a run starts: what makes its results worse than they could be."""

import math

from bench.machine import BUSY, DeviceInfo, cpu_busy, cpu_cores, gpu_busy
from bench.measure.cells import Split
from bench.measure.tokens import TokenizedTexts
from bench.provenance import versions
from bench.variants import Device
from runtimes import VARIANTS
from utils import UserError, clean, say

BUSY_MIB = 1024  # GPU memory in use above which a note is printed (a desktop takes less)
MPS = "nvidia-cuda-mps-control -d  (stop it: echo quit | nvidia-cuda-mps-control)"


def note(text: str) -> None:
    say(f"note       {clean(text)}")


def measure_busy(info: DeviceInfo, device: Device) -> float | None:
    """Return the share of the device that other processes use, with a note if it matters; None if unknown."""
    if device.gpu is None:
        busy = cpu_busy()
        if (busy or 0) > BUSY:
            note(f"other processes use {busy:.0%} of the CPU: results will be lower and noisier")
        return busy
    try:
        busy, processes, used = gpu_busy(info.uuid)
    except UserError as error:
        note(str(error))
        return None
    if processes or busy > BUSY or used > BUSY_MIB:
        note(f"the GPU is in use: {processes} other processes, {used:.0f} MiB, busy {busy:.0%} of the time")
    return busy


def note_slow_tokenizer(tokens: TokenizedTexts, rows: list[dict]) -> None:
    """Print a note if the tokenizer runs in Python, or is slower than the fastest of the result rows."""
    fastest = max((float(row["messages/s"]) for row in rows if row["status"] == "ok"), default=0.0)
    if not tokens.is_fast or tokens.tokens_speed < fastest:
        speeds = f"{tokens.tokens_speed:,.0f} messages/s, and the fastest variant does {fastest:,.0f}"
        note(f"the tokenizer {tokens.tokenizer} is slow: {speeds}")


def note_slowdowns(variants: list[str], device: Device, splits: list[Split], busy: float | None) -> None:
    """Print a note for everything that makes results worse."""
    if len(versions("onnxruntime", "onnxruntime-gpu")) > 1:
        note("onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall one")
    for name in variants:
        variant = VARIANTS[name]
        if (precision := variant.computes_in(device.gpu)) != variant.precision:
            note(f"{name}: on this device it computes in {precision.upper()}, which is slower")
        if not variant.is_native_on(device.kind):
            note(f"{name}: this CPU has no {variant.required_cpu_feature.upper()} units, so it is slow or fails")
    if device.gpu is not None:
        if max(splits)[0] > 1:
            note(f"several workers take turns on one GPU unless MPS is running: {MPS}")
        return
    idle = cpu_cores() * (1 - (busy or 0))
    if max(workers * threads for workers, threads in splits) > math.ceil(idle):
        note(f"more workers x threads than the {idle:.1f} idle cores: they compete for the cores")
