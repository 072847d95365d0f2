"""What a sweep needs before its first cell: peaks, token ids, the reference, and exports."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.export.ensure import ensure_export
from bench.measure.check import more_texts
from bench.measure.peak import measure_peaks
from bench.measure.sweep import Sweep
from bench.measure.tokens import prepare_tokens
from bench.measure.warnings import note
from bench.model.model import Model
from bench.model.reference import padding_note
from bench.processes import run_in_subprocess
from bench.tables.datasets import Dataset
from bench.timing import step
from bench.variants import Device
from runtimes import VARIANTS
from utils import UserError, clean, say


def prepare_sweep(
    model: Model, dataset: Dataset, variants: list[str], device: Device, call: Callable, **fields
) -> Sweep:
    """Prepare a sweep over a dataset. `call` runs a function in a helper process; `fields`: the others of Sweep."""
    with step("reference  tokenizing, and running FP32 PyTorch on some of the texts"):
        tokens = prepare_tokens(model, dataset.texts, device.gpu, call)
    further = more_texts(dataset.all_texts, [tokens.texts[i] for i in tokens.sample])
    exports = find_exports(model, variants, device)
    return Sweep(model, tokens, exports, device, more_texts=further, **fields)


def find_peaks(variants: list[str], device: Device, call: Callable) -> dict[str, float]:
    """Measure the peaks that the variants' rows need. `call` runs a function in a helper process."""
    with step("peak       multiplying large matrices on this device"):
        precisions = {"fp32", *(VARIANTS[name].computes_in(device.gpu) for name in variants)}
        peaks = call(measure_peaks, sorted(precisions), device)
    say(f"           {', '.join(f'{name} {peak / 1e12:.3g}' for name, peak in peaks.items())} TFLOP/s")
    return peaks


def find_exports(model: Model, variants: list[str], device: Device) -> dict[str, Path | UserError | None]:
    """Return what each variant loads, see Sweep.exports, and print it. Missing exports are created."""
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


def describe_sweep(sweep: Sweep, dataset_name: str) -> None:
    """Print what is measured: the model, the texts and their tokens."""
    model, tokens, lengths = sweep.model, sweep.tokens, sweep.tokens.lengths
    p5, p50, p95, p99 = np.percentile(lengths, [5, 50, 95, 99])
    say(f"model      {model.id}: {model.model_type}, {model.task.summary}, at most {model.max_length} tokens")
    say(f"dataset    {clean(dataset_name)}: {len(tokens.texts)} texts; tokens: mean {lengths.mean():.1f},")
    say(f"           p5 {p5:.0f}, p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, most {lengths.max()}")
    if tokens.n_empty:
        note(f"skipped {tokens.n_empty} texts that have no token")
    if padding := padding_note(model, tokens.padding_effect):
        note(padding)
    say(f"tokenizer  {tokens.tokens_speed:,.0f} messages/s")
    say(f"check      {len(tokens.sample)} of the texts are compared with the reference")
