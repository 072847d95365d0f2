"""What a command line asks for -> a job, and the steps to run it: the same for labels and for vectors."""

import contextlib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.export.ensure import runnable_variants
from bench.files import check_writable
from bench.label import on_ray
from bench.label.folder import locked, refuse_foreign_files
from bench.label.plan import PlanOptions, find_plan, measuring_command, report_estimate
from bench.label.record import read_record
from bench.label.rows import OutputSpec, choose_columns
from bench.label.run import check_folder, label, prepare
from bench.label.splits import LabelJob, cut_splits
from bench.model.model import Model
from bench.options import CSV_OPTIONS
from bench.processes import helper_process
from bench.tables.folders import common_schema, find_files, noting_others, open_tables
from bench.tables.format_csv import Csv
from bench.tables.readers import format_of
from bench.tables.storage import locate
from utils import CACHE, UserError

OUTPUT_OPTIONS = "float16", "prefix", "rows_per_file", "limit", "long", "token_count"
PLAN_OPTIONS = "device", "variant", "workers", "threads", "batch_tokens", "long", "gpu", "results_dir"
# options that determine the output: another run with the same ones resumes
RECORDED_OPTIONS = *OUTPUT_OPTIONS, "column", *CSV_OPTIONS


@dataclass(frozen=True)
class JobKind:
    """What differs between the scripts."""

    columns: list[str]  # of the text
    open_model: Callable[[Callable], Model]  # (call), which runs a function in a helper process
    make_output: Callable[..., OutputSpec]  # (model, **fields)
    recorded: Callable[[Model], dict]  # further options that determine the output, as they are recorded
    measured: tuple[str, ...]  # options that run_benchmark.py needs, too


def open_job(args: Namespace, kind: JobKind, call: Callable) -> LabelJob:
    """Open the model and the input, and define the output. `call` runs a function in a helper process."""
    source, folder = locate(args.input), locate(args.output)
    if format_of(folder.name):
        raise UserError(f"--output {folder}: the output is a folder of Parquet files; choose a name without a suffix")
    files = find_files(source)
    if folder.is_in(source) or any(file.is_in(folder) for file in files):
        raise UserError(f"output folder {folder} overlaps the input; choose another --output")
    if args.check_only:
        if not (record := read_record(folder)):
            raise UserError(f"--check-only: {folder} has no parts of this version")
        args.limit, args.rows_per_file = record["options"].get("--limit"), record["options"]["--rows-per-file"]
    model = kind.open_model(call)
    tables = open_tables(files, Csv.from_options(args), source)
    kept = choose_columns(tables, kind.columns, args.keep_columns, args.keep_text)
    schema = common_schema(tables, list(dict.fromkeys([*kept, *kind.columns])), kind.columns)
    output = kind.make_output(
        model,
        schema=schema if args.keep_columns else noting_others(schema, tables),
        text_columns=kind.columns,
        keep_columns=kept,
        model_labels=model.labels,
        **{name: getattr(args, name) for name in OUTPUT_OPTIONS},
    )
    output.check(tables)
    options = {name: getattr(args, name) for name in RECORDED_OPTIONS} | kind.recorded(model)
    return LabelJob(
        model=model,
        source=source,
        folder=folder,
        splits=cut_splits(tables, output, source),
        output=output,
        options={f"--{name.replace('_', '-')}": value for name, value in options.items()},
        shard=args.shard,
        overwrite=args.overwrite,
        strict=args.strict,
        no_check=args.no_check,
    )


def run_job(args: Namespace, kind: JobKind) -> int:
    """Run the job that the arguments of job_parser() ask for; return the exit code."""
    check_writable(CACHE)
    options = PlanOptions(ray=bool(args.ray), **{name: getattr(args, name) for name in PLAN_OPTIONS})
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as helper:
        if args.ray:
            stack.enter_context(on_ray.cluster(args.ray))
        call = helper.enter_context(helper_process())
        job = open_job(args, kind, call)
        if job.model.onnx_precision:
            asked = [options.variant] if options.variant else []
            options = replace(options, variant=runnable_variants(job.model, asked)[0])
        if args.dry_run:
            plan = find_plan(job, options, call)
            given = {name: getattr(args, name) for name in kind.measured}
            report_estimate(job, plan, measuring_command(job, plan, options, **given))
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
