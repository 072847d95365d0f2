"""Finds the fastest way to run an encoder classifier on this machine, and whether the fast way is still right.

    python run_benchmark.py --model onnx-fp16 --device gpu
    python run_benchmark.py --model torch,torch-bf16,onnx --device cpu --model-id random-roberta-base --limit 256

Every combination of variant, workers and batching is a cell. A cell is measured in messages/s and gives a
row, printed on standard output and saved under results/. Notes, progress and the verdict go to standard error.

Timed are the forward passes over all batches of a cell; the fastest cell of each variant and worker count once more end
to end, from the texts to the logits on the host. 256 texts are compared with the original model in eager FP32 PyTorch:
`max_diff` is the largest difference of any label's probability, `flips` the share of changed decisions. `ok` means that
a cell ran and its outputs are finite; judge accuracy by these two. results/README.md says exactly how it measures.

Exit code: 0, 1 if a cell failed (its row says why) or a row could not be saved, 2 for wrong usage or input, 130 after
Ctrl-C.
"""

import contextlib
import math
import shlex
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.export.ensure import ensure_export
from bench.files import check_writable
from bench.inputs.batches import BATCHINGS
from bench.inputs.datasets import Dataset, digest_texts, load_dataset
from bench.inputs.model import Model
from bench.inputs.random_model import RANDOM_MODEL
from bench.inputs.reference import padding_note
from bench.inputs.resolve import DEFAULT_MODEL, open_model
from bench.machine import describe_device, process_count
from bench.measure.cells import Cell, cell_of, cells_to_run, measured_before, plan_cells
from bench.measure.conditions import measure_busy, note, note_what_slows
from bench.measure.peak import measure_peaks
from bench.measure.sweep import Sweep, estimate, run_cells
from bench.measure.token_cache import TokenizedTexts, load_or_tokenize
from bench.naming import slug
from bench.processes import helper_process, run_in_subprocess
from bench.provenance import package_versions, project_commit, versions
from bench.report import rows
from bench.report.table import HEADER, table_line
from bench.report.verdict import verdict
from bench.variants import Device
from runtimes import VARIANTS
from utils import CACHE, Parser, UserError, clean, int_from, list_of, run, say, step

BATCH_TOKENS = {"gpu": [16384, 32768, 65536], "cpu": [1024, 4096, 16384]}
QUICK = {"limit": 64, "batches": [1, 8], "batch_tokens": [512], "batching": ["sorted", "token-budget"], "min_time": 0.0}
QUICK_SECONDS = 10.0  # of a pass, above which a first look does not time it end to end, too
LOADING_SECONDS = 5.0  # about, until a variant's workers are ready


# ------------------------------------------------------------------------------------------------------- options


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add, whole = parser.add_argument, int_from(1)
    add("--model", required=True, type=list_of(str.strip), metavar="LIST", help=f"of {', '.join(VARIANTS)}; or all")
    add("--device", required=True, choices=("gpu", "cpu"))
    add("--dataset", default="normal", help="normal, filtered, or a file of texts (default: normal)")
    add("--column", default="body", help="the file's text column (default: body)")
    model_help = f"Hub id, local folder, or {RANDOM_MODEL}, which needs no network (default: %(default)s)"
    add("--model-id", default=DEFAULT_MODEL, help=model_help)
    add("--gpu", type=int_from(0), default=0, help="GPU id (default: 0)")
    add("--batches", type=list_of(whole), default=[1, 2, 4, 8, 16, 32], help="texts a batch (default: 1,2,4,8,16,32)")
    token_help = "tokens in a batch with padding, for token-budget (default: 1024,4096,16384; GPU 16384,32768,65536)"
    add("--batch-tokens", type=list_of(whole), help=token_help)
    add("--workers", type=list_of(process_count), default=[1], help="comma list of worker counts (default: 1)")
    add("--threads", type=process_count, default=1, help="CPU threads of each worker (default: 1)")
    batching_help = f"comma list of {', '.join(BATCHINGS)} (default: all three)"
    add("--batching", type=list_of(batching), default=list(BATCHINGS), help=batching_help)
    add("--limit", type=whole, help="use only this many texts, evenly spaced through the dataset (default: all)")
    add("--min-time", type=seconds, default=3.0, help="seconds of whole passes for each cell, at least (default: 3)")
    repeats_help = "measure every cell this many times, in turn: a slow minute of a shared machine then hits all alike"
    add("--repeats", type=whole, default=1, help=f"{repeats_help} (default: 1)")
    stall_help = "give up on a cell after this many seconds without progress (default: 600; 0: never)"
    add("--stall-timeout", type=seconds, default=600.0, help=stall_help)
    saving = parser.add_mutually_exclusive_group()
    saving.add_argument("--results-dir", type=Path, default=Path("results"), help="default: results")
    saving.add_argument("--no-save", action="store_true", help="save nothing")
    add("--resume", action="store_true", help="skip what has an ok row of the same texts, weights, commit and versions")
    add("--dry-run", action="store_true", help="print the cells that would run, and stop")
    quick = "a first look in about two minutes: 64 texts, sizes 1 and 8 and 512 tokens, one pass each"
    add("--quick", action="store_true", help=quick)
    args = parser.parse_args()
    parser.set_defaults(**{"batch_tokens": BATCH_TOKENS[args.device]} | (QUICK if args.quick else {}))
    return parser.parse_args()


def batching(text: str) -> str:
    if text not in BATCHINGS:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(BATCHINGS)}")
    return text


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def choose_variants(names: list[str], device: str) -> list[str]:
    """Returns the variants asked for; `all` are those that are fast on the device and whose runtime is installed.

    Raises UserError for an unknown name, and for one that can't run on the device, with the reason.
    """
    if names == ["all"]:
        return [
            name
            for name, variant in VARIANTS.items()
            if device in variant.default_on and versions(*variant.packages) and variant.is_native_on(device)
        ]
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"no variant {name!r}; there are: {', '.join(VARIANTS)}, or all of them as `all`")
        if device in VARIANTS[name].unsupported:
            raise UserError(f"{name} can't run on a {device}: {VARIANTS[name].unsupported[device]}")
    return names


def choose_cells(args: Namespace, variants: list[str], n_texts: int) -> list[Cell]:
    """Returns the cells asked for; batches of more texts than there are make none. Raises UserError if none is left."""
    too_large = ",".join(str(size) for size in args.batches if size > n_texts)
    sizes = [size for size in args.batches if size <= n_texts]
    cells = plan_cells(variants, args.workers, args.batching, sizes, args.batch_tokens)
    if not cells:
        raise UserError(f"--batches {too_large}: there are only {n_texts} texts")
    if too_large:
        note(f"batches of {too_large} are left out: there are only {n_texts} texts")
    return cells


# ------------------------------------------------------------------------------------------------ before the cells


def find_device(args: Namespace) -> Device:
    return Device(args.gpu if args.device == "gpu" else None, args.threads)


def columns_of(variant: str) -> dict[str, str]:
    """Returns the columns that are the same in all rows of a variant: its name, and the versions that it runs with."""
    return {"variant": variant, "versions": package_versions(VARIANTS[variant])}


def say_what_is_measured(model: Model, dataset: Dataset, tokens: TokenizedTexts) -> None:
    lengths = tokens.lengths
    p5, p50, p95, p99 = np.percentile(lengths, [5, 50, 95, 99])
    about = f"{model.model_type}, {len(model.labels)} labels, {model.problem_type}, at most {model.max_length} tokens"
    say(f"model      {model.id}: {about}")
    say(f"dataset    {clean(dataset.name)}: {len(lengths)} texts; tokens: mean {lengths.mean():.1f},")
    say(f"           p5 {p5:.0f}, p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, most {lengths.max()}")
    if tokens.n_empty:
        note(f"{tokens.n_empty} texts give no token and are left out")
    if padding := padding_note(model, tokens.padding_effect):
        note(padding)
    say(f"tokenizer  {tokens.tokens_speed:,.0f} messages/s, measured when these token ids were made")
    say(f"check      {len(tokens.sample)} of the texts are compared with the reference")


def find_exports(model: Model, variants: list[str], device: Device) -> dict[str, Path | UserError | None]:
    """Returns what each variant loads, see Sweep.exports, and says so; makes the exports that are missing."""
    exports = {}
    for name in variants:
        variant = VARIANTS[name]
        try:
            exports[name], origin = None, model.id
            if device.gpu is None:
                variant.check_device(None)
            else:
                run_in_subprocess(variant.check_device, device.gpu)
            if variant.export:
                exports[name], origin = ensure_export(model, variant.export.precision)
        except UserError as error:  # its cells fail, the others run
            exports[name], origin = error, error
        say(f"variant    {name}: {origin}")
    return exports


def prepare(args: Namespace, model: Model, dataset: Dataset, cells: list[Cell], call: Callable) -> Sweep:
    """Does all that comes before the first cell. `call` runs a function in a helper process."""
    device, variants = find_device(args), list(dict.fromkeys(cell.variant for cell in cells))
    with step("reference  token ids, and eager FP32 torch on some of the texts"):
        tokens = load_or_tokenize(model, dataset.texts, device.gpu, call)
    say_what_is_measured(model, dataset, tokens)
    exports = find_exports(model, variants, device)
    with step("peak       how fast this device multiplies large matrices"):
        precisions = {"fp32", *(VARIANTS[name].computes_in(device.gpu) for name in variants)}
        peaks = call(measure_peaks, sorted(precisions), device)
    say(f"           {', '.join(f'{name} {peak / 1e12:.3g}' for name, peak in peaks.items())} TFLOP/s")
    return Sweep(
        model=model,
        tokens=tokens,
        exports=exports,
        device=device,
        peaks=peaks,
        min_time=args.min_time,
        max_end_to_end_seconds=QUICK_SECONDS if args.quick else math.inf,
        stall_timeout=args.stall_timeout,
    )


# ------------------------------------------------------------------------------------------------------- the cells


def measure_cells(args: Namespace, sweep: Sweep, cells: list[Cell], speeds: dict, same: dict) -> tuple[list, list]:
    """Measures the cells, printing and appending each row; returns all rows, and those that could not be saved."""
    found, unsaved, costs = [], [], estimate(sweep, cells)
    groups = {(cell.variant, cell.workers) for cell in cells}
    total = args.repeats * (sum(costs.values()) + len(groups) * LOADING_SECONDS)
    say(f"plan       {len(cells)} cells, about {max(1, round(total / 60))} min, compiling not counted")
    print(HEADER, flush=True)
    measured = contextlib.closing(run_cells(sweep, cells, speeds, args.repeats))
    layout = "{percentage:3.0f}% {bar} {elapsed}, {remaining} left"
    progress_bar = tqdm(total=args.repeats * sum(costs.values()), bar_format=layout, file=sys.stderr, disable=None)
    try:
        with measured as measured, progress_bar as progress:
            for cell, figures in measured:
                row = dict.fromkeys(rows.COLUMNS, "") | same | columns_of(cell.variant) | cell.columns() | figures
                found.append(row)
                unsaved.append(row)
                if not args.no_save:
                    save(args.results_dir, unsaved)
                progress.write(table_line(row), file=sys.stdout)
                sys.stdout.flush()
                progress.update(costs.get(cell, 0))
    finally:
        if unsaved and not args.no_save:
            lines = rows.HEADER + "".join(map(rows.line_of, unsaved))
            say(f"not saved in {args.results_dir}, so copy it from here:\n{lines.rstrip()}")
    return found, [] if args.no_save else unsaved


def save(results_dir: Path, unsaved: list[dict]) -> None:
    """Appends the last of the rows to its file, and takes it out of the list; else says why it stays there."""
    path = rows.results_path(results_dir, unsaved[-1])
    try:
        rows.append_row(path, unsaved[-1])
        unsaved.pop()
    except OSError as error:
        say(f"{path}: not saved: {error.strerror}")


def next_command(args: Namespace) -> str:
    """Returns the command that follows a run, for verdict(): after a first look a longer one, else the labelling."""
    given = args.model_id, args.dataset, args.column
    model, dataset, column = (shlex.quote(text).replace("{", "{{").replace("}", "}}") for text in given)
    if not args.quick:
        return f"python classify_texts.py {model} FILE --output labels --device {args.device}"
    words = f"python run_benchmark.py --model {{candidates}} --device {args.device} --model-id {model}"
    words += f" --dataset {dataset}" * (args.dataset != "normal") + f" --column {column}" * (args.column != "body")
    sizes = "8 --batch-tokens 512,1024,2048" if args.device == "cpu" else "1,32,128"
    return f"{words} --threads {args.threads} --limit 500 --batches {sizes}"


def main() -> int:
    args = parse_arguments()
    variants, device = choose_variants(args.model, args.device), find_device(args)
    dataset = load_dataset(args.dataset, args.column, args.limit)
    info = run_in_subprocess(describe_device, args.gpu) if args.device == "gpu" else describe_device(None)
    say(f"machine    {info.name}{', driver ' + info.driver if info.driver else ''}")
    busy = measure_busy(info, device)
    note_what_slows(variants, device, max(args.workers), busy)
    for line in dataset.notes:
        note(line)
    cells, before = choose_cells(args, variants, len(dataset.texts)), rows.completed_rows([])[0]
    same = {"model": args.model_id, "dataset": dataset.name, "texts": len(dataset.texts), "threads": args.threads}
    same |= {"texts_id": digest_texts(dataset.texts), "device": slug(info.name), "commit": project_commit()}
    if not (args.no_save or args.dry_run):
        longest = max(variants, key=len)
        check_writable(rows.results_path(args.results_dir, same | {"variant": longest}).parent)
    with helper_process() as call:  # one for all, so that torch is imported once
        if args.resume or not args.dry_run:
            check_writable(CACHE)
            model = open_model(args.model_id, call)
            same["weights_id"] = model.weights_id
        if args.resume:
            before = measured_before(args.results_dir, same, columns_of, cells)
        speeds = {cell_of(row): row["messages/s"] for row in before.to_dict("records")}
        cells = cells_to_run(cells, speeds) if args.resume else cells
        if args.dry_run or not cells:
            say(f"{len(cells)} cells to run" + f", {args.repeats} times" * (args.repeats > 1))
            for cell in cells:
                print(cell.variant, cell.workers, cell.batching, cell.stage, sep="\t")
            return 0
        sweep = prepare(args, model, dataset, cells, call)
    sweep = replace(sweep, uuid="" if busy is None else info.uuid)
    same |= {"driver": info.driver, "busy": "" if busy is None else f"{busy:.2f}"}
    same["date"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    found, unsaved = measure_cells(args, sweep, cells, speeds, same)
    if any(row["tflops"] and not row["mfu"] and sweep.peak_of(row["variant"]) for row in found):
        note("shares of the peak above 100% are left out: torch, which measures the peak, was slow or is slow here")
    completed, _, _ = rows.completed_rows([*before.astype(str).to_dict("records"), *found])
    for line in [] if completed.empty else verdict(rows.latest_per_cell(completed), next_command(args)):
        say(clean(line))
    return int(any(row["status"] != "ok" for row in found) or bool(unsaved))


if __name__ == "__main__":
    run(main)
