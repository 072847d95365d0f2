"""What a sweep needs before its first cell: peaks, token ids, the reference, and exports."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.export.ensure import ensure_export, export_folder, stale_reason
from bench.measure.check import in_random_order
from bench.measure.peak import measure_peaks
from bench.measure.sweep import Sweep
from bench.measure.tokens import prepare_tokens, with_reference
from bench.measure.warnings import note
from bench.model.model import Model
from bench.model.reference import padding_note
from bench.processes import run_in_subprocess
from bench.report.evidence import evidence_key
from bench.tables.datasets import Dataset
from bench.variants import Device, digest_export
from runtimes import VARIANTS
from runtimes.onnx import check_gpu
from utils import UserError, clean, say

LEAST_SECONDS = 20.0  # for measuring, however long the preparation takes


def plan_sweep(model: Model, dataset: Dataset, device: Device, call: Callable, **fields) -> Sweep:
    """Return a sweep over a dataset that can be estimated, but not run: without a reference and exports.

    `call` runs a function in a helper process; `fields`: the others of Sweep.
    """
    tokens = prepare_tokens(model, dataset.texts, call)
    more_texts = in_random_order(dataset.all_texts) if model.can_be_compared else ()
    return Sweep(model, tokens, {}, device, more_texts=more_texts, **fields)


def prepare_sweep(sweep: Sweep, variants: list[str], dataset_name: str, device_name: str) -> Sweep:
    """Add the reference, the exports, and the keys of the evidence.

    Creating exports moves the deadline, and so does a machine so busy that LEAST_SECONDS would not be left.
    """
    say("reference  running FP32 PyTorch on some of the texts")
    tokens = with_reference(sweep.tokens, sweep.model, sweep.device.gpu)
    start = time.monotonic()
    exports = find_exports(sweep.model, variants, sweep.device)
    now = time.monotonic()
    deadline = max(sweep.deadline + now - start, now + LEAST_SECONDS)
    place = {"dataset": dataset_name, "device": device_name}
    digests = {name: digest_export(folder) if isinstance(folder, Path) else "" for name, folder in exports.items()}
    keys = {name: evidence_key(sweep.model, name, digest, **place) for name, digest in digests.items()}
    return replace(sweep, tokens=tokens, exports=exports, keys=keys, deadline=deadline)


def missing_exports(model: Model, variants: list[str]) -> list[str]:
    """Return the folders of exports that the variants need and that find_exports would create or download."""
    precisions = dict.fromkeys(VARIANTS[name].export.precision for name in variants if VARIANTS[name].export)
    folders = [export_folder(model.id, precision) for precision in precisions]
    return [str(folder) for folder in folders if stale_reason(folder, model.weights_id)]


def find_peaks(variants: list[str], device: Device, call: Callable) -> dict[str, float]:
    """Measure the peaks that the variants' rows need. `call` runs a function in a helper process."""
    precisions = {"fp32", *(VARIANTS[name].computes_in(device.gpu) for name in variants)}
    peaks = call(measure_peaks, sorted(precisions), device)
    say(f"peak       {', '.join(f'{name} {peak / 1e12:.3g}' for name, peak in peaks.items())} TFLOP/s")
    return peaks


def find_exports(model: Model, variants: list[str], device: Device) -> dict[str, Path | UserError | None]:
    """Return what each variant loads, see Sweep.exports, and print it. Missing exports are created."""
    exports, gpu_error = {}, None
    if device.gpu is not None and any(VARIANTS[name].export for name in variants):
        try:
            run_in_subprocess(check_gpu, device.gpu)
        except UserError as error:
            gpu_error = error
    for name in variants:
        variant = VARIANTS[name]
        try:
            exports[name], origin = None, model.id
            if variant.export and gpu_error:
                raise gpu_error
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
    if model.can_be_compared:
        words = model.task.decision_words
        say(f"check      {len(tokens.sample)} of the texts are compared; changed decisions: {words}")
        if weakness := model.task.weak_test(tokens.reference, sweep.tolerance):
            note(weakness)
    else:
        note(f"{model.id} holds only ONNX, so nothing is compared; --original MODEL compares")
