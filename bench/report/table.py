"""Rows -> words: their values for people, and the table on standard output, whose other columns are in the TSV."""

import math
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.machine import BUSY
from bench.model.batches import Batching
from bench.naming import figure_text
from runtimes import VARIANTS
from utils import clean

WIDTH = 100
HEADER = f"{'variant':<18} {'w x t':>5} {'batches':<16} {'messages/s':>20} {'padding':>7} {'peak':>5} {'max_diff':>8} "
HEADER += f"{'flips':>7} status"
STAGE_MARKS = {"end-to-end": " e2e", "check": " check"}
COMMON_NAMES = {
    "pipeline": "transformers' pipeline",
    "optimum-pipeline": "optimum's pipeline",
    "crossencoder": "CrossEncoder",
    "sentence-transformers": "SentenceTransformer",
}
BACKENDS = {"onnx": "ONNX", "openvino": "OpenVINO", "bf16": "BF16", "fp16": "FP16"}


def common_name(variant: str) -> str:
    """Return what people call a baseline, such as "CrossEncoder (OpenVINO, BF16)"."""
    if variant in COMMON_NAMES:
        return COMMON_NAMES[variant]
    library = VARIANTS[variant].library
    backend = variant.removeprefix(f"{library}-").split("-")
    return f"{COMMON_NAMES[library]} ({', '.join(map(BACKENDS.get, backend))})"


BASELINES = {name: common_name(name) for name, variant in VARIANTS.items() if variant.takes_texts}
# see machine.WIDTHS and CPU_FEATURES; INT8 products, and the BF16 that AMX implies, are left out
FEATURES = {"amx": "AMX", "avx512": "AVX-512", "avx2": "AVX2", "bf16": "BF16"}


def table_line(row: dict) -> str:
    """Return a row as a line under HEADER. A failed row shows its status, in several lines if needed.

    If there are several passes, messages/s is followed by the slowest and the fastest.
    """
    how = batches(row) + STAGE_MARKS.get(row["stage"], "")
    line = f"{row['variant']:<18} {row['workers']:>2}x{row['threads']:<2} {how:<16} "
    if not row["messages/s"]:
        indent = " " * len(line)
        return textwrap.fill(clean(row["status"]), WIDTH, initial_indent=line, subsequent_indent=indent)
    spread = f" ({speed(row['min'])}-{speed(row['max'])})" if int(row["passes"]) > 1 else ""
    peak = f"{float(row['mfu']):.0%}" if row["mfu"] else "-"
    line += f"{speed(row['messages/s']) + spread:>20} {float(row['padding']):>7.2f} {peak:>5} "
    compared = [shown(float(row[name] or "nan"), form) for name, form in (("max_diff", "{:.1e}"), ("flips", "{:.2%}"))]
    line += "{:>8} {:>7} ".format(*compared)
    line += "busy" if float(row["busy"] or 0) > BUSY else row["status"]
    return line if row["throttled"] in ("", "no") else f"{line} ({row['throttled']})"


def batches(row) -> str:
    return str(Batching(row["batching"], row["batch_size"], row["batch_tokens"]))


def speed(value) -> str:
    return shown(float(value), "{:,.0f}" if float(value) >= 100 else "{:.3g}")


def time_words(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def shown(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def is_cpu(device: str) -> bool:
    """True for the name of a CPU in a row, see machine.cpu_name."""
    return device.endswith("-cores")


def unique_names(names: Iterable[str], short: Callable, long: Callable) -> dict[str, str]:
    """Return a name to show for each name of the rows: the short one, or if several share that, the long one."""
    shown = {name: short(name) for name in names}
    return {name: long(name) if [*shown.values()].count(text) > 1 else text for name, text in shown.items()}


def model_names(models: Iterable[str]) -> dict[str, str]:
    return unique_names(models, lambda model: Path(model).absolute().name or model, str)


def device_names(devices: Iterable[str]) -> dict[str, str]:
    return unique_names(devices, short_name, lambda device: short_name(device, with_model=True))


def short_name(device: str, with_model: bool = False) -> str:
    """Shorten `NVIDIA GeForce RTX 4090` to `RTX 4090`, `AMD EPYC 25 1 avx2 2 cores` to `AMD EPYC (AVX2), 2 cores`."""
    name = re.sub(r"^(NVIDIA )?(GeForce )?| HBM\d\w*$", "", figure_text(device).replace("-", " "))
    name = re.sub(r" (\d+ cores)$", r", \1", name)
    unnamed = re.search(r" (\d+) (\d+)((?: (?:amx|avx512|avx2|bf16|vnni))+)(?=, )", name)  # see machine.cpu_name
    if not unnamed:
        return name
    features = unnamed[3].replace("amx bf16", "amx").split()
    features = ", ".join(FEATURES[feature] for feature in features if feature in FEATURES)
    model = f" {unnamed[1]}-{unnamed[2]}" if with_model or not features else ""
    return name.replace(unnamed[0], f"{model} ({features})" if features else model)


def base_name(row) -> str:
    """Return what a row is as a baseline, see verdict.baseline."""
    how = batches(row).removesuffix(" in-order").replace(" sorted", ", sorted")
    stage = ", forward passes only" if row["stage"] == "forward" else ""
    return f"{BASELINES.get(row['variant'], 'FP32 torch')}, batches of {how}{stage}"
