"""A job that nothing measured fits -> a short benchmark on its own texts."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.judge import WITHIN
from bench.machine import DeviceInfo
from bench.measure.cells import plan_cells
from bench.measure.check import more_texts
from bench.measure.leaders import LOOK, default_variants, flops_of_a_text, look_size, measure_all
from bench.measure.prepare import find_exports, find_peaks
from bench.measure.recorder import Recorder, columns_of_run
from bench.measure.sweep import ASSUMED_MFU, Sweep
from bench.measure.token_cache import load_or_tokenize
from bench.model.model import Model
from bench.report import rows
from bench.report.table import HEADER, table_line
from bench.report.verdict import rank
from bench.tables.datasets import Dataset, evenly_spaced
from bench.tables.items import has_text
from bench.tables.readers import Table, UnreadableFile
from bench.variants import Device
from utils import say

SMALL_JOB = 10_000  # rows of a job that is done before a look would pay, on whatever device
LOOK_SHARE, MOST_SECONDS, LEAST_SECONDS = 0.01, 60.0, 20.0  # a look's share of the job, and between what it stays
HEAD_TEXTS, HEAD_FILES = 4000, 20  # texts that stand for the job, from the beginnings of so many of its files
STALL_TIMEOUT = 600  # seconds


@dataclass(frozen=True)
class Job:
    """What is to be labelled: by which `model`, `texts` from its beginning, and about how many `rows` there are."""

    name: str
    model: Model
    texts: list[str]
    rows: int


def head_texts(tables: list[Table], column: str) -> list[str]:
    """Reads texts from the beginnings of some files."""
    found, some = [], [tables[i] for i in evenly_spaced(len(tables), HEAD_FILES)]
    for table in some:
        own = []
        with contextlib.suppress(UnreadableFile):  # the labelling says so when it comes there
            for part in table.rows(pa.schema([(column, pa.string())])):
                own += [text for text in part.table[column].to_pylist() if has_text(text)]
                if len(own) >= HEAD_TEXTS // len(some):
                    break
        found += own[: HEAD_TEXTS // len(some)]
    return found


def mean_tokens(model: Model, texts: list[str]) -> float:
    """Returns how many tokens a text has on average; nan where there are none."""
    lengths = [len(ids) for ids in model.tokenize([texts[i] for i in evenly_spaced(len(texts), 500)])["input_ids"]]
    return float(np.mean(lengths)) if lengths else np.nan


def quick_benchmark(job: Job, info: DeviceInfo, device: Device, results_dir: Path, call: Callable) -> dict | None:
    """Measures what is fast on the device, over texts of the job, and says what it finds.

    Returns the row of the fastest variant that is within tolerance; None where the job is too small for a look, and
    where nothing is proven. `call` runs a function in a helper process. It takes LOOK_SHARE of the time that the job
    takes in FP32, but at most MOST_SECONDS; exports are not counted, since they are made once.
    """
    if job.rows <= SMALL_JOB or not job.texts:
        return None
    variants = default_variants(device.kind)
    peaks, flops = find_peaks(variants, device, call), call(flops_of_a_text, job.model, job.texts)
    in_fp32 = job.rows * flops / (ASSUMED_MFU * peaks["fp32"])
    budget = min(LOOK_SHARE * in_fp32, MOST_SECONDS)
    if not budget >= LEAST_SECONDS:
        return None
    say(f"look       nothing measured fits this job of about {in_fp32 / 3600:.1f} h: {budget:.0f} s on its own texts")
    dataset = Dataset(job.name, job.texts, [], job.texts)
    dataset = dataset.limited(int(look_size(flops, peaks["fp32"]) * budget / MOST_SECONDS))
    tokens = load_or_tokenize(job.model, dataset.texts, device.gpu, call)
    exports, start = find_exports(job.model, variants, device), time.monotonic()
    sweep = Sweep(
        model=job.model,
        tokens=tokens,
        exports=exports,
        device=device,
        peaks=peaks,
        min_time=0.0,
        stall_timeout=STALL_TIMEOUT,
        more_texts=more_texts(dataset.all_texts, tokens),
        check_time=budget / 3,
    )
    cells = plan_cells(variants, [1], ["token-budget"], [], LOOK[device.kind]["batch_tokens"])
    same = columns_of_run(job.model, dataset, info, device.threads)
    same["date"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    say(HEADER)
    recorder = Recorder(same, rows.completed_rows([])[0], results_dir, lambda _, row: say(table_line(row)))
    measure_all(sweep, cells, recorder, repeats=1)
    ranked = rank(recorder.completed())
    for row in ranked.to_dict("records"):
        say(f"look       {row['variant']}: {row['messages/s']:.1f} messages/s, {row['verdict'].lower()}")
    say(f"           {time.monotonic() - start:.0f} s; rows in {results_dir}")
    within = ranked[ranked["verdict"] == WITHIN].to_dict("records")
    return within[0] if within else None
