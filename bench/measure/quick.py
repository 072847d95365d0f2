"""The quick benchmark: its size and options, and how a labelling job runs it on its own texts."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.judge import WITHIN
from bench.machine import DeviceInfo
from bench.measure.cells import Split, plan_cells
from bench.measure.check import in_random_order
from bench.measure.leaders import measure_all
from bench.measure.peak import count_flops
from bench.measure.prepare import find_peaks, plan_sweep, prepare_sweep
from bench.measure.recorder import Recorder, columns_of_run
from bench.measure.splits import splits_to_try
from bench.measure.warnings import note
from bench.model.model import Model
from bench.model.reference import Reference
from bench.naming import slug
from bench.provenance import missing_packages
from bench.report.evidence import EvidenceFile
from bench.report.table import HEADER
from bench.tables.datasets import Dataset, evenly_spaced
from bench.tables.items import Item, count_characters, items_of
from bench.tables.readers import Table, UnreadableFile
from bench.variants import Device
from runtimes import VARIANTS, check_variant
from utils import UserError, say

ASSUMED_MFU = 0.5  # share of the peak in estimates of time: between what FP32 and BF16 reach on a CPU
# what `run_benchmark.py --quick` sets
QUICK_OPTIONS = {
    "cpu": {"batches": [1, 8], "batch_tokens": [512], "batching": ["sorted", "token-budget"]},
    "gpu": {"batches": [32], "batch_tokens": [16384, 65536], "batching": ["in-order", "sorted", "token-budget"]},
}
QUICK_SECONDS = 60.0  # longest `run_benchmark.py --quick`, without creating exports
PASS_SECONDS = 1.5  # target duration of an FP32 pass in a quick benchmark
TEXTS_PER_WORKER = 8  # at least, so that they share the work evenly
MIN_TEXTS = 32  # smallest quick benchmark, even on slow devices
SAMPLE_TEXTS = 64  # that are counted, or run by the original model, to choose the size
CALIBRATION_SECONDS = 1.5  # of the original model, at most
SMALL_JOB = 10_000  # rows; for smaller jobs a benchmark does not pay off
JOB_SHARE = 0.01  # largest share of a job's FP32 time spent on its benchmark
MIN_SECONDS = 20.0  # a shorter benchmark is not run
MAX_SECONDS = 60.0  # longest benchmark for a job
HEAD_TEXTS = 4000  # texts that represent a job
HEAD_CHARACTERS = 2**24  # in these, at most
HEAD_FILES = 20  # files they are read from, at most
STALL_TIMEOUT = 600.0  # seconds


def default_variants(device: str, compiled: bool = False, baselines: bool = False) -> list[str]:
    """Return the variants that are fast on a `gpu` or `cpu` and whose packages are installed, or the `baselines`.

    Variants that compile first are included only if `compiled`.
    """
    return [
        name
        for name, variant in VARIANTS.items()
        if device in variant.default_on
        and variant.takes_texts == baselines
        and not missing_packages(variant)
        and variant.is_native_on(device)
        and (compiled or not variant.compiles)
    ]


def choose_variants(names: list[str], device: str, quick: bool) -> list[str]:
    """Return the variants asked for. `all` are the default variants, with --quick without those that compile first.

    `baselines` are those that can run here; the others are named. Raises UserError for a variant that can't.
    """
    found = []
    for name in names:
        check_variant(name, "all", "baselines")
        chosen = [name]
        if name == "all":
            chosen = default_variants(device, compiled=not quick)
            if quick:  # in case that time runs out: first what needs no proof, then the likeliest winners
                chosen = sorted(chosen[::-1], key=lambda name: name != "onnx")
        elif name == "baselines":
            chosen = default_variants(device, baselines=True)
            others = [name for name, variant in VARIANTS.items() if variant.library and device in variant.default_on]
            if left_out := [name for name in others if name not in chosen]:
                note(f"left out {', '.join(left_out)}: they need requirements-baselines.txt, or another CPU")
        elif device in VARIANTS[name].unsupported:
            raise UserError(f"--variant {name}: not on a {device}: {VARIANTS[name].unsupported[device]}")
        found += chosen
    return list(dict.fromkeys(found))


def token_ids(model: Model, texts: list[Item], count: int) -> list[list[int]]:
    chosen = [texts[i] for i in evenly_spaced(len(texts), count)]
    return [ids for ids in model.tokenize(chosen)["input_ids"] if ids]


def mean_tokens(model: Model, texts: list[Item]) -> float:
    """Return the mean number of tokens per text, of all its rows; nan if there are none."""
    lengths = [len(ids) for ids in token_ids(model, texts, max(1, 500 // model.task.parts))]
    return float(np.mean(lengths)) * model.task.parts if lengths else np.nan


def calibrate(model: Model, texts: list[Item]) -> tuple[float, float]:
    """Return the messages/s of the original model on this CPU, as busy as it is now, and the seconds of loading it."""
    start = time.monotonic()
    reference = Reference.load(model)
    reference.of_items(texts[:1])  # the first call is slower
    loaded = time.monotonic()
    chosen = in_random_order(texts)[:SAMPLE_TEXTS]
    done = 0
    while done < len(chosen) and time.monotonic() < loaded + CALIBRATION_SECONDS:
        reference.of_items([chosen[done]])
        done += 1
    return done / (time.monotonic() - loaded), loaded - start


def measure_speed(model: Model, texts: list[Item], peaks: dict[str, float], call: Callable, gpu: int | None) -> dict:
    """Return the fields of Sweep with which times are estimated: measured on a CPU, assumed otherwise."""
    if gpu is None and not model.onnx_precision:  # torch can't load the latter
        return dict(zip(("reference_speed", "loading"), call(calibrate, model, texts), strict=True))
    ids = call(token_ids, model, texts, SAMPLE_TEXTS)
    flops = count_flops(model, np.array(list(map(len, ids))), max(ids, key=len), call) if ids else 0.0
    speed = ASSUMED_MFU * peaks["fp32"] * len(ids) / model.task.parts
    return {"reference_speed": speed / flops if flops > 0 else math.inf}  # nan: torch cannot count them


def quick_size(speed: float, splits: list[Split], earlier: Sequence[int] = ()) -> int:
    """Return how many texts a device processes in about PASS_SECONDS, given its FP32 messages/s.

    They are enough for the workers of all splits. It is the size of an earlier quick benchmark if that is similar,
    otherwise a power of two, so that several of them measure the same texts.
    """
    texts = max(MIN_TEXTS, TEXTS_PER_WORKER * max(splits)[0], PASS_SECONDS * speed if np.isfinite(speed) else 0)
    similar = [size for size in earlier if texts / 4 <= size <= 2 * texts]
    return max(similar) if similar else 2 ** int(math.log2(texts))


@dataclass(frozen=True)
class Job:
    """A labelling job without a matching result."""

    name: str
    model: Model
    texts: list[Item]  # from its beginning
    rows: int  # about
    splits: list[Split] | None = None  # to try; None: those that suit the machine


def head_texts(tables: list[Table], columns: list[str]) -> list[Item]:
    """Read items from the beginnings of some files."""
    chosen = [tables[i] for i in evenly_spaced(len(tables), HEAD_FILES)]
    texts = []
    for table in chosen:
        head = []
        with contextlib.suppress(UnreadableFile):  # reported when the labelling reaches it
            for part in table.rows(pa.schema([(name, pa.string()) for name in columns])):
                head += [item for item in items_of(part.table, columns) if item is not None]
                characters = sum(map(count_characters, head))
                if max(len(head) / HEAD_TEXTS, characters / HEAD_CHARACTERS) >= 1 / len(chosen):
                    break
        texts += head[: HEAD_TEXTS // len(chosen)]
    return texts


def quick_benchmark(job: Job, info: DeviceInfo, device: Device, results_dir: Path, call: Callable) -> dict | None:
    """Measure the device's fast variants on texts of the job, up to JOB_SHARE of its FP32 time plus exports.

    Return the row of the fastest variant within tolerance; None if none is proven, or if the job is too small. `call`
    runs a function in a helper process.
    """
    if job.rows <= SMALL_JOB or not job.texts:
        return None
    variants = default_variants(device.kind)
    peaks = find_peaks(variants, device, call)
    speeds = measure_speed(job.model, job.texts, peaks, call, device.gpu)
    fp32_seconds = job.rows / speeds["reference_speed"]
    budget = min(JOB_SHARE * fp32_seconds, MAX_SECONDS)
    if budget < MIN_SECONDS:
        return None
    fitting = f"no result fits this job of about {fp32_seconds / 3600:.1f} h"
    say(f"quick      {fitting}: measuring for {budget:.0f} s; the rows go to {results_dir}")
    dataset = Dataset(job.name, job.texts, [], job.texts)
    splits = job.splits or splits_to_try(job.model, device.kind, info.uuid)
    dataset = dataset.limited(quick_size(speeds["reference_speed"] * budget / MAX_SECONDS, splits))
    evidence = EvidenceFile(results_dir)
    limits = {"min_time": 0.0, "stall_timeout": STALL_TIMEOUT, "check_time": budget / 3, "search": True}
    fields = {"peaks": peaks, "evidence": evidence, "uuid": info.uuid} | speeds | limits
    sweep = plan_sweep(job.model, dataset, device, call, **fields)
    sweep = prepare_sweep(sweep, variants, dataset.name, slug(info.name))
    cells = plan_cells(variants, splits, ["token-budget"], [], QUICK_OPTIONS[device.kind]["batch_tokens"])
    say(HEADER)
    run_columns = columns_of_run(job.model, dataset, info)
    recorder = Recorder(run_columns, results_dir, sys.stderr, evidence)
    measure_all(sweep, cells, recorder, repeats=1)
    ranked = recorder.ranked()
    for row in ranked.to_dict("records"):
        say(f"quick      {row['variant']}: {row['messages/s']:.1f} messages/s, {row['verdict'].lower()}")
    within = ranked[ranked["verdict"] == WITHIN].to_dict("records")
    return within[0] if within else None
