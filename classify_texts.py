"""Labels texts in bulk with an encoder classifier, by the fastest way that is proven to be right.

    python classify_texts.py SamLowe/roberta-base-go_emotions comments.csv.gz --output labelled
    python classify_texts.py ./my-model parquet-folder --output labelled --column text --top-label --device cpu
    python classify_texts.py ./my-model /shared/texts --output /shared/labelled --ray auto --device gpu

INPUT is a file of CSV, TSV or JSON Lines, plain, .gz or .zst, or of Parquet; or a folder of them, whose sub-folders of
names like year=2024 give columns. DIR gets part-0000000.parquet, ...: for every row, in the input's order, its other
columns and one float32 column for each label: the probabilities that transformers gives for that text alone. Nulls
where a row has no text, says only that a comment is gone ([removed] and the like), can't be read, or has a token that
the model doesn't know; _bad_rows.jsonl names the last two kinds. Columns of a CSV file stay text.

How it runs: as the fastest row, end to end, in results/ that is of this device, these weights and texts of about this
length, and proven to change at most 0.1% of the decisions. Without one a long job first measures, for a minute or 1% of
its time, whichever is less, what is fast on its own texts; a short one takes FP32 PyTorch. --variant, --workers,
--threads and --batch-tokens say otherwise.

After the first part, and at the end, some rows of what was written are compared with transformers' own call on the FP32
original. Rows that are wrong stop the run (--no-check goes on). _receipt.json says what was labelled, how, and what the
comparison found; --check-only writes it for a folder that is there.

A part appears whole or not at all. An interrupted run, started again with the same arguments, goes on behind the last
part.

Exit code: 0, 1 if something failed on the way or rows are wrong, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import contextlib
import itertools
import math
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from bench.classifier import ClassifierSpec
from bench.export.ensure import ensure_export
from bench.files import check_writable, digest
from bench.inputs import format_csv
from bench.inputs.batches import Batching
from bench.inputs.datasets import has_text
from bench.inputs.model import Model
from bench.inputs.random_model import RANDOM_MODEL
from bench.inputs.readers import Table, common_schema, find_files, open_table, say_left_out
from bench.inputs.resolve import open_model
from bench.judge import NOT_WITHIN
from bench.label import on_ray, output
from bench.label.estimate import say_estimate
from bench.label.first_look import Job, head_texts, look, mean_tokens
from bench.label.plan import PLAN_OPTIONS, LabelPlan, choose_plan, fastest_valid_row, worker_devices
from bench.label.pool import LabelPool
from bench.label.progress import Progress
from bench.label.receipt import Checker, Comparison, count_parts, count_rows, read_receipt
from bench.label.rows import Counts, OutputSpec, estimate_rows, read_parts
from bench.label.sample import add_sample, pick_sample
from bench.machine import DeviceInfo, cpu_cores, describe_device, process_count
from bench.naming import slug
from bench.processes import helper_process, run_in_subprocess
from bench.provenance import project_commit, versions
from bench.variants import Device, digest_export
from runtimes import VARIANTS
from utils import CACHE, Parser, RunError, UserError, int_from, list_of, run, say

OF_A_RUN = "workers", "threads", "export", "texts_of_this_run", "seconds", "messages/s"  # what a receipt alone knows


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add, whole = parser.add_argument, int_from(1)
    add("model_id", metavar="MODEL", help=f"Hub id, local folder, or {RANDOM_MODEL}")
    add("input", metavar="INPUT", type=Path, help="a file of CSV, TSV, JSON Lines or Parquet, or a folder")
    add("--output", metavar="DIR", type=Path, required=True, help="where the parts go")
    add("--column", default="body", help="the text column (default: body)")
    format_csv.add_options(parser)
    add("--keep-columns", type=list_of(str.strip), metavar="LIST", help="columns to copy (default: all but the text)")
    add("--keep-text", action="store_true", help="copy the text, too")
    add("--top-label", action="store_true", help="only the most probable label and its score")
    add("--labels", type=list_of(str.strip), metavar="LIST", help="only these labels (default: all)")
    add("--min-score", type=float, metavar="SCORE", help="write no score below this one, but null")
    add("--float16", action="store_true", help="scores of 2 bytes, right to 0.0005, rather than 4")
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
    add("--dry-run", action="store_true", help="say how many rows, hours and gigabytes it will be, and stop")
    add("--overwrite", action="store_true", help="start anew where DIR holds other parts")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------- what is asked, and how


def choose_columns(table: Table, text_column: str, keep: list[str] | None, keep_text: bool) -> list[str]:
    """Returns the columns to copy: those to `keep`, or all but the text, and the text if asked for."""
    all_but_text = [name for name in table.schema.names if name != text_column]
    keep = all_but_text if keep is None else [name for name in keep if name]
    return list(dict.fromkeys([*keep, *[text_column] * keep_text]))


def output_spec(args: Namespace, model: Model, tables: list[Table]) -> OutputSpec:
    """Returns what is to be written. Raises UserError if columns are missing, or two would have the same name."""
    columns = choose_columns(tables[0], args.column, args.keep_columns, args.keep_text)
    spec = OutputSpec(
        schema=common_schema(tables, list(dict.fromkeys([*columns, args.column])), args.column),
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
    )
    if unknown := [name for name in spec.written if name not in model.labels]:
        raise UserError(f"--labels: the model has no label {unknown[0]!r}; it has {', '.join(model.labels)}")
    if spec.top_label and (args.labels or args.min_score is not None):
        raise UserError("--top-label goes with neither --labels nor --min-score")
    names = [*spec.columns, *spec.added]
    if clash := [name for i, name in enumerate(names) if name in names[:i]]:
        way_out = "--prefix renames the new columns, --keep-columns leaves out others"
        raise UserError(f"two columns would be called {clash[0]!r}: {way_out}")
    return spec


def find_device(device: str | None, gpus: list[int] | None, ray: str | None) -> tuple[str, DeviceInfo]:
    """Returns `gpu` or `cpu`, and what describes the device; on Ray those of one of its machines."""
    if gpus and (ray or device == "cpu"):
        raise UserError("--gpu goes with neither --ray nor --device cpu")
    call = on_ray.on_a_node if ray else run_in_subprocess
    if device != "cpu":
        try:
            return "gpu", call(describe_device, gpus[0] if gpus else 0)
        except UserError:
            if device == "gpu" or gpus:
                raise
    return "cpu", call(describe_device, None)


def find_plan(args: Namespace, model: Model, tables: list[Table], call: Callable) -> LabelPlan:
    """Returns how to label: as an interrupted run with the same options and weights, or as choose_plan says.

    `call` runs a function in a helper process.
    """
    before = output.read_job(args.output)
    same = (before.get("options"), before.get("model")) == (plan_options(args), model.weights_id)
    if same and not args.overwrite and (plan := read_plan(before)):
        return plan  # though by now another may be the fastest in results/
    kind, info = find_device(args.device, args.gpu, args.ray)
    texts = head_texts(tables, args.column)
    tokens = call(mean_tokens, model, texts)
    measured = fastest_valid_row(args.results_dir, slug(info.name), model, tokens, args.variant)
    if not measured and not args.variant and not args.ray:
        rows = estimate_rows(tables, args.limit)
        device = Device((args.gpu or [0])[0] if kind == "gpu" else None, args.threads or cpu_cores())
        measured = look(Job(args.input.name, model, texts, rows), info, device, args.results_dir, call)
    if not measured and not args.variant and args.ray:
        say("           run_benchmark.py on a machine of the cluster finds a faster way, --variant names one")
    return choose_plan(kind, measured, plan_options(args))


def read_plan(job: dict) -> LabelPlan | None:
    """Returns the plan of a job; None where it is damaged, or of a version of ours that had other fields."""
    with contextlib.suppress(KeyError, TypeError):
        plan = LabelPlan(**job["plan"] | {"batching": Batching(**job["plan"]["batching"])})
        if plan.variant in VARIANTS:
            return plan
    return None


def plan_options(args: Namespace) -> dict:
    return {name: getattr(args, name) for name in PLAN_OPTIONS}


def worker_specs(model: Model, plan: LabelPlan, gpus: list[int]) -> tuple[list[ClassifierSpec], str]:
    """Returns what each worker loads, which is exported if need be, and a few words that say where it is from."""
    exported, origin, variant = None, model.id, VARIANTS[plan.variant]
    if variant.export:
        exported, origin = ensure_export(model, variant.export.precision)
    export_id = digest_export(exported) if exported else ""
    devices = worker_devices(plan, gpus)
    return [ClassifierSpec(model, plan.variant, exported, device, export_id) for device in devices], origin


# ----------------------------------------------------------------------------------------------------------- labelling


def label_all(args: Namespace, pool: LabelPool, tables: list[Table], spec: OutputSpec, checker: Checker) -> None:
    """Writes the parts that are missing, has them checked, and says how fast.

    Raises UserError for an input that can't be read, and RunError if the workers fail twice over a part or if its rows
    are wrong.
    """
    folder, total = pool.folder, estimate_rows(tables, spec.limit)
    rows = {n: min(spec.rows, total - n * spec.rows) for n in range(math.ceil(total / spec.rows))}  # of each part
    there = [n for n in rows if output.is_whole(folder / output.part_name(n), rows[n])]
    first = next(n for n in itertools.count() if n not in there)
    done, made, start = sum(rows[n] for n in there), Counts(), time.monotonic()

    with pool, Progress(total, done) as progress:

        def show(texts: list[int | None]) -> None:
            progress.show(done + sum(filter(None, texts)))

        if args.ray:
            job = on_ray.RayJob(pool.specs[0], pool.batching, tables, spec, folder)
            labelled = on_ray.label_on_ray([n for n in rows if n not in there], job, args.workers)
        else:
            labelled = pool.label_parts(tables, spec, first, show)
        for part in labelled:
            made, done = made + part.counts, done + part.counts.rows
            progress.show(done)
            if part.counts.bad > (0 if args.strict else part.counts.rows / 2):
                output.stop_at_bad_row(folder, "--strict" if args.strict else "so is more than half of a part")
            checker.add(part.sample)
        progress.bar.total = done
    in_all, seconds = output.count_rows(folder), time.monotonic() - start - pool.loading - checker.comparison.seconds
    if not made.rows:
        say(f"all {in_all:,} rows are labelled already")
        return
    words = f"{made.texts:,} texts, " + f"{made.tokens:,} tokens, " * bool(made.tokens)  # not known where texts go in
    words += f"{seconds:.1f} s, {made.texts / seconds:,.1f} messages/s" if made.texts else "no row has a text"
    say(f"labelled   {words}; {in_all:,} rows in all")
    checker.about |= {"texts_of_this_run": made.texts, "seconds": round(seconds, 1)}
    checker.about["messages/s"] = round(made.texts / seconds, 1)
    if not there:  # else rows of all parts are compared, see label()
        checker.finish(checker.later, count_parts(folder))


def check_folder(args: Namespace, model: Model, tables: list[Table], spec: OutputSpec, run: dict) -> None:
    """Compares rows of an output folder as it is with the original, and writes its receipt.

    `run`: what the receipt says of a run, if there was one now. Raises UserError where the folder's parts are not those
    of the input or of the model, RunError where rows are wrong.
    """
    parts = output.part_files(args.output)
    if not parts:
        raise UserError(f"--check-only: {args.output} holds no parts")
    job, samples, texts, number = output.read_job(args.output), [], 0, -1
    if job.get("model") not in (None, model.weights_id):
        raise UserError(f"--check-only: {args.output} was labelled with other weights than those of {model.id}")
    spec = replace(spec, rows=max(1, output.rows_of(parts[0])))
    for number, table in enumerate(read_parts(tables, spec, skip=0)):
        output.check_part(args.output, number, len(table), spec)
        sample = pick_sample(number, table, spec.text_column, model)
        samples = add_sample(samples, sample) if samples else [sample]
        texts += sum(map(has_text, table[spec.text_column].to_pylist()))
    if number + 1 != len(parts):
        raise UserError(
            f"--check-only: {args.output} has {len(parts)} parts, the input {number + 1}: is it of this input?"
        )
    counted = count_parts(args.output) or count_rows(output.count_rows(args.output), texts)
    plan = read_plan(job)
    on_gpu = plan is not None and plan.device == "gpu" and not args.ray and args.device != "cpu"
    gpu = (args.gpu or [0])[0] if on_gpu else None
    made = {"export_id": job.get("export", ""), "versions": job.get("versions", {})}
    made |= {"variant": plan.variant if plan else "", "batches": str(plan.batching) if plan else ""}
    before = {name: value for name, value in (read_receipt(args.output) | run).items() if name in OF_A_RUN}
    precision = VARIANTS[plan.variant].precision if plan else ""
    comparison = Comparison(model, precision, spec, args.output, gpu)
    Checker(comparison, before | made | about_now(model), stops=not args.no_check).finish(samples, counted)


def label(args: Namespace, model: Model, tables: list[Table], spec: OutputSpec, plan: LabelPlan) -> None:
    """Labels all rows into the output folder, as a plan says."""
    specs, origin = worker_specs(model, plan, args.gpu or [0])
    variant = VARIANTS[plan.variant]
    files = [table.path for table in tables]
    job = {"input": digest(files), "model": model.weights_id, "options": plan_options(args), "plan": asdict(plan)}
    job |= asdict(spec) | {"schema": str(spec.schema), "export": specs[0].export_id}
    job["versions"] = versions("tokenizers", "transformers", *variant.packages)
    output.prepare_output(args.output, job, args.overwrite)
    if read_receipt(args.output).get("verdict") == NOT_WITHIN and not args.no_check:
        words = f"{args.output}: its rows are {NOT_WITHIN}: {read_receipt(args.output)['reason']}"
        raise RunError(f"{words}; --no-check goes on, --overwrite starts anew")
    say(f"labelling by {plan}; {origin}")
    about = {"variant": plan.variant, "workers": len(specs), "threads": plan.threads, "batches": str(plan.batching)}
    about |= {"export": origin, "export_id": specs[0].export_id, "versions": job["versions"]} | about_now(model)
    gpu = specs[0].device.gpu
    comparison = Comparison(model, variant.precision, spec, args.output, None if args.ray else gpu)
    checker = Checker(comparison, about, stops=not args.no_check)
    label_all(args, LabelPool(specs, plan.batching, args.output), tables, spec, checker)
    receipt, rows = read_receipt(args.output), output.count_rows(args.output)
    if (receipt.get("rows"), receipt.get("decisions_are")) != (rows, model.rule.words):  # of an earlier run, or none
        check_folder(args, model, tables, spec, checker.about)


def about_now(model: Model) -> dict:
    """Returns what a receipt says of the model, and of where and when rows are compared."""
    about = {"model": model.id, "weights_id": model.weights_id, "decisions_are": model.rule.words}
    about |= {"commit": project_commit(), "machine": describe_device(None).name}
    return about | {"date": datetime.now(UTC).strftime("%Y-%m-%d")}


def main() -> int:
    args = parse_arguments()
    files = find_files(args.input.absolute())
    if args.ray and any(file.suffix.lower() != ".parquet" for file in files):
        raise UserError("on Ray the input is Parquet, of which each machine can read its part: convert it first")
    check_writable(CACHE)
    args.output = args.output.absolute()
    if inside := [file for file in files if args.output.resolve() in file.resolve().parents]:
        raise UserError(f"{inside[0]} is in the output folder: name another one")
    with on_ray.cluster(args.ray) if args.ray else contextlib.nullcontext():
        with helper_process() as call:
            model = open_model(args.model_id, call).with_thresholds(args.threshold)
            csv = format_csv.Csv(args.delimiter, args.encoding)
            tables = [open_table(file, csv, args.input.absolute()) for file in files]
            say_left_out(tables)
            spec = output_spec(args, model, tables)
            plan = None if args.check_only else find_plan(args, model, tables, call)
        if args.dry_run and plan:
            say_estimate(tables, spec, plan)
            return 0
        with output.locked(args.output):
            if plan:
                label(args, model, tables, spec, plan)
            else:
                check_folder(args, model, tables, spec, run={})
    return 0


if __name__ == "__main__":
    run(main)
