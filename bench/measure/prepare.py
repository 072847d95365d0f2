"""What comes before the first cell: the exports, the peaks, token ids and the reference."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.export.ensure import ensure_export
from bench.measure.peak import measure_peaks
from bench.measure.token_cache import TokenizedTexts
from bench.measure.warnings import note
from bench.model.model import Model
from bench.model.reference import padding_note
from bench.processes import run_in_subprocess
from bench.timing import step
from bench.variants import Device
from runtimes import VARIANTS
from utils import UserError, clean, say


def find_exports(model: Model, variants: list[str], device: Device) -> dict[str, Path | UserError | None]:
    """Returns what each variant loads, see Sweep.exports, and says so; makes the exports that are missing."""
    exports = {}
    for name in variants:
        variant = VARIANTS[name]
        try:
            exports[name], origin = None, model.id
            if device.gpu is None:
                variant.check_device(None)
            else:
                run_in_subprocess(variant.check_device, device.gpu)
            if variant.export:
                exports[name], origin = ensure_export(model, variant.export.precision)
        except UserError as error:  # its cells fail, the others run
            exports[name], origin = error, error
        say(f"variant    {name}: {origin}")
    return exports


def find_peaks(variants: list[str], device: Device, call: Callable) -> dict[str, float]:
    """Measures the peaks that the variants' rows need. `call` runs a function in a helper process."""
    with step("peak       how fast this device multiplies large matrices"):
        precisions = {"fp32", *(VARIANTS[name].computes_in(device.gpu) for name in variants)}
        peaks = call(measure_peaks, sorted(precisions), device)
    say(f"           {', '.join(f'{name} {peak / 1e12:.3g}' for name, peak in peaks.items())} TFLOP/s")
    return peaks


def say_what_is_measured(model: Model, dataset_name: str, tokens: TokenizedTexts) -> None:
    lengths = tokens.lengths
    p5, p50, p95, p99 = np.percentile(lengths, [5, 50, 95, 99])
    about = f"{model.model_type}, {model.task.summary}, at most {model.max_length} tokens"
    say(f"model      {model.id}: {about}")
    say(f"dataset    {clean(dataset_name)}: {len(lengths)} texts; tokens: mean {lengths.mean():.1f},")
    say(f"           p5 {p5:.0f}, p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, most {lengths.max()}")
    if tokens.n_empty:
        note(f"{tokens.n_empty} texts give no token and are left out")
    if padding := padding_note(model, tokens.padding_effect):
        note(padding)
    say(f"tokenizer  {tokens.tokens_speed:,.0f} messages/s, measured when these token ids were made")
    say(f"check      {len(tokens.sample)} of the texts are compared with the reference")
