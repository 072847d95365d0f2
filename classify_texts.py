"""Labels texts in bulk with an encoder classifier, by the fastest way that is not known to be wrong.

    python classify_texts.py SamLowe/roberta-base-go_emotions comments.csv.gz --output labelled
    python classify_texts.py ./my-model parquet-folder --output labelled --column text --top-label --device cpu
    python classify_texts.py ./my-model /shared/texts --output /shared/labelled --ray auto --device gpu

INPUT is a CSV, CSV.gz, Parquet or JSON Lines (.zst) file, or a folder of them. DIR gets part-00000.parquet, ...: for
every row, in the input's order, its other columns and one float32 column for each label: the probabilities that
transformers gives for that text alone. Nulls where a row has no text, says only that a comment is gone ([removed] and
the like), or has a token that the model doesn't know. Columns of a CSV file stay text.

How it runs: as the fastest row, end to end, that run_benchmark.py saved for this device and these weights and that is
not known to change more than 0.1% of the decisions. Without one, onnx-fp16 on a GPU, else the best precision that the
CPU computes natively. --variant, --workers, --threads and --batch-tokens say otherwise.

A part appears whole or not at all. An interrupted run, started again with the same arguments, goes on behind the last
part.

Exit code: 0, 1 if something failed on the way, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import contextlib
import itertools
import math
import sys
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.classifier import ClassifierSpec
from bench.export.ensure import ensure_export
from bench.files import check_writable, digest
from bench.inputs.batches import Batching
from bench.inputs.model import Model
from bench.inputs.random_model import RANDOM_MODEL
from bench.inputs.readers import Table, common_schema, find_files, open_table
from bench.inputs.resolve import open_model
from bench.label import on_ray, output
from bench.label.output import OutputSpec
from bench.label.plan import PLAN_OPTIONS, LabelPlan, choose_plan, fastest_valid_row, worker_devices
from bench.label.pool import LabelPool
from bench.machine import describe_device, process_count
from bench.naming import slug
from bench.processes import run_in_subprocess
from bench.provenance import versions
from bench.variants import digest_export
from runtimes import VARIANTS
from utils import CACHE, Parser, UserError, int_from, list_of, run, say


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add, whole = parser.add_argument, int_from(1)
    add("model_id", metavar="MODEL", help=f"Hub id, local folder, or {RANDOM_MODEL}")
    add("input", metavar="INPUT", type=Path, help="a CSV, CSV.gz, Parquet or .zst file, or a folder of them")
    add("--output", metavar="DIR", type=Path, required=True, help="where the parts go")
    add("--column", default="body", help="the text column (default: body)")
    add("--keep-columns", type=list_of(str.strip), metavar="LIST", help="columns to copy (default: all but the text)")
    add("--keep-text", action="store_true", help="copy the text, too")
    add("--top-label", action="store_true", help="only the most probable label and its score")
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
    add(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="run on a Ray cluster (default: one on this machine)"
    )
    add("--overwrite", action="store_true", help="start anew where DIR holds other parts")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------- what is asked, and how


def choose_columns(table: Table, text_column: str, keep: list[str] | None, keep_text: bool) -> list[str]:
    """Returns the columns to copy: those to `keep`, or all but the text, and the text if asked for."""
    all_but_text = [name for name in table.schema.names if name != text_column]
    keep = all_but_text if keep is None else [name for name in keep if name]
    return list(dict.fromkeys([*keep, *[text_column] * keep_text]))


def check_names(spec: OutputSpec) -> None:
    """Raises UserError if two columns would have the same name."""
    names = [*spec.columns, *spec.added]
    if clash := [name for i, name in enumerate(names) if name in names[:i]]:
        way_out = "--prefix renames the new columns, --keep-columns leaves out others"
        raise UserError(f"two columns would be called {clash[0]!r}: {way_out}")


def find_device(device: str | None, gpus: list[int] | None, ray: str | None) -> tuple[str, str]:
    """Returns `gpu` or `cpu`, and the device's name as it is in results/; on Ray those of one of its machines."""
    if gpus and (ray or device == "cpu"):
        raise UserError("--gpu goes with neither --ray nor --device cpu")
    call = on_ray.on_a_node if ray else run_in_subprocess
    if device != "cpu":
        try:
            return "gpu", slug(call(describe_device, gpus[0] if gpus else 0).name)
        except UserError:
            if device == "gpu" or gpus:
                raise
    return "cpu", slug(call(describe_device, None).name)


def find_plan(args: Namespace, weights_id: str) -> LabelPlan:
    """Returns how to label: as an interrupted run with the same options and weights, or as choose_plan says."""
    before = output.read_job(args.output)
    if (before.get("options"), before.get("model")) == (plan_options(args), weights_id) and not args.overwrite:
        with contextlib.suppress(KeyError, TypeError):  # it is damaged, or of a version of ours that had other fields
            plan = LabelPlan(**before["plan"] | {"batching": Batching(**before["plan"]["batching"])})
            if plan.variant in VARIANTS:
                return plan  # though by now another may be the fastest in results/
    device, name = find_device(args.device, args.gpu, args.ray)
    measured = fastest_valid_row(args.results_dir, name, weights_id, args.variant)
    return choose_plan(device, measured, plan_options(args))


def plan_options(args: Namespace) -> dict:
    return {name: getattr(args, name) for name in PLAN_OPTIONS}


def worker_specs(model: Model, plan: LabelPlan, gpus: list[int]) -> list[ClassifierSpec]:
    """Returns what each worker loads, which is exported if need be, and says so."""
    exported, origin, variant = None, model.id, VARIANTS[plan.variant]
    if variant.export:
        exported, origin = ensure_export(model, variant.export.precision)
    say(f"labelling by {plan}; {origin}")
    export_id = digest_export(exported) if exported else ""
    devices = worker_devices(plan, gpus)
    return [ClassifierSpec(model, plan.variant, exported, device, export_id) for device in devices]


# ----------------------------------------------------------------------------------------------------------- labelling


def label_all(
    pool: LabelPool, tables: list[Table], spec: OutputSpec, ray_workers: int | None, on_cluster: bool
) -> None:
    """Writes the parts that are missing, and says how fast.

    Raises UserError for an input that can't be read, and RunError if the workers fail twice over a part.
    """
    folder, total = pool.folder, min(sum(table.estimate_rows() for table in tables), spec.limit or sys.maxsize)
    rows = {n: min(spec.rows, total - n * spec.rows) for n in range(math.ceil(total / spec.rows))}  # of each part
    there = [n for n in rows if output.is_whole(folder / output.part_name(n), rows[n])]
    first = next(n for n in itertools.count() if n not in there)
    done, made, counts, start = sum(rows[n] for n in there), 0, np.zeros(3, dtype=int), time.monotonic()
    with pool, tqdm(total=total, initial=done, unit=" rows", disable=None) as progress:

        def show(texts: list[int | None]) -> None:
            progress.update(done + sum(filter(None, texts)) - progress.n)

        if on_cluster:
            job = on_ray.RayJob(pool.specs[0], pool.batching, tables, spec, folder)
            labelled = on_ray.label_on_ray([n for n in rows if n not in there], job, ray_workers)
        else:
            labelled = pool.label_parts(tables, spec, first, show)
        for more, counted in labelled:
            counts, done, made = counts + counted, done + more, made + 1
            progress.update(done - progress.n)
        progress.total = done
    say_summary(output.count_rows(folder), made, counts, time.monotonic() - start - pool.loading)


def say_summary(rows: int, made: int, counts: np.ndarray, seconds: float) -> None:
    """Says what was labelled, and how fast. `counts`: see label_table; `made`: parts of this run."""
    texts, tokens, lost = counts
    if not made:
        say(f"all {rows:,} rows are labelled already")
    elif not texts:
        say(f"no row has a text; {rows:,} rows in all")
    else:
        if lost:
            say(f"{lost:,} texts have nulls: they gave no token, or the model no finite number")
        tokens_words = f"{tokens:,} tokens, " if tokens else ""  # not known where a variant takes the texts themselves
        speed = f"{texts / seconds:,.1f} messages/s"
        say(f"{texts:,} texts, {tokens_words}{seconds:.1f} s, {speed}; {rows:,} rows in all")


def main() -> int:
    args = parse_arguments()
    files = find_files(args.input.absolute())
    if args.ray and any(file.suffix.lower() != ".parquet" for file in files):
        raise UserError("on Ray the input is Parquet, of which each machine can read its part: convert it first")
    check_writable(CACHE)
    args.output = args.output.absolute()
    model = open_model(args.model_id)
    if inside := [file for file in files if args.output.resolve() in file.resolve().parents]:
        raise UserError(f"{inside[0]} is in the output folder: name another one")
    tables = [open_table(file) for file in files]
    columns = choose_columns(tables[0], args.column, args.keep_columns, args.keep_text)
    schema = common_schema(tables, list(dict.fromkeys([*columns, args.column])), args.column)
    spec = OutputSpec(
        schema=schema,
        columns=columns,
        text_column=args.column,
        labels=model.labels,
        top_label=args.top_label,
        prefix=args.prefix,
        rows=args.rows_per_file,
        limit=args.limit,
    )
    check_names(spec)
    with output.locked(args.output), on_ray.cluster(args.ray) if args.ray else contextlib.nullcontext():
        plan = find_plan(args, model.weights_id)
        specs = worker_specs(model, plan, args.gpu or [0])
        job = {"input": digest(files), "model": model.weights_id, "options": plan_options(args), "plan": asdict(plan)}
        job |= asdict(spec) | {"schema": str(schema), "export": specs[0].export_id}
        job["versions"] = versions("tokenizers", "transformers", *VARIANTS[plan.variant].packages)
        output.prepare_output(args.output, job, args.overwrite)
        label_all(LabelPool(specs, plan.batching, args.output), tables, spec, args.workers, bool(args.ray))
    return 0


if __name__ == "__main__":
    run(main)
