"""The steps of a run: estimate a job, prepare its folder and workers, label what is missing, check the result."""

import io
import json
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from tqdm import tqdm

from bench.judge import NOT_WITHIN
from bench.label import folder, on_ray
from bench.label.plan import LabelPlan, PlanOptions, read_plan, worker_specs
from bench.label.pool import LabelPool
from bench.label.receipt import Checker, read_receipt, read_samples
from bench.label.record import describe_difference, job_digest, read_record
from bench.label.rows import BAD_ROWS, Answers, Counts, label_table, texts_of
from bench.label.splits import LabelJob, digest_input
from bench.machine import describe_device
from bench.provenance import project_commit, versions
from bench.tables.format_csv import LOST_LINES
from bench.tables.items import count_characters
from bench.timing import time_words
from runtimes import VARIANTS
from utils import RunError, UserError, say

ESTIMATE_ROWS = 10_000  # first rows of the job, from which its size is estimated
# receipt fields about the run that labelled, which a later check keeps
RUN_FIELDS = "workers", "threads", "export", "texts_of_this_run", "seconds", "messages/s", "waiting"


def report_estimate(job: LabelJob, plan: LabelPlan, measuring: str) -> None:
    """Print how many rows and texts there are, how large the output will be, and how long the plan takes.

    `measuring`: the command that measures the speed, if there is one.
    """
    output = job.output
    parts = (next(split.read(replace(output, rows_per_file=ESTIMATE_ROWS))) for split in job.splits)
    table = next((part.table for part in parts if len(part.table)), None)
    if table is None:
        raise UserError(f"the input has no rows: {job.source}")
    items = texts_of(table, output)
    scores = np.random.default_rng(0).random((len(items), len(output.model_labels)), np.float32)
    labelled, counts = label_table(table, Answers(scores, np.array(list(map(count_characters, items)), int)), output)
    file = io.BytesIO()
    folder.write_rows(labelled, file)
    rows = job.estimate_rows()
    texts = rows * counts.texts / counts.rows
    say(f"rows       about {rows:,}, about {texts:,.0f} with text; input files: {len(job.tables):,}")
    if counts.bad_rows:
        first = folder.first_bad({"the input": json.loads(labelled.schema.metadata[BAD_ROWS])})
        say(f"bad rows   {counts.bad_rows:,} of the first {counts.rows:,}, such as {first}")
    say(f"columns    {', '.join(labelled.schema.names)}")
    say(f"output     about {rows * file.tell() / counts.rows / 1e6:,.1f} MB, in parts of {output.rows_per_file:,} rows")
    if plan.speed:
        say(f"time       about {time_words(texts / plan.speed)}: {plan.speed:,.1f} messages/s with {plan}")
        return
    say(f"time       unknown: there is no result for {plan}")
    if measuring:
        say(f"           this command measures it: {measuring}")


def prepare(job: LabelJob, plan: LabelPlan, options: PlanOptions) -> tuple[LabelPool, Checker]:
    """Prepare the folder, the workers and the checker; create the export if needed.

    Raises UserError if the folder has parts of another job, RunError if its rows are known to be wrong.
    """
    variant = VARIANTS[plan.variant]
    if job.output.token_count and variant.takes_texts:
        raise UserError(f"--token-count: {plan.variant} makes its own tokens; choose another --variant")
    specs, origin = worker_specs(job.model, plan, options.gpu or [0])
    record = {
        "input": digest_input(job.tables),
        "model": job.model.weights_id,
        "options": job.options | options.recorded(),
        "columns": str(job.output.schema),
        "export": specs[0].export_id,
        "plan": plan.record(),
        "versions": versions("tokenizers", "transformers", *variant.packages),
    }
    folder.prepare_folder(job, record)
    receipt = read_receipt(job)
    if receipt.get("verdict") == NOT_WITHIN and not job.no_check:
        message = f"{job.folder}: rows are {NOT_WITHIN}: {receipt['reason']}"
        raise RunError(f"{message}. To continue anyway, add --no-check; to start again, add --overwrite")
    say(f"labelling with {plan}; {origin}")
    workers = len(specs)
    if options.ray:
        workers = min(on_ray.count_actors(specs[0].device, options.workers), len(job.own_splits))
    gpu = None if options.ray else specs[0].device.gpu
    fields = {"workers": workers, "threads": plan.threads, "export": origin} | describe(job, record, plan)
    checker = Checker(with_record(job, record), variant.precision, gpu, fields)
    return LabelPool(specs, plan.batching, job.folder), checker


def with_record(job: LabelJob, record: dict) -> LabelJob:
    return replace(job, output=replace(job.output, job=job_digest(record)))


def describe(job: LabelJob, record: dict, plan: LabelPlan | None) -> dict:
    """Return the receipt's fields for the model, the input, the plan, and where and when rows were compared."""
    return {
        "variant": plan.variant if plan else "",
        "batches": str(plan.batching) if plan else "",
        "export_id": record.get("export", ""),
        "versions": record.get("versions", {}),
        "model": job.model.id,
        "weights_id": job.model.weights_id,
        "task": job.model.task.summary,
        "input": str(job.source),
        "column": ", ".join(job.output.text_columns),
        "files": {f"{split.file:06}": str(split.table.file) for split in job.own_splits},  # number in a part's name
        "commit": project_commit(),
        "machine": describe_device(None).name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


class LogFile:
    """Stands in for standard error if that is not a terminal: tqdm's updates become lines."""

    def write(self, text: str) -> None:
        if text.strip():
            say(text.strip())

    def flush(self) -> None:
        pass


def progress_bar(total: int, done: int) -> tqdm:
    """Return a progress bar; without a terminal it prints at most one line per minute."""
    options = {"total": total, "initial": done, "unit": " rows"}
    if not sys.stderr.isatty():
        line = "progress   {n:,} of about {total:,} rows, {rate_fmt}, {remaining} left"
        options |= {"file": LogFile(), "bar_format": line, "mininterval": 60, "delay": 60, "miniters": 1}
    return tqdm(**options)


def label_missing(pool: LabelPool, checker: Checker, actors: int) -> tuple[Counts, float]:
    """Write the parts that are missing, with `actors` on a Ray cluster or with 0 on this machine.

    Returns their counts, and the seconds without loading and comparing.
    """
    job, output = checker.job, checker.job.output
    existing = folder.read_footers(job)
    checker.stop_at_bad_rows([footer.counts for footer in existing.values()])
    states = [(split, *folder.find_parts(split, existing)[1:]) for split in job.own_splits]
    missing = [(split, rows) for split, rows, complete in states if not complete]
    done = rows_before_run = sum(rows for _, rows, _ in states)
    total = done + sum(max(split.estimate_rows() - rows, 0) for split, rows in missing)
    if done and missing:
        say(f"resuming   after {done:,} labelled rows")
    counts, start = Counts(), time.monotonic()
    try:
        with pool, progress_bar(total, done) as bar:

            def show(texts: list[int | None]) -> None:
                bar.update(rows_before_run + pool.answered + sum(filter(None, texts)) - bar.n)

            if actors:
                actor_job = on_ray.ActorJob(pool.specs[0], pool.batching, output, job.folder, existing)
                written = on_ray.label_on_ray([split for split, _ in missing], actor_job, actors)
            else:
                parts = (part for split, rows in missing for part in split.read(output, rows, existing))
                written = pool.label_parts(parts, output, show)
            for part in written:
                counts, done = counts + part.counts, done + part.counts.rows
                bar.update(max(done, rows_before_run + pool.answered) - bar.n)
                checker.add(part.counts, part.sample)
            bar.total = done
    except (KeyboardInterrupt, SystemExit):
        say(f"kept       {done:,} of about {total:,} rows; rerun the same command to resume")
        raise
    return counts, time.monotonic() - start - pool.loading - checker.seconds


def label(pool: LabelPool, checker: Checker, on_cluster: bool) -> None:
    """Label what is missing, print the speed, and check the result."""
    job = checker.job
    counts, seconds = label_missing(pool, checker, checker.fields["workers"] if on_cluster else 0)
    job.check_input()
    footers = folder.check_complete(job)
    total = sum(footer.rows for footer in footers.values())
    if counts.rows:
        checker.fields |= report_speed(counts, seconds, total, pool.busy)
    elif job.own_splits:
        say(f"all {total:,} rows are already labelled")
    else:
        say("nothing to do: there are more shards than splits of the input (files, or row groups of Parquet files)")
    receipt = read_receipt(job)
    decisions = checker.parity.task.decision_words
    is_current = receipt.get("rows") == total and receipt.get("decisions_are") == decisions
    if counts.rows and (job.shard or counts.rows == total):
        checker.finish(checker.later_samples, footers)
    elif not job.shard and (counts.rows or not is_current):  # other runs wrote parts, too
        check_all(job, checker, footers)
    if job.shard:
        number, count = job.shard
        say(
            f"shard      {number}/{count} done. When all are done, run the command without --shard to verify the result"
        )
    faults = [fault for footer in footers.values() for fault in footer.bad]
    if lost := [fault for fault in faults if fault["reason"].startswith(LOST_LINES)]:
        first = folder.first_bad({"the input": lost[:1]})
        raise RunError(f"rows were lost in {len(lost):,} places, see {job.own_file(folder.BAD_FILE).name}: {first}")


def report_speed(counts: Counts, seconds: float, total: int, busy: float) -> dict:
    """Print what this run labelled and how fast; return it for the receipt. `busy`: see LabelPool, 0 if unknown."""
    speed = counts.texts / seconds
    fields = {"texts_of_this_run": counts.texts, "seconds": round(seconds, 1), "messages/s": round(speed, 1)}
    line = f"labelled   {counts.texts:,} texts"
    if counts.tokens:
        line += f", {counts.tokens:,} tokens"
    line += f", {seconds:.1f} s, {speed:,.1f} messages/s"
    if busy:
        fields["waiting"] = round(max(1 - busy / seconds, 0), 3)
        line += f", the model waited {fields['waiting']:.1%} of the time"
    say(f"{line}; {total:,} rows in total")
    return fields


def check_all(job: LabelJob, checker: Checker, footers: dict[str, folder.Footer]) -> None:
    """Compare rows of all parts, whichever run wrote them, and write the receipt."""
    earlier = {name: value for name, value in read_receipt(job).items() if name in RUN_FIELDS}
    replace(checker, fields=earlier | checker.fields).finish(read_samples(job, footers), footers)


def check_folder(job: LabelJob, options: PlanOptions) -> None:
    """Compare rows of an existing folder with the original model, and write its receipt.

    Raises UserError if its parts are not of this job, RunError if rows are wrong.
    """
    record = read_record(job.folder)
    current = {"model": job.model.weights_id, "input": digest_input(job.tables), "options": job.options}
    recorded = {name: record.get(name) for name in current}
    recorded["options"] = {name: record["options"].get(name) for name in job.options}
    if recorded != current:
        difference = describe_difference(recorded, current)
        raise UserError(f"--check-only: {job.folder} belongs to a different job ({difference}); give the same options")
    plan, gpu = read_plan(record), None
    if plan and plan.device == "gpu" and options.device != "cpu" and not options.ray:
        gpu = (options.gpu or [0])[0]
    job = with_record(job, record)
    precision = VARIANTS[plan.variant].precision if plan else ""
    check_all(job, Checker(job, precision, gpu, describe(job, record, plan)), folder.check_complete(job))
