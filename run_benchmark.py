"""Finds the fastest way to run an encoder classifier on this machine, and whether the fast way is still right.

    python run_benchmark.py --model onnx-fp16 --device gpu
    python run_benchmark.py --model torch,torch-bf16,onnx --device cpu --model-id random-roberta-base --limit 256

Every combination of variant, workers and batching is a cell. A cell is measured in messages/s and gives a
row, printed on standard output and saved under results/. Notes, progress and the verdict go to standard error.

Timed are the forward passes over all batches of a cell; the fastest cell of each variant and worker count once more end
to end, from the texts to the logits on the host, and those that lead again in turn. 256 texts are compared with the
original model in eager FP32 PyTorch: `max_diff` is the largest difference of any label's probability, `flips` the share
of changed decisions. What is fast and not proven yet then runs over more texts, for --check-time seconds at most. `ok`
means that a cell ran and its outputs are finite. results/README.md says exactly how it measures.

Exit code: 0, 1 if a cell failed (its row says why) or a row could not be saved, 2 for wrong usage or input, 130 after
Ctrl-C.
"""

import shlex
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from bench.files import check_writable
from bench.machine import cpu_cores, describe_device, process_count
from bench.measure.cells import Cell, cell_of, cells_to_run, measured_before, plan_cells
from bench.measure.check import more_texts
from bench.measure.leaders import (
    LOOK,
    MAX_LEADERS,
    ROUNDS,
    default_variants,
    flops_of_a_text,
    look_size,
    measure_all,
)
from bench.measure.prepare import find_exports, find_peaks, say_what_is_measured
from bench.measure.recorder import Recorder, columns_of, columns_of_run
from bench.measure.sweep import Sweep, estimate
from bench.measure.token_cache import load_or_tokenize
from bench.measure.warnings import measure_busy, note, note_what_slows
from bench.model.batches import BATCHINGS
from bench.model.model import Model
from bench.model.random_model import RANDOM_MODEL
from bench.model.resolve import DEFAULT_MODEL, open_model
from bench.naming import slug
from bench.processes import helper_process, run_in_subprocess
from bench.report import rows
from bench.report.table import HEADER, table_line
from bench.report.verdict import verdict
from bench.tables import format_csv
from bench.tables.datasets import Dataset, load_dataset
from bench.timing import step, time_words
from bench.variants import Device
from runtimes import VARIANTS
from utils import CACHE, Parser, UserError, clean, int_from, list_of, run, say

BATCH_TOKENS = {"gpu": [16384, 32768, 65536], "cpu": [1024, 4096, 16384]}
QUICK = {"min_time": 0.0, "check_time": 15.0}  # and what the device asks for, see LOOK
LOADING_SECONDS = 4.0  # about, until a variant's workers are ready


# ------------------------------------------------------------------------------------------------------- options


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add, whole = parser.add_argument, int_from(1)
    add("--model", required=True, type=list_of(str.strip), metavar="LIST", help=f"of {', '.join(VARIANTS)}; or all")
    add("--device", required=True, choices=("gpu", "cpu"))
    add("--dataset", default="normal", help="normal, filtered, or a file of texts (default: normal)")
    add("--column", default="body", help="the file's text column (default: body)")
    model_help = f"Hub id, local folder, or {RANDOM_MODEL}, which needs no network (default: %(default)s)"
    format_csv.add_options(parser)
    add("--model-id", default=DEFAULT_MODEL, help=model_help)
    add("--gpu", type=int_from(0), default=0, help="GPU id (default: 0)")
    add("--batches", type=list_of(whole), default=[1, 2, 4, 8, 16, 32], help="texts a batch (default: 1,2,4,8,16,32)")
    token_help = "tokens in a batch with padding, for token-budget (default: 1024,4096,16384; GPU 16384,32768,65536)"
    add("--batch-tokens", type=list_of(whole), help=token_help)
    add("--workers", type=list_of(process_count), default=[1], help="comma list of worker counts (default: 1)")
    add("--threads", type=process_count, help="CPU threads of each worker (default: all cores, shared out)")
    batching_help = f"comma list of {', '.join(BATCHINGS)} (default: all three)"
    add("--batching", type=list_of(batching), default=list(BATCHINGS), help=batching_help)
    add("--limit", type=whole, help="use at most this many texts, evenly spaced through the dataset (default: all)")
    threshold_help = "above which a label holds: a number, or a JSON file of label -> number (default: 0.5)"
    add("--threshold", metavar="NUMBER|FILE", help=threshold_help)
    check_help = "seconds, at most, on more texts for what is fast and not proven (default: 120; --quick: 15)"
    add("--check-time", type=seconds, default=120.0, help=check_help)
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
    quick = "a first look of about a minute, exports not counted: as many texts as the device does in a few seconds"
    add("--quick", action="store_true", help=quick)
    args = parser.parse_args()
    threads = max(1, cpu_cores() // max(args.workers))
    quick = QUICK | LOOK[args.device] if args.quick else {}
    parser.set_defaults(**{"batch_tokens": BATCH_TOKENS[args.device], "threads": threads} | quick)
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


def choose_variants(names: list[str], device: str, quick: bool) -> list[str]:
    """Returns the variants asked for; `all` are those that are fast on the device and whose runtime is installed.

    A `quick` look leaves out of them what must be compiled first. Raises UserError for an unknown name, and for one
    that can't run on the device, with the reason.
    """
    if names == ["all"]:
        return default_variants(device, compiled=not quick)
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


def prepare(args: Namespace, model: Model, dataset: Dataset, peaks: dict[str, float], call: Callable) -> Sweep:
    """Does all that comes before the first cell. `call` runs a function in a helper process."""
    device = find_device(args)
    with step("reference  token ids, and eager FP32 torch on some of the texts"):
        tokens = load_or_tokenize(model, dataset.texts, device.gpu, call)
    say_what_is_measured(model, dataset.name, tokens)
    exports = find_exports(model, args.model, device)
    return Sweep(
        model=model,
        tokens=tokens,
        exports=exports,
        device=device,
        peaks=peaks,
        min_time=args.min_time,
        stall_timeout=args.stall_timeout,
        check_time=args.check_time,
    )


# ------------------------------------------------------------------------------------------------------- the cells


def measure_cells(args: Namespace, sweep: Sweep, cells: list[Cell], recorder: Recorder) -> None:
    """Measures the cells and checks what leads, printing each row."""
    costs = estimate(sweep, cells)
    slowest = {}  # pass of each variant and worker count
    for cell, cost in costs.items():
        slowest[cell.variant, cell.workers] = max(cost, slowest.get((cell.variant, cell.workers), 0))
    end_to_end = sum(LOADING_SECONDS + cost for cost in slowest.values())
    total = args.repeats * (sum(costs.values()) + end_to_end)
    leaders = sorted(slowest.values())[:MAX_LEADERS] if len(slowest) > 1 and args.repeats == 1 else []
    total += sum(LOADING_SECONDS + (1 + ROUNDS) * cost for cost in leaders)
    check = f"; then up to {args.check_time:.0f} s on more texts" if sweep.more_texts and args.check_time else ""
    say(f"plan       {len(cells)} cells, about {time_words(total)}, compiling not counted{check}")
    print(HEADER, flush=True)
    layout = "{percentage:3.0f}% {bar} {elapsed}, {remaining} left"
    total = args.repeats * sum(costs.values())
    with tqdm(total=total, bar_format=layout, file=sys.stderr, disable=None) as progress:

        def show(cell: Cell, row: dict) -> None:
            progress.write(table_line(row), file=sys.stdout)
            sys.stdout.flush()
            progress.update(costs.get(cell, 0))

        recorder.show = show
        try:
            measure_all(sweep, cells, recorder, args.repeats)
        finally:
            if recorder.unsaved:
                lines = rows.HEADER + "".join(map(rows.line_of, recorder.unsaved))
                say(f"not saved in {args.results_dir}, so copy it from here:\n{lines.rstrip()}")


def next_commands(args: Namespace) -> tuple[str, str]:
    """Returns the commands that may follow a run, for verdict(): one that checks more texts, and the next step.

    That is a longer run after a first look, else the labelling.
    """
    given = args.model_id, args.dataset, args.column, args.threshold or ""
    model, dataset, column, threshold = (shlex.quote(text).replace("{", "{{").replace("}", "}}") for text in given)
    same = f"python run_benchmark.py --model {{variants}} --device {args.device} --model-id {model}"
    same += f" --dataset {dataset}" * (args.dataset != "normal") + f" --column {column}" * (args.column != "body")
    same += f" --threshold {threshold}" * bool(args.threshold) + f" --threads {args.threads}"
    settle = f"{same.replace('{variants}', 'torch,{variants}')} --quick --check-time {{seconds}}"
    if args.quick:
        sizes = "{batches},32 --batch-tokens {tokens},1024,2048" if args.device == "cpu" else "32,128"
        return settle, f"{same.replace('{variants}', '{candidates}')} --limit 500 --batches {sizes}"
    words = f"python classify_texts.py {model} FILE --output labels --device {args.device}"
    return settle, words + f" --threshold {threshold}" * bool(args.threshold)


def list_cells(cells: list[Cell], repeats: int) -> int:
    """Prints the cells that would run; returns the exit code."""
    say(f"{len(cells)} cells to run" + f", {repeats} times" * (repeats > 1))
    for cell in cells:
        print(cell.variant, cell.workers, cell.batching, cell.stage, sep="\t")
    return 0


def main() -> int:
    args = parse_arguments()
    args.model = variants = choose_variants(args.model, args.device, args.quick)
    csv = format_csv.Csv(args.delimiter, args.encoding)
    device, dataset = find_device(args), load_dataset(args.dataset, [args.column], args.limit, csv=csv)
    info = run_in_subprocess(describe_device, args.gpu) if args.device == "gpu" else describe_device(None)
    cells = choose_cells(args, variants, len(dataset.texts))
    if not (args.no_save or args.dry_run):
        file = {"model": args.model_id, "dataset": dataset.name, "device": slug(info.name)}
        check_writable(rows.results_path(args.results_dir, file | {"variant": max(variants, key=len)}).parent)
    if args.dry_run and not args.resume:
        return list_cells(cells, args.repeats)
    with helper_process() as call:  # one for all, so that torch is imported once
        check_writable(CACHE)
        model = open_model(args.model_id, call).with_thresholds(args.threshold)
        say(f"machine    {info.name}{', driver ' + info.driver if info.driver else ''}")
        busy = measure_busy(info, device)
        note_what_slows(variants, device, max(args.workers), busy)
        for line in dataset.notes:
            note(line)
        peaks = find_peaks(variants, device, call)
        if args.quick:
            texts = look_size(call(flops_of_a_text, model, dataset.texts), peaks["fp32"])
            dataset = dataset.limited(max(texts, *args.batches))
        same, before = columns_of_run(model, dataset, info, args.threads), rows.completed_rows([])[0]
        if args.resume:
            before = measured_before(args.results_dir, same, columns_of, cells)
            say(f"resume     {len(before)} rows of earlier runs count")
            cells = cells_to_run(cells, {cell_of(row): row["messages/s"] for row in before.to_dict("records")})
        if args.dry_run:
            return list_cells(cells, args.repeats)
        sweep = prepare(args, model, dataset, peaks, call)
    more = more_texts(dataset.all_texts, sweep.tokens)
    sweep = replace(sweep, uuid="" if busy is None else info.uuid, more_texts=more)
    same |= {"busy": "" if busy is None else f"{busy:.2f}", "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    recorder = Recorder(same, before, None if args.no_save else args.results_dir, print)
    measure_cells(args, sweep, cells, recorder)
    if any(row["tflops"] and not row["mfu"] and sweep.peak_of(row["variant"]) for row in recorder.found):
        note("shares of the peak above 100% are left out: the products that measure it were slow, or are slow here")
    completed = recorder.completed()
    for line in [] if completed.empty else verdict(completed, *next_commands(args)):
        say(clean(line))
    return int(any(row["status"] != "ok" for row in recorder.found) or bool(recorder.unsaved))


if __name__ == "__main__":
    run(main)
