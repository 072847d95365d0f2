"""Labels texts in bulk with an encoder classifier, by the fastest way that is proven to be right.

    python classify_texts.py SamLowe/roberta-base-go_emotions comments.csv.gz --output labelled
    python classify_texts.py ./my-model parquet-folder --output labelled --column text --top-label --device cpu
    python classify_texts.py ./my-model s3://bucket/dumps --output s3://bucket/labelled --shard 3/16 --device gpu
    python classify_texts.py ./my-model /shared/texts --output /shared/labelled --ray auto --device gpu

INPUT is a file of CSV, TSV or JSON Lines, plain, .gz or .zst, or of Parquet; or a folder of them, whose sub-folders of
names like year=2024 give columns. INPUT and DIR may lie in a bucket (s3://, gs://, hf://datasets/...), with the
credentials that pyarrow and huggingface_hub find. DIR gets part-000000-0000000000.parquet, ..., each named by the
number of its file and of its first row there: for every row, in the input's order, its other columns and one float32
column for each label: the probabilities that transformers gives for that text alone. Nulls where a row has no text,
says only that a comment is gone ([removed] and the like), can't be read, or has a token that the model doesn't know;
_bad_rows.jsonl names the last two kinds. Columns of a CSV file stay text, those of JSON are the keys of a file's first
1,000 lines; where a file lacks a column that another has, it is null. Of a text that is longer than the model takes
the beginning counts; with --long windows it is read in windows that overlap by a quarter, and the maximum of each
label counts, with --long windows-mean the mean.

How it runs: as the fastest row, end to end, in results/ that is of this device, these weights and texts of about this
length, and proven to change at most 0.1% of the decisions. Without one a long job first measures, for a minute or 1% of
its time, whichever is less, what is fast on its own texts; a short one takes FP32 PyTorch. --variant, --workers,
--threads and --batch-tokens say otherwise.

After the first part, and at the end, some rows of what was written are compared with transformers' own call on the FP32
original. Rows that are wrong stop the run (--no-check goes on). _receipt.json says what was labelled, how, and what the
comparison found; --check-only writes it for a folder that is there.

A part appears whole or not at all. An interrupted run, started again with the same arguments, goes on behind the last
part. Many machines share the work: --ray has a cluster do it, --shard 3/16 makes a run the third of sixteen, such as
those of a Slurm array. What one machine reads is a whole file, or some row groups of a Parquet file. Once all shards
are done, the same command without --shard checks that nothing is missing, and writes the receipt.

Exit code: 0, 1 if something failed on the way or rows are wrong, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import contextlib
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from bench.files import check_writable
from bench.judge import NOT_WITHIN
from bench.label import on_ray
from bench.label.comparison import Comparison
from bench.label.estimate import say_estimate
from bench.label.job import job_digest, locked, prepare_output, read_job, refuse_foreign_files, what_differs
from bench.label.plan import LabelPlan, find_plan, measuring_command, plan_options, read_plan, worker_specs
from bench.label.pool import LabelPool
from bench.label.receipt import Checker, read_receipt
from bench.label.rows import Counts, OutputSpec
from bench.label.run import label_missing
from bench.label.sample import read_samples
from bench.label.splits import InputSplit, cut_splits, digest_input
from bench.machine import describe_device, process_count
from bench.model.batches import LONG_TEXTS
from bench.model.model import Model
from bench.model.random_model import RANDOM_MODEL
from bench.model.resolve import open_model
from bench.processes import helper_process
from bench.provenance import project_commit, versions
from bench.tables import format_csv
from bench.tables.folders import common_schema, find_files, nested_columns, open_tables
from bench.tables.readers import Table
from bench.tables.storage import locate
from bench.timing import time_words
from runtimes import VARIANTS
from utils import CACHE, Parser, RunError, UserError, int_from, list_of, run, say

LONG_PART = 1800  # seconds
# what a receipt says of the run that labelled, not of the rows
RUN_FIELDS = "workers", "threads", "export", "texts_of_this_run", "seconds", "messages/s", "waiting"


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add, whole = parser.add_argument, int_from(1)
    add("model_id", metavar="MODEL", help=f"Hub id, local folder, or {RANDOM_MODEL}")
    add("input", metavar="INPUT", help="a file of CSV, TSV, JSON Lines or Parquet, or a folder")
    add("--output", metavar="DIR", required=True, help="where the parts go")
    add("--column", default="body", help="the text column (default: body)")
    format_csv.add_options(parser)
    add("--keep-columns", type=list_of(str.strip), metavar="LIST", help="columns to copy (default: all but the text)")
    add("--keep-text", action="store_true", help="copy the text, too")
    add("--top-label", action="store_true", help="only the most probable label and its score")
    add("--labels", type=list_of(str.strip), metavar="LIST", help="only these labels (default: all)")
    add("--min-score", type=float, metavar="SCORE", help="write no score below this one, but null")
    add("--float16", action="store_true", help="scores of 2 bytes, right to 0.0005, rather than 4")
    add(
        "--long", choices=LONG_TEXTS, default="cut", help="what becomes of texts longer than the model takes: see above"
    )
    add("--token-count", action="store_true", help="add a column of token counts, estimated for very long texts")
    add("--prefix", default="", help="what the names of the new columns begin with (default: nothing)")
    add("--limit", type=whole, help="only so many rows, the first ones (default: all)")
    add("--rows-per-file", type=whole, default=100_000, metavar="N", help="rows of a part (default: 100000)")
    add("--device", choices=("gpu", "cpu"), help="default: gpu if there is one")
    add("--gpu", type=list_of(int_from(0)), metavar="LIST", help="GPU ids, a worker each (default: 0)")
    add("--variant", choices=VARIANTS, metavar="NAME", help=f"one of {', '.join(VARIANTS)}")
    add("--workers", type=process_count, help="workers, on a GPU for each of them")
    add("--threads", type=process_count, help="CPU threads of each worker")
    add("--batch-tokens", type=whole, help="tokens in a batch, padding counted")
    add("--results-dir", type=Path, default=Path("results"), help="of run_benchmark.py (default: results)")
    threshold_help = "above which a label holds: a number, or a JSON file of label -> number (default: 0.5)"
    add("--threshold", metavar="NUMBER|FILE", help=threshold_help)
    add("--strict", action="store_true", help="stop at a row that can't be read or answered, rather than set it aside")
    checking = parser.add_mutually_exclusive_group()
    checking.add_argument("--no-check", action="store_true", help="go on where rows are wrong, and say it at the end")
    checking.add_argument("--check-only", action="store_true", help="label nothing: compare rows of DIR as it is")
    add(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="run on a Ray cluster (default: one on this machine)"
    )
    add("--shard", type=shard, metavar="K/N", help="label only the K-th of N shares of the input, as one of N runs")
    add("--dry-run", action="store_true", help="say how many rows, hours and gigabytes it will be, and stop")
    add("--overwrite", action="store_true", help="start anew where DIR holds other parts")
    return parser.parse_args()


def shard(text: str) -> tuple[int, int]:
    """Reads which share of how many a run labels: `3/16`."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ArgumentTypeError(f"{text!r} is not like 3/16, from 1/16 to 16/16")
    return int(number), int(count)


def choose_columns(tables: list[Table], text_column: str, keep: list[str] | None, keep_text: bool) -> list[str]:
    """Returns the columns to copy: those to `keep`, or all but the text, and the text if asked for.

    Raises UserError if one to `keep` can't be copied.
    """
    others = {text_column, *(lists := nested_columns(tables))}
    if never := [name for name in keep or () if name in lists]:
        raise UserError(f"--keep-columns: {never[0]!r} holds lists or objects in JSON, which can't be copied")
    all_but_text = [name for table in tables for name in table.schema.names if name not in others]
    keep = all_but_text if keep is None else [name for name in keep if name]
    return list(dict.fromkeys([*keep, *[text_column] * keep_text]))


def output_spec(args: Namespace, model: Model, tables: list[Table]) -> OutputSpec:
    """Returns what is to be written. Raises UserError if columns are missing, or two would have the same name."""
    columns = choose_columns(tables, args.column, args.keep_columns, args.keep_text)
    spec = OutputSpec(
        schema=common_schema(tables, list(dict.fromkeys([*columns, args.column])), [args.column]),
        columns=columns,
        text_column=args.column,
        labels=model.labels,
        written=args.labels or model.labels,
        top_label=args.top_label,
        half=args.float16,
        min_score=args.min_score,
        prefix=args.prefix,
        rows=args.rows_per_file,
        limit=args.limit,
        long=args.long,
        token_count=args.token_count,
    )
    if unknown := [name for name in spec.written if name not in model.labels]:
        raise UserError(f"--labels: the model has no label {unknown[0]!r}; it has {', '.join(model.labels)}")
    if spec.top_label and (args.labels or args.min_score is not None):
        raise UserError("--top-label goes with neither --labels nor --min-score")
    names = [*spec.columns, *spec.added]
    if clash := [name for i, name in enumerate(names) if name in names[:i]]:
        way_out = "--prefix renames the new columns, --keep-columns leaves out others"
        raise UserError(f"two columns would be called {clash[0]!r}: {way_out}")
    if some := [name for name in columns if any(name not in table.schema.names for table in tables)]:
        say(f"columns that not every file has are null in the others: {', '.join(some)}")
    return spec


# ----------------------------------------------------------------------------------------------------------- labelling


def prepare(
    args: Namespace, model: Model, splits: list[InputSplit], spec: OutputSpec, plan: LabelPlan
) -> tuple[LabelPool, Checker]:
    """Makes the output folder ready, and what labels and checks as a plan says; exports the model if need be.

    Raises UserError if the folder holds parts of another job, RunError if its rows are wrong.
    """
    if spec.token_count and VARIANTS[plan.variant].takes_texts:
        raise UserError(f"--token-count: {plan.variant} takes the texts themselves and counts no tokens")
    specs, origin = worker_specs(model, plan, args.gpu or [0])
    number, count = args.shard or (1, 1)
    own = splits[number - 1 :: count]
    workers = min(on_ray.count_actors(specs[0].device, args.workers), len(own)) if args.ray else len(specs)
    variant, gpu = VARIANTS[plan.variant], specs[0].device.gpu
    job = {"input": digest_input(splits), "model": model.weights_id, "options": plan_options(args)}
    job |= asked_of_output(args, spec) | {"schema": str(spec.schema), "export": specs[0].export_id}
    job["plan"] = asdict(replace(plan, speed=0.0))  # two shards that plan alike may have measured otherwise
    job["versions"] = versions("tokenizers", "transformers", *variant.packages)
    prepare_output(args.output, job, args.overwrite, alone=not args.shard)
    receipt = read_receipt(args.output, shard_name(args))
    if receipt.get("verdict") == NOT_WITHIN and not args.no_check:
        words = f"{args.output}: its rows are {NOT_WITHIN}: {receipt['reason']}"
        raise RunError(f"{words}; --no-check goes on, --overwrite starts anew")
    say(f"labelling by {plan}; {origin}")
    rows = min(spec.rows, sum(split.estimate_rows() for split in own)) if plan.speed and not receipt else 0
    if rows and rows / plan.speed > LONG_PART:
        part = f"a part of {rows:,} rows takes about {time_words(rows / plan.speed)}"
        say(f"{part}, which is lost where a run is interrupted: --rows-per-file makes smaller ones")
    about = {"variant": plan.variant, "workers": workers, "threads": plan.threads, "batches": str(plan.batching)}
    about |= {"export": origin, "export_id": specs[0].export_id, "versions": job["versions"]}
    about |= about_now(args, model, own)
    spec = replace(spec, job=job_digest(job))
    comparison = Comparison(model, variant.precision, spec, args.output, None if args.ray else gpu)
    stops = {"stops": not args.no_check, "strict": args.strict, "shard": shard_name(args)}
    checker = Checker(comparison, about, own, **stops)
    return LabelPool(specs, plan.batching, args.output), checker


def label_all(args: Namespace, pool: LabelPool, checker: Checker) -> None:
    """Labels what is missing, says how fast, and has the whole checked. Raises as label_missing."""
    made, seconds = label_missing(pool, checker, checker.about["workers"] if args.ray else 0)
    splits, spec, folder = checker.splits, checker.comparison.output, pool.folder
    own = checker.check_complete()
    in_all = sum(footer.rows for footer in own.values())
    if made.rows:
        checker.about |= say_speed(made, seconds, in_all, pool.busy)
    else:
        say(f"all {in_all:,} rows are labelled already" if splits else "there are more shards than files to share")
    receipt, model = read_receipt(folder, checker.shard), checker.comparison.model
    decisions = checker.comparison.task.decision_words
    of_these_rows = (receipt.get("rows"), receipt.get("decisions_are")) == (in_all, decisions)
    if made.rows and (args.shard or made.rows == in_all):
        checker.finish(checker.later, own)
    elif not args.shard and (made.rows or not of_these_rows):  # it is an earlier run's, or there is none
        check_folder(args, model, splits, spec, run=checker.about)
    if args.shard:
        say(f"shard      {shard_name(args)[1:]} is done; once all are, the same command without --shard checks them")


def say_speed(made: Counts, seconds: float, in_all: int, busy: float) -> dict:
    """Says what a run labelled and how fast; returns it for the receipt.

    `busy`: seconds in which the model had a batch to run, 0 if that is not known.
    """
    words = f"{made.texts:,} texts, " + f"{made.tokens:,} tokens, " * bool(made.tokens)  # not known of texts
    words += f"{seconds:.1f} s, {made.texts / seconds:,.1f} messages/s" if made.texts else "no row has a text"
    said = {"texts_of_this_run": made.texts, "seconds": round(seconds, 1)}
    said["messages/s"] = round(made.texts / seconds, 1)
    if busy:
        said["waiting"] = round(max(1 - busy / seconds, 0), 3)
        words += f", the model waited {said['waiting']:.1%} of the time"
    say(f"labelled   {words}; {in_all:,} rows in all")
    return said


def check_folder(args: Namespace, model: Model, splits: list[InputSplit], spec: OutputSpec, run: dict) -> None:
    """Compares rows of an output folder as it is with the original, and writes its receipt.

    `run`: what the receipt says of a run, if there was one now. Raises UserError where the folder's parts are not those
    of the input or of the model, RunError where rows are wrong.
    """
    job = read_job(args.output)
    if not run and job.get("model") != model.weights_id:
        raise UserError(f"--check-only: {args.output} was labelled with other weights than those of {model.id}")
    if not run and job.get("input") != digest_input(splits):
        raise UserError(f"--check-only: {args.output} holds no parts of {args.input}")
    asked = asked_of_output(args, spec)
    if not run and (other := what_differs({key: job.get(key) for key in asked}, asked)):
        raise UserError(f"--check-only: {args.output} was made otherwise ({other}): give the same options")
    plan = read_plan(job)
    on_gpu = plan is not None and plan.device == "gpu" and not args.ray and args.device != "cpu"
    gpu = (args.gpu or [0])[0] if on_gpu else None
    made = {"export_id": job.get("export", ""), "versions": job.get("versions", {})}
    made |= {"variant": plan.variant if plan else "", "batches": str(plan.batching) if plan else ""}
    before = {name: value for name, value in (read_receipt(args.output) | run).items() if name in RUN_FIELDS}
    precision = VARIANTS[plan.variant].precision if plan else ""
    comparison = Comparison(model, precision, replace(spec, job=job_digest(job)), args.output, gpu)
    checker = Checker(comparison, before | made | about_now(args, model, splits), splits, stops=not args.no_check)
    own = checker.check_complete()
    checker.finish(read_samples(splits, own, spec, model), own)


def asked_of_output(args: Namespace, spec: OutputSpec) -> dict:
    """Returns what the command line asks of the output, as a job keeps it."""
    derived = "schema", "job"
    asked = {name: value for name, value in asdict(spec).items() if name not in derived}
    return asked | {"csv": [args.delimiter, args.encoding]}


def about_now(args: Namespace, model: Model, splits: list[InputSplit]) -> dict:
    """Returns what a receipt says of the model and the input, and of where and when rows are compared."""
    about = {"model": model.id, "weights_id": model.weights_id, "input": str(locate(args.input)), "column": args.column}
    about["files"] = {f"{one.file:06}": str(one.table.file) for one in splits}  # by the number in a part's name
    about |= {"commit": project_commit(), "machine": describe_device(None).name}
    return about | {"date": datetime.now(UTC).strftime("%Y-%m-%d")}


def shard_name(args: Namespace) -> str:
    """Returns what the names of a shard's own files end in; nothing for the whole."""
    return "-{}-of-{}".format(*args.shard) if args.shard else ""


def open_job(args: Namespace, call: Callable) -> tuple[Model, list[InputSplit], OutputSpec]:
    """Opens the model and the input, and says what is to be written. Raises UserError if one of them can't be used."""
    place, args.output = locate(args.input), locate(args.output)
    files = find_files(place)
    if args.output.is_in(place) or any(file.is_in(args.output) for file in files):
        raise UserError(f"{args.output} and the input lie in each other: name another folder")
    model = open_model(args.model_id, call).with_thresholds(args.threshold)
    csv = format_csv.Csv(args.delimiter, args.encoding)
    tables = open_tables(files, csv, place)
    if (names := nested_columns(tables)) and args.keep_columns is None:
        say(f"columns that hold lists or objects are left out: {', '.join(names)}")
    spec = output_spec(args, model, tables)
    if args.check_only:
        if not (job := read_job(args.output)):
            raise UserError(f"--check-only: {args.output} holds no parts")
        spec = replace(spec, rows=job.get("rows", spec.rows), limit=job.get("limit"))
    return model, cut_splits(tables, spec), spec


def main() -> int:
    args = parse_arguments()
    if args.shard and (args.ray or args.check_only or args.overwrite):
        raise UserError("--shard goes with neither --ray nor --check-only nor --overwrite")
    check_writable(CACHE)
    with on_ray.cluster(args.ray) if args.ray else contextlib.nullcontext(), contextlib.ExitStack() as helper:
        call = helper.enter_context(helper_process())
        model, splits, spec = open_job(args, call)
        if args.dry_run:
            plan = find_plan(args, model, splits, call)
            say_estimate(splits, spec, plan, measuring_command(args, plan, splits[0].table.file))
            return 0
        if not args.check_only:
            refuse_foreign_files(args.output)
        with contextlib.ExitStack() as held:
            held.enter_context(locked(args.output, shared=bool(args.shard)))
            if args.shard:
                held.enter_context(locked(args.output, f"_lock{shard_name(args)}"))
            if args.check_only:
                helper.close()
                check_folder(args, model, splits, spec, run={})
                return 0
            with locked(args.output, "_lock-plan", wait=True):  # all shards plan as the first
                plan = find_plan(args, model, splits, call)
                helper.close()
                pool, checker = prepare(args, model, splits, spec, plan)
            label_all(args, pool, checker)
    return 0


if __name__ == "__main__":
    run(main)
