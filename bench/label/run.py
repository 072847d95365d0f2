"""The steps of a run: prepare its folder and workers, label what is missing, check the result."""

import contextlib
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace

from tqdm import tqdm

from bench.judge import NOT_WITHIN
from bench.label import folder, on_ray
from bench.label.plan import LabelPlan, PlanOptions, worker_specs
from bench.label.pool import LabelPool
from bench.label.receipt import TOLERATED_BAD_ROWS, Checker, read_receipt, read_samples
from bench.label.record import describe_difference, job_digest, read_record
from bench.label.rows import Counts
from bench.label.splits import LabelJob, digest_input, file_key
from bench.machine import describe_device
from bench.naming import counted, slug
from bench.processes import device_info
from bench.provenance import project_commit, versions
from bench.report.evidence import EvidenceFile, evidence_key
from bench.tables.blocks import BAD_BYTE, NOTE
from bench.tables.format_csv import LOST_LINES
from runtimes import VARIANTS
from utils import RunError, UserError, say

# receipt fields about the run that labelled, which a later check keeps
RUN_FIELDS = "workers", "threads", "batches", "export", "texts_of_this_run", "seconds", "messages/s", "waiting"


def prepare(job: LabelJob, plan: LabelPlan, options: PlanOptions) -> tuple[LabelPool, Checker]:
    """Prepare the folder, the workers and the checker. Raises RunError if the folder's rows are known to be wrong."""
    variant = VARIANTS[plan.variant]
    if job.output.token_count and variant.takes_texts:
        raise UserError(f"--token-count: {plan.variant} makes its own tokens; choose another --variant")
    specs, origin = worker_specs(job.model, plan, options.gpu or [0])
    record = record_of_job(job)
    record["options"] |= {"--device": plan.device, "--variant": plan.variant}
    record["export"] = specs[0].export_id
    record["versions"] = versions("tokenizers", "transformers", *variant.packages)
    folder.prepare_folder(job, record)
    receipt = read_receipt(job)
    if receipt.get("verdict") == NOT_WITHIN and not job.no_check:
        message = f"{job.folder}: rows are {NOT_WITHIN}: {receipt['reason']}"
        raise RunError(f"{message}. To continue anyway, add --no-check; to start again, add --overwrite")
    say(f"running    {plan}; {origin}")
    workers = len(specs)
    if options.ray:
        workers = min(on_ray.count_actors(specs[0].device, options.workers), len(job.own_splits))
    gpu = None if options.ray else specs[0].device.gpu
    fields = {"workers": workers, "threads": plan.threads, "batches": str(plan.batching), "export": origin}
    checker = Checker(with_record(job, record), variant.precision, gpu, fields | describe(job, record))
    if options.results_dir.is_dir() and not options.ray:
        place = {"dataset": job.source.name, "long": job.output.long}
        place["device"] = slug(device_info(gpu).name)
        key = evidence_key(job.model, plan.variant, specs[0].export_id, **place)
        checker.record = partial(EvidenceFile(options.results_dir).add, key)
    return LabelPool(specs, plan.batching, job.folder), checker


def record_of_job(job: LabelJob) -> dict:
    """Return what is recorded of a job before its plan is known."""
    return {
        "input": digest_input(job),
        "model": job.model.weights_id,
        "options": job.options | {"--keep-columns": ",".join(job.output.keep_columns)},
        "columns": str([job.output.schema.field(name) for name in job.output.keep_columns]),
    }


def with_record(job: LabelJob, record: dict) -> LabelJob:
    """Return the job with the digests that its parts get."""
    ids = {file_key(path): job_digest(record, path) for path in record["input"]}
    return replace(job, splits=[replace(split, job=ids[split.file]) for split in job.splits])


def describe(job: LabelJob, record: dict) -> dict:
    """Return the receipt's fields for the model, the input, and where and when rows were compared."""
    return {
        "variant": record["options"].get("--variant", ""),
        "export_id": record["export"],
        "versions": record["versions"],
        "model": job.model.id,
        "weights_id": job.model.weights_id,
        "task": job.model.task.summary,
        "input": str(job.source),
        "column": ", ".join(job.output.text_columns),
        "files": {split.file: str(split.table.file) for split in job.own_splits},  # name in a part's name
        "commit": project_commit(),
        "machine": describe_device(None).name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def progress_bar(total: int, done: int) -> tqdm:
    """Return a progress bar; without a terminal it prints at most one line per minute."""
    options = {"total": total, "initial": done, "unit": " rows"}
    if not sys.stderr.isatty():
        line = "progress   {n:,} of about {total:,} rows, {rate_fmt}, {remaining} left"
        lines = SimpleNamespace(write=lambda text: say(text.strip()) if text.strip() else None, flush=lambda: None)
        options |= {"file": lines, "bar_format": line, "mininterval": 60, "delay": 60, "miniters": 1}
    return tqdm(**options)


def advance(bar: tqdm, done: int) -> None:
    bar.total = max(bar.total, done)  # which is an estimate; tqdm forgets a total that is exceeded
    bar.update(done - bar.n)


def label_missing(pool: LabelPool, checker: Checker, actors: int) -> tuple[Counts, float]:
    """Write the missing parts, on Ray if `actors`. Return (their counts, seconds without loading and comparing)."""
    job, output = checker.job, checker.job.output
    folder.read_footers(job)
    existing = folder.own_parts(job) if job.shard else job.footers
    checker.stop_at_bad_rows([footer.counts for footer in existing.values()])
    states = [(split, *folder.find_parts(split, existing)) for split in job.own_splits]
    missing = [split for split, _, complete in states if not complete]
    done = rows_before_run = sum(footer.rows for footer in existing.values())
    total = sum(existing[name].rows for _, names, complete in states if complete for name in names)
    total = max(total + sum(split.estimate_rows() for split in missing), done)
    if done and missing:
        say(f"resuming   after {done:,} {output.done_word} rows")
    counts, start = Counts(), time.monotonic()
    try:
        with pool, progress_bar(total, done) as bar:

            def show(texts: list[int | None]) -> None:
                advance(bar, rows_before_run + pool.answered + sum(filter(None, texts)))

            if actors:
                labelled = on_ray.label_on_ray(missing, pool, output, set(job.footers), actors)
            else:
                parts = (part for split in missing for part in split.read(output, job.footers))
                labelled = pool.label_parts(parts, output, show)
            with contextlib.closing(labelled):  # waits until the parts that are being written are complete
                for footer, sample in labelled:
                    job.footers[sample.part] = footer
                    counts, done = counts + footer.counts, done + footer.rows
                    advance(bar, max(done, rows_before_run + pool.answered))
                    checker.add(footer.counts, sample)
            bar.total = done
    except (KeyboardInterrupt, SystemExit):
        kept = max(done, rows_before_run + pool.written)
        line = f"kept       {kept:,} of about {total:,} rows; rerun the same command to resume"
        if kept < output.rows_per_file:
            line += f". A part, which is kept once it is written, has up to {output.rows_per_file:,} rows"
            if output.rows_per_file > total:
                line += "; a smaller --rows-per-file keeps more"
        say(line)
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
        checker.fields |= report_speed(job.output.done_word, counts, seconds, total, pool.busy)
    elif total:
        say(f"all {total:,} rows are already {job.output.done_word}")
    else:
        say("nothing to do: there are more shards than parts of the input")
    receipt = read_receipt(job)
    decisions = checker.parity.task.decision_words
    is_current = receipt.get("rows") == total and receipt.get("decisions_are") == decisions
    is_current = is_current and (receipt.get("rows_compared") or not job.model.original)
    if counts.rows and (job.shard or counts.rows == total):
        checker.finish(checker.later_samples, footers)
    elif not job.shard and (counts.rows or not is_current):  # other runs wrote parts, too
        check_all(job, checker, footers)
    if job.shard:
        number, count = job.shard
        say(f"shard      {number}/{count} done. When all are done, verify the result: --check-only instead of --shard")
    if on_cluster:  # else read_all has printed them
        bad = [fault for footer in footers.values() for fault in footer.bad]
        for note in {fault["reason"]: fault for fault in bad if fault["reason"].startswith(NOTE)}.values():
            say(folder.first_bad({"": [note]}))
    stop_at_lost_rows(job, footers)


def stop_at_lost_rows(job: LabelJob, footers: dict[str, folder.Footer]) -> None:
    """Raise RunError if a quote swallowed rows, over TOLERATED_BAD_ROWS are in another encoding, or all are bad."""
    faults = [fault for footer in footers.values() for fault in footer.bad]
    counts = sum((footer.counts for footer in footers.values()), Counts())
    undecoded = [fault for fault in faults if fault["reason"].startswith(BAD_BYTE)]
    lost = undecoded if len(undecoded) > TOLERATED_BAD_ROWS else []
    lost = lost + [fault for fault in faults if fault["reason"].startswith(LOST_LINES)]
    if not job.shard and counts.texts == counts.texts_without_answer:
        lost = [fault for fault in faults if not fault["reason"].startswith(NOTE)]
    if lost:
        first, listed = folder.first_bad({"the input": lost[:1]}), job.own_file(folder.BAD_FILE).name
        raise RunError(f"rows were lost in {counted(len(lost), 'place')}, see {listed}: {first}")


def report_speed(done_word: str, counts: Counts, seconds: float, total: int, busy: float) -> dict:
    """Print what this run has done and how fast; return it for the receipt. `busy`: see LabelPool, 0 if unknown."""
    speed = counts.texts / seconds
    fields = {"texts_of_this_run": counts.texts, "seconds": round(seconds, 1), "messages/s": round(speed, 1)}
    line = f"{done_word}   {counted(counts.texts, 'text')}"
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
    """Check an existing folder, and write its receipt. Raises UserError for another job's, RunError for wrong rows."""
    record = read_record(job.folder)
    current = record | record_of_job(job)
    recorded, gpu = record["options"], None
    current["options"] = recorded | current["options"]
    if difference := describe_difference(record, current):
        raise UserError(f"--check-only: {job.folder} belongs to a different job ({difference}); give the same options")
    if recorded.get("--device") == "gpu" and options.device != "cpu" and not options.ray:
        gpu = (options.gpu or [0])[0]
    job = with_record(job, record)
    folder.read_footers(job)
    variant = VARIANTS.get(recorded.get("--variant"))
    precision = variant.precision if variant else ""
    footers = folder.check_complete(job, "rerun the same command without --check-only")
    check_all(job, Checker(job, precision, gpu, describe(job, record)), footers)
    stop_at_lost_rows(job, footers)
