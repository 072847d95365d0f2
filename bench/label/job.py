"""What a command line asks for -> a job, and the steps to run it: the same for labels and for vectors."""

import contextlib
import io
import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np

from bench.export.ensure import runnable_variants
from bench.files import check_writable
from bench.label import folder, on_ray
from bench.label.folder import locked, refuse_foreign_files
from bench.label.plan import LabelPlan, PlanOptions, find_plan, worker_specs
from bench.label.pool import LabelPool
from bench.label.record import read_record
from bench.label.rows import BAD_ROWS, Answers, OutputSpec, choose_columns, label_table
from bench.label.run import check_folder, label, prepare
from bench.label.splits import LabelJob, cut_splits, tables_of
from bench.model.model import Model
from bench.naming import listed
from bench.options import CSV_OPTIONS, ITEM_OPTIONS, VECTOR_OPTIONS
from bench.processes import helper_process
from bench.report.table import time_words
from bench.start_process import stopped_afterwards
from bench.tables.folders import common_schema, find_files, noting_others, open_tables
from bench.tables.format_csv import Csv
from bench.tables.items import Item, count_characters, items_of
from bench.tables.readers import format_of
from bench.tables.storage import locate
from bench.task_options import text_columns
from utils import CACHE, UserError, say

OUTPUT_OPTIONS = "float16", "prefix", "rows_per_file", "limit", "long", "token_count", "top_label", "min_score"
# those of a script's options that determine the output: another run with the same ones resumes
RECORDED_OPTIONS = *OUTPUT_OPTIONS, "labels", "column", *CSV_OPTIONS, *ITEM_OPTIONS, *VECTOR_OPTIONS
ESTIMATE_ROWS = 10_000  # first rows of the job, from which its size is estimated


def open_job(args: Namespace, open_model: Callable, output_class: type[OutputSpec], call: Callable) -> LabelJob:
    """Open the model and the input, and define the output. `call` runs a function in a helper process."""
    source, target = locate(args.input), locate(args.output)
    columns = text_columns(args)
    if format_of(target.name):
        raise UserError(f"--output {target}: the output is a folder of Parquet files; choose a name without a suffix")
    files = find_files(source)
    if target.is_in(source) or any(file.is_in(target) for file in files):
        raise UserError(f"output folder {target} overlaps the input; choose another --output")
    if args.check_only:
        if not (record := read_record(target)):
            raise UserError(f"--check-only: {target} has no parts of this version; give the --output of an earlier run")
        args.limit, args.rows_per_file = record["options"].get("--limit"), record["options"]["--rows-per-file"]
    model = open_model(call)
    tables = open_tables(files, Csv.from_options(args), source)
    kept = choose_columns(tables, columns, args.keep_columns, args.keep_text)
    schema = common_schema(tables, list(dict.fromkeys([*kept, *columns])), columns)
    options = {name: getattr(args, name) for name in RECORDED_OPTIONS if name in args}
    output = output_class(
        schema=schema if args.keep_columns else noting_others(schema, tables),
        text_columns=columns,
        keep_columns=kept,
        model_labels=model.labels,
        labels=options.get("labels") or model.labels,
        **{name: options[name] for name in OUTPUT_OPTIONS if name in options},
    )
    output.check(tables)
    if options.get("candidate_labels"):
        options["candidate_labels"] = model.labels  # not the name of their file
    return LabelJob(
        model=model,
        source=source,
        folder=target,
        splits=cut_splits(tables, output, source),
        output=output,
        options={f"--{name.replace('_', '-')}": value for name, value in options.items()},
        shard=args.shard,
        overwrite=args.overwrite,
        strict=args.strict,
        no_check=args.no_check,
    )


def report_estimate(job: LabelJob, plan: LabelPlan) -> None:
    """Print how many rows and texts there are, how large the output will be, and how long the plan takes."""
    output = job.output
    parts = (next(split.read(replace(output, rows_per_file=ESTIMATE_ROWS))) for split in job.splits)  # of all shards
    table = next((part.table for part in parts if len(part.table)), None)
    if table is None:
        raise UserError(f"the input has no rows: {job.source}")
    items = items_of(table, output.text_columns)
    lengths = np.array([count_characters(item) for item in items if item is not None], int)
    scores = np.random.default_rng(0).random((len(lengths), len(output.model_labels)), np.float32)
    labelled, counts = label_table(table, items, Answers(scores, lengths), output)
    file = io.BytesIO()
    folder.write_rows(labelled, file)
    rows = job.estimate_rows()
    texts = rows * counts.texts / counts.rows
    say(f"rows       about {rows:,}, about {texts:,.0f} with text; input files: {len(tables_of(job.own_splits)):,}")
    if counts.bad_rows:
        first = folder.first_bad({"the input": json.loads(labelled.schema.metadata[BAD_ROWS])})
        say(f"bad rows   {counts.bad_rows:,} of the first {counts.rows:,}, such as {first}")
    say(f"columns    {listed(labelled.schema.names)}")
    say(f"output     about {rows * file.tell() / counts.rows / 1e6:,.1f} MB, in parts of {output.rows_per_file:,} rows")
    if plan.speed:
        say(f"time       about {time_words(texts / plan.speed)}: {plan.speed:,.1f} messages/s with {plan}")
    else:
        say(f"time       unknown: there is no result for {plan}; run_benchmark.py measures it")


def answer_items(
    items: list[Item], open_model: Callable[[Callable], Model], make_plan: Callable[[Model, Callable], LabelPlan]
) -> tuple[Model, np.ndarray]:
    """Return a model and its answers for items in memory, float32 [items, labels], for callers in Python.

    `open_model(call)` and `make_plan(model, call)` get what runs a function in a helper process. No process is left.
    """
    with stopped_afterwards():
        with helper_process() as call:
            model = open_model(call)
            if not items:
                return model, np.empty((0, len(model.labels)), np.float32)
            plan = make_plan(model, call)
        specs, _ = worker_specs(model, plan, gpus=[0])
        with LabelPool(specs, plan.batching, folder=None) as pool:
            return model, pool.classify(items, "texts", None).values


def run_job(args: Namespace, open_model: Callable[[Callable], Model], output_class: type[OutputSpec]) -> int:
    """Run the job of job_parser()'s arguments with the model that `open_model(call)` returns; return the exit code."""
    check_writable(CACHE)
    options = PlanOptions(**{field.name: getattr(args, field.name) for field in fields(PlanOptions)})
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as helper:
        if args.ray:
            stack.enter_context(on_ray.cluster(args.ray))
        call = helper.enter_context(helper_process())
        job = open_job(args, open_model, output_class, call)
        if job.model.onnx_precision or options.variant:
            asked = [options.variant] if options.variant else []
            options = replace(options, variant=runnable_variants(job.model, asked)[0])
        if args.dry_run:
            report_estimate(job, find_plan(job, options, call))
            return 0
        if not args.check_only:
            refuse_foreign_files(job.folder)
        stack.enter_context(locked(job.folder, shared=bool(job.shard)))
        if job.shard:
            stack.enter_context(locked(job.folder, job.own_file("_lock").name))
        if args.check_only:
            helper.close()
            check_folder(job, options)
            return 0
        with locked(job.folder, "_lock-plan", wait=True):  # all shards use the variant of the first
            plan = find_plan(job, options, call)
            helper.close()
            pool, checker = prepare(job, plan, options)
        label(pool, checker, on_cluster=options.ray)
    return 0
