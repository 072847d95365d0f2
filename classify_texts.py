"""Label texts in bulk with an encoder classifier, using the fastest variant that is proven to match the original model.

    python classify_texts.py SamLowe/roberta-base-go_emotions comments.csv.gz --output labelled
    python classify_texts.py cross-encoder/nli-MiniLM2-L6-H768 a.csv --output topics --candidate-labels cooking,sports
    python classify_texts.py ./my-model s3://bucket/texts --output s3://bucket/labelled --column text --shard 3/16

INPUT: a file of CSV, TSV, JSON Lines (also .gz, .zst) or Parquet, or a folder of them, local or in a bucket (s3://,
gs://, hf://datasets/...). Sub-folders such as year=2024 become columns.

DIR gets Parquet files, named by input file and first row (part-comments.csv.gz-75298043-0000000000.parquet), with the
input's rows in order, its other columns, and the probability of each label. Rows without a usable text have nulls;
_bad_rows.jsonl lists those that cannot be parsed or answered. Some rows are compared with the original model: see
_receipt.json.

After an interruption, rerun the same command to resume. If files were added to an input folder, it labels only these.
Machines that share a job, even of a single file, each get a --shard; then --check-only checks the result. With Slurm:
    sbatch --array=1-16 --wrap='python classify_texts.py MODEL INPUT --output DIR --shard $SLURM_ARRAY_TASK_ID/16'
README.md explains how the variant is chosen.
References and other reusable files are kept in BENCHMARK_CACHE (default: the folder .cache beside this script).
Exit code: 0 on success, 1 if something failed or rows are wrong, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import contextlib
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.machine import process_count
from bench.options import (
    CSV_OPTIONS,
    ITEM_OPTIONS,
    LONG_TEXTS,
    Parser,
    add_original,
    add_task_options,
    add_text_options,
    float_from,
    hub_name,
    int_from,
    list_of,
    task_choice,
    text_columns,
)
from utils import CACHE, ROOT, UserError, before_imports, run

OUTPUT_OPTIONS = "top_label", "float16", "min_score", "prefix", "rows_per_file", "limit", "long", "token_count"
PLAN_OPTIONS = "device", "variant", "workers", "threads", "batch_tokens", "long", "gpu", "results_dir"
# options that determine the output: another run with the same ones resumes
RECORDED_OPTIONS = *OUTPUT_OPTIONS, "column", *ITEM_OPTIONS, *CSV_OPTIONS, "labels"


def parse_arguments() -> Namespace:
    parser, count, names = Parser(__doc__), int_from(1), list_of(str.strip)
    parser.usage = "%(prog)s MODEL INPUT --output DIR [options]"
    parser.add_argument("model_id", metavar="MODEL", type=hub_name, help="Hub id or folder of a model, or of an export")
    parser.add_argument("input", metavar="INPUT", help="file or folder of texts")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the output")

    group = parser.add_argument_group("input")
    add_text_options(group)
    add = group.add_argument
    add("--limit", type=count, metavar="ROWS", help="label only the first ROWS rows")
    long_help = "truncate long texts, or read overlapping windows and take each label's maximum or mean (default: cut)"
    add("--long", choices=LONG_TEXTS, default="cut", help=long_help)
    add("--strict", action="store_true", help="stop at the first bad row instead of writing nulls")

    add = parser.add_argument_group("output").add_argument
    add("--keep-columns", type=names, metavar="LIST", help="columns to copy (default: all except the text)")
    add("--keep-text", action="store_true", help="also copy the text")
    add("--top-label", action="store_true", help="write only the most probable label and its score")
    add("--labels", type=names, metavar="LIST", help="write only these labels (default: all)")
    add("--min-score", type=float_from(-1e38), metavar="SCORE", help="write null for lower scores")
    add("--float16", action="store_true", help="write scores as float16, which rounds them by up to 0.0005")
    add("--token-count", action="store_true", help="add a column of token counts; estimated for very long texts")
    add("--prefix", default="", help="prefix for the names of the new columns")
    rows_help = "rows per part, fewer if these exceed 64 MiB (default: 100000)"
    add("--rows-per-file", type=count, default=100_000, metavar="N", help=rows_help)
    add("--overwrite", action="store_true", help="replace the parts of another job in DIR")

    add = parser.add_argument_group("how to run").add_argument
    add("--device", choices=("gpu", "cpu"), help="default: gpu if there is one")
    add("--gpu", type=list_of(int_from(0)), metavar="LIST", help="GPU ids (default: 0)")
    add("--variant", metavar="NAME", help="variant, as in run_benchmark.py (default: the fastest proven one)")
    add("--workers", type=process_count, metavar="N", help="workers on the CPU or on each GPU")
    add("--threads", type=process_count, metavar="N", help="CPU threads of each worker")
    add("--batch-tokens", type=count, metavar="N", help="tokens per batch, including padding")
    results_help = "results of run_benchmark.py (default: results)"
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=results_help)
    add("--dry-run", action="store_true", help="estimate rows, output size and time, then stop")

    group = parser.add_argument_group("checking")
    add_task_options(group)
    add_original(group)
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument("--no-check", action="store_true", help="report wrong rows at the end instead of stopping")
    exclusive.add_argument("--check-only", action="store_true", help="only check an existing DIR")

    add = parser.add_argument_group("many machines").add_argument
    ray_help = "run on the Ray cluster at ADDRESS; without ADDRESS, start one on this machine"
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help=ray_help)
    add("--shard", type=shard, metavar="K/N", help="label only the K-th of N shares of the input")

    args = parser.parse_args()
    if args.shard and (args.ray or args.check_only or args.overwrite):
        parser.error("--shard cannot be combined with --ray, --check-only or --overwrite")
    if args.gpu and (args.ray or args.device == "cpu"):
        parser.error("--gpu cannot be combined with --ray or --device cpu")
    if args.top_label and (args.labels or args.min_score is not None):
        parser.error("--top-label cannot be combined with --labels or --min-score")
    return args


def shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ArgumentTypeError(f"{text!r} is not like 3/16, from 1/16 to 16/16")
    return int(number), int(count)


if __name__ == "__main__":
    before_imports(parse_arguments)

import numpy as np

from bench.export.ensure import runnable_variants
from bench.files import check_writable
from bench.label import on_ray
from bench.label.folder import locked, refuse_foreign_files
from bench.label.plan import PlanOptions, find_plan, measuring_command, plan_for, report_estimate, worker_specs
from bench.label.pool import LabelPool
from bench.label.record import read_record
from bench.label.rows import OutputSpec, choose_columns
from bench.label.run import check_folder, label, prepare
from bench.label.splits import LabelJob, cut_splits
from bench.model.classification import REGRESSION
from bench.model.resolve import open_model
from bench.processes import helper_process
from bench.start_process import stopped_afterwards
from bench.tables.folders import common_schema, find_files, noting_others, open_tables
from bench.tables.format_csv import Csv
from bench.tables.items import has_text, parts_of
from bench.tables.readers import format_of
from bench.tables.storage import locate


def classify(
    model_id: str,
    texts: list,
    candidate_labels: list[str] | None = None,
    device: str | None = None,
    results_dir: Path = ROOT / "results",
    **options: object,
):
    """Return the probability of each label for texts, or for pairs of texts, as a pandas DataFrame.

        from classify_texts import classify

        classify("cross-encoder/nli-MiniLM2-L6-H768", [("It rains.", "It is wet."), ("It rains.", "It is dry.")])
        classify("cross-encoder/nli-MiniLM2-L6-H768", ["Mix the eggs."], candidate_labels=["cooking", "politics"])

    `options`: hypothesis_template, multi_label, truncation and task, as on the command line. The variant is the fastest
    one that `results_dir` proves for this machine, otherwise FP32 PyTorch; an export that it needs is created in the
    working directory. Values that are no texts, and texts without an answer, have nan. No process is left running.
    Raises UserError.
    """
    import pandas as pd

    items = [tuple(text) if isinstance(text, list) else text for text in texts]
    rows = [i for i, item in enumerate(items) if isinstance(item, str | tuple)]
    usable = [i for i in rows if all(isinstance(part, str) and has_text(part) for part in parts_of(items[i]))]
    given = [items[i] for i in usable]
    is_pair = any(isinstance(item, tuple) for item in given)
    if isinstance(texts, str) or (is_pair and any(isinstance(item, str) or len(item) != 2 for item in given)):
        raise UserError("classify() takes a list of texts, or of pairs of texts")
    asked = dict.fromkeys(("task", *ITEM_OPTIONS)) | {"candidate_labels": candidate_labels, "pair_column": is_pair}
    if unknown := options.keys() - asked.keys():
        raise UserError(f"classify() has no option {min(unknown)}")
    task, task_options = task_choice(Namespace(**asked | options))
    with stopped_afterwards():
        with helper_process() as call:
            model = open_model(model_id, call, task, options=task_options)
            values = np.full((len(items), len(model.labels)), np.nan)
            plan = plan_for(model, given, PlanOptions(device, results_dir=Path(results_dir)), call) if given else None
        if plan:
            specs, _ = worker_specs(model, plan, gpus=[0])
            with LabelPool(specs, plan.batching, folder=None) as pool:
                values[usable] = pool.classify(given, "texts", None).values
    return pd.DataFrame(values, columns=model.labels)


def open_job(args: Namespace, call: Callable) -> LabelJob:
    """Open the model and the input, and define the output. `call` runs a function in a helper process."""
    task, task_options = task_choice(args)
    columns = text_columns(args)
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
    model = open_model(args.model_id, call, task, args.original, task_options).with_thresholds(args.threshold)
    if getattr(model.task, "problem_type", "") != REGRESSION and not 0 <= (args.min_score or 0) <= 1:
        raise UserError(f"--min-score {args.min_score:g}: give a probability, from 0 to 1")
    tables = open_tables(files, Csv.from_options(args), source)
    kept = choose_columns(tables, columns, args.keep_columns, args.keep_text)
    asked = {name: getattr(args, name) for name in OUTPUT_OPTIONS}
    schema = common_schema(tables, list(dict.fromkeys([*kept, *columns])), columns)
    output = OutputSpec(
        schema=schema if args.keep_columns else noting_others(schema, tables),
        text_columns=columns,
        keep_columns=kept,
        model_labels=model.labels,
        labels=args.labels or model.labels,
        **asked,
    )
    output.check(tables)
    options = {f"--{name.replace('_', '-')}": getattr(args, name) for name in RECORDED_OPTIONS}
    if args.candidate_labels:
        options["--candidate-labels"] = model.labels
    return LabelJob(
        model=model,
        source=source,
        folder=folder,
        splits=cut_splits(tables, output, source),
        output=output,
        options=options,
        shard=args.shard,
        overwrite=args.overwrite,
        strict=args.strict,
        no_check=args.no_check,
    )


def main() -> int:
    args = parse_arguments()
    check_writable(CACHE)
    options = PlanOptions(ray=bool(args.ray), **{name: getattr(args, name) for name in PLAN_OPTIONS})
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as helper:
        if args.ray:
            stack.enter_context(on_ray.cluster(args.ray))
        call = helper.enter_context(helper_process())
        job = open_job(args, call)
        if job.model.onnx_precision:
            asked = [options.variant] if options.variant else []
            options = replace(options, variant=runnable_variants(job.model, asked)[0])
        if args.dry_run:
            plan = find_plan(job, options, call)
            given = {name: getattr(args, name) for name in ("task", "threshold", *ITEM_OPTIONS)}
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


if __name__ == "__main__":
    run(main)
