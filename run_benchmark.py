"""Find the fastest way to run an encoder on this machine, and check that it makes the original model's decisions.

    python run_benchmark.py --model all --quick --device cpu --model-id random-roberta-base
    python run_benchmark.py --model onnx-fp16,torch-bf16 --device gpu --dataset my.csv --column text

Every combination of variant, workers and batching is a cell. Each cell gives a row, which is printed on standard output
and saved under results/. Notes, progress and the verdict go to standard error.

What is timed: the forward passes over all batches of a cell. Then the fastest cell of each variant and worker count is
timed end to end, from texts to answers on the host. The fastest of these are timed again, in turn.

256 texts are compared with the original model in eager FP32 PyTorch: `max_diff` is the largest difference of any
label's probability, `flips` the share of changed decisions. Fast variants that are not proven yet are checked on more
texts, for up to --check-time seconds. results/README.md explains the columns and the method.

References and other reusable files are kept in BENCHMARK_CACHE (default: the folder .cache beside this script).
Exit code: 0, 1 if a cell failed (its row has the reason) or a row could not be saved, 2 for wrong usage or input, 130
after Ctrl-C.
"""

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.machine import cpu_cores, process_count
from bench.options import (
    BATCHINGS,
    CSV_OPTIONS,
    Parser,
    add_task_options,
    add_text_options,
    batching,
    command,
    float_from,
    hub_name,
    int_from,
    list_of,
)
from utils import CACHE, UserError, before_imports, run, say

BATCH_TOKENS = {"gpu": [16384, 32768, 65536], "cpu": [1024, 4096, 16384]}


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.usage = "%(prog)s --model VARIANTS --device {gpu,cpu} [options]"
    count = {"type": int_from(1), "metavar": "N"}
    counts = {"type": list_of(int_from(1)), "metavar": "LIST"}
    seconds = {"type": float_from(0), "metavar": "SECONDS"}

    add = parser.add_argument_group("what to measure").add_argument
    names = "comma-separated variants (torch, onnx, ...), or 'all' for this device's default set (see README.md)"
    add("--model", required=True, type=list_of(str.strip), metavar="VARIANTS", help=names)
    add("--device", required=True, choices=("gpu", "cpu"), help="where the variants run")
    model_help = "Hub id, local folder, or random-roberta-base, which needs no network"
    add("--model-id", metavar="MODEL", type=hub_name, help=f"{model_help} (default: SamLowe/roberta-base-go_emotions)")
    add("--gpu", type=int_from(0), default=0, metavar="ID", help="GPU id (default: 0)")
    quick = "short benchmark, about a minute plus exports: uses as many texts as the device can process "
    quick += "in about 1.5 s in FP32"
    add("--quick", action="store_true", help=quick)
    add("--dry-run", action="store_true", help="print the cells that would run, and stop")

    texts = parser.add_argument_group("texts")
    texts.add_argument("--dataset", default="normal", help="normal, filtered, or a file of texts (default: normal)")
    add_text_options(texts)
    limit_help = "use at most this many texts, evenly spaced through the dataset (default: all)"
    texts.add_argument("--limit", **count, help=limit_help)
    add_task_options(texts)

    add = parser.add_argument_group("how to measure").add_argument
    batching_help = f"comma-separated: {', '.join(BATCHINGS)} (default: all)"
    add("--batching", type=list_of(batching), metavar="LIST", default=list(BATCHINGS), help=batching_help)
    add("--batches", **counts, default=[1, 2, 4, 8, 16, 32], help="texts per batch (default: 1,2,4,8,16,32)")
    tokens = "tokens per batch, with padding, for token-budget (default: 1024,4096,16384; GPU: 16384,32768,65536)"
    add("--batch-tokens", **counts, help=tokens)
    workers = "comma-separated numbers of worker processes (default: 1)"
    add("--workers", type=list_of(process_count), default=[1], metavar="LIST", help=workers)
    add("--threads", type=process_count, metavar="N", help="CPU threads per worker (default: all cores / workers)")
    add("--min-time", **seconds, default=3.0, help="repeat each cell for at least this long (default: 3)")
    repeats = "number of rounds over all cells; with several, a slow period affects all cells equally (default: 1)"
    add("--repeats", **count, default=1, help=repeats)
    check = "time for checks of fast, unproven variants on more texts (default: 120; --quick: 15)"
    add("--check-time", **seconds, default=120.0, help=check)
    stall = "time without progress after which a cell fails (default: 600; 0: never)"
    add("--stall-timeout", **seconds, default=600.0, help=stall)

    output = parser.add_argument_group("output")
    saving = output.add_mutually_exclusive_group()
    folder = "folder for the result files (default: results)"
    saving.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=folder)
    saving.add_argument("--no-save", action="store_true", help="save nothing")
    resume = "skip cells that have an ok row with the same texts, weights, commit and versions"
    output.add_argument("--resume", action="store_true", help=resume)

    args = parser.parse_args()
    defaults = {
        "model_id": DEFAULT_MODEL,
        "batch_tokens": BATCH_TOKENS[args.device],
        "threads": max(1, cpu_cores() // max(args.workers)),
    }
    if args.quick:
        defaults |= {"min_time": 0.0, "check_time": 15.0} | QUICK_OPTIONS[args.device]
    parser.set_defaults(**defaults)
    return parser.parse_args()


if __name__ == "__main__":
    before_imports(parse_arguments)

from tqdm import tqdm

from bench.files import check_writable
from bench.machine import describe_device
from bench.measure.cells import Cell, cell_of, cells_to_run, plan_cells
from bench.measure.leaders import estimate_total, measure_all
from bench.measure.prepare import describe_sweep, find_peaks, prepare_sweep
from bench.measure.quick import QUICK_OPTIONS, default_variants, flops_per_text, quick_size
from bench.measure.recorder import Recorder, columns_of_run, rows_to_reuse
from bench.measure.sweep import Sweep, estimate
from bench.measure.warnings import measure_busy, note, note_slowdowns
from bench.model.classification import Classification
from bench.model.resolve import DEFAULT_MODEL, open_model
from bench.model.task import Task
from bench.naming import slug
from bench.processes import helper_process, run_in_subprocess
from bench.report import rows
from bench.report.table import HEADER, table_line
from bench.report.verdict import verdict
from bench.tables.datasets import load_dataset
from bench.tables.format_csv import Csv
from bench.timing import time_words
from bench.variants import Device
from runtimes import VARIANTS


def choose_variants(names: list[str], device: str, quick: bool) -> list[str]:
    """Return the variants asked for. `all` are the default variants, with --quick without those that compile first."""
    if names == ["all"]:
        return default_variants(device, compiled=not quick)
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"--model {name}: no such variant. Choose from {', '.join(VARIANTS)}, or all")
        if device in VARIANTS[name].unsupported:
            raise UserError(f"--model {name}: not on a {device}: {VARIANTS[name].unsupported[device]}")
    return names


def choose_cells(args: Namespace, variants: list[str], n_texts: int) -> list[Cell]:
    """Return the cells asked for, without batches of more texts than there are. Raises UserError if none is left."""
    too_large = ",".join(str(size) for size in args.batches if size > n_texts)
    sizes = [size for size in args.batches if size <= n_texts]
    cells = plan_cells(variants, args.workers, args.batching, sizes, args.batch_tokens)
    if not cells:
        raise UserError(f"--batches {too_large}: there are only {n_texts} texts; choose smaller batches")
    if too_large:
        note(f"skipping --batches {too_large}: there are only {n_texts} texts")
    return cells


def measure_cells(args: Namespace, sweep: Sweep, cells: list[Cell], recorder: Recorder) -> None:
    """Measure the cells and check the leaders, printing each row."""
    seconds = estimate(sweep, cells)
    plan = f"{len(cells)} cells, about {time_words(estimate_total(sweep, seconds, args.repeats))} without compiling"
    if sweep.more_texts and args.check_time:
        plan += f"; then up to {args.check_time:.0f} s of checks on more texts"
    say(f"plan       {plan}")
    print(HEADER, flush=True)
    layout = "{percentage:3.0f}% {bar} {elapsed}, {remaining} left"
    total = args.repeats * sum(seconds.values())
    with tqdm(total=total, bar_format=layout, file=sys.stderr, disable=None) as progress:

        def show(cell: Cell, row: dict) -> None:
            progress.write(table_line(row), file=sys.stdout)
            sys.stdout.flush()
            progress.update(seconds.get(cell, 0))

        recorder.show = show
        try:
            measure_all(sweep, cells, recorder, args.repeats)
        finally:
            if recorder.unsaved:
                say(f"could not save these rows in {args.results_dir}; copy them from here:")
                lines = rows.HEADER + "".join(map(rows.line_of, recorder.unsaved))  # cleaned, with tabs
                print(lines.rstrip(), file=sys.stderr)


def follow_up_commands(args: Namespace, task: type[Task] = Classification) -> tuple[Callable, Callable]:
    """Return functions that build the commands for verdict(): a check on more texts, and the next step.

    After a quick benchmark that is a longer run, else the labelling.
    """
    defaults = {"gpu": 0, "dataset": "normal", "column": "body", "encoding": "utf-8"}
    names = ("device", "gpu", "model_id", "dataset", "column", *CSV_OPTIONS, "task", "pooling", "threshold", "threads")
    given = {name: getattr(args, name) for name in names if getattr(args, name) != defaults.get(name)}
    if args.delimiter == "\t":
        given["delimiter"] = "tab"

    def benchmark(variants: list[str], **options) -> str:
        return command("python", "run_benchmark.py", model=variants, **given, **options)

    def check(variants: list[str]) -> str:
        return benchmark(["torch", *variants], quick=True, check_time=600)

    def longer_run(winner: dict, candidates: list[str]) -> str:
        if args.device == "gpu":
            return benchmark(candidates, limit=500, batches=[32, 128])
        batches, tokens = int(winner["batch_size"]) or 8, int(winner["batch_tokens"]) or 512
        return benchmark(candidates, limit=500, batches=[batches, 32], batch_tokens=[tokens, 1024, 2048])

    def label(winner: dict, candidates: list[str]) -> str:
        script, output, *names = task.script
        options = {"output": output} | {name: getattr(args, name) for name in ("device", *names)}
        return command("python", script, args.model_id, "FILE", **options)

    return check, longer_run if args.quick else label


def list_cells(cells: list[Cell], repeats: int) -> int:
    say(f"{len(cells)} cells to run, {repeats} time(s) each")
    for cell in cells:
        print(cell.variant, cell.workers, cell.batching, cell.stage, sep="\t")
    return 0


def main() -> int:
    args = parse_arguments()
    variants = choose_variants(args.model, args.device, args.quick)
    dataset = load_dataset(args.dataset, [args.column], args.limit, csv=Csv.from_options(args))
    device = Device(args.gpu if args.device == "gpu" else None, args.threads)
    info = run_in_subprocess(describe_device, args.gpu) if args.device == "gpu" else describe_device(None)
    cells = choose_cells(args, variants, len(dataset.texts))
    if not (args.no_save or args.dry_run):
        file = {"model": args.model_id, "dataset": dataset.name, "device": slug(info.name)}
        check_writable(rows.results_path(args.results_dir, file | {"variant": max(variants, key=len)}).parent)
    if args.dry_run and not args.resume:
        return list_cells(cells, args.repeats)
    with helper_process() as call:  # one for all calls, so that torch is imported once
        check_writable(CACHE)
        model = open_model(args.model_id, call, args.task, {"pooling": args.pooling}).with_thresholds(args.threshold)
        say(f"machine    {info.name}{', driver ' + info.driver if info.driver else ''}")
        busy = measure_busy(info, device)
        note_slowdowns(variants, device, max(args.workers), busy)
        for line in dataset.notes:
            note(line)
        peaks = find_peaks(variants, device, call)
        if args.quick:
            texts = quick_size(flops_per_text(model, dataset.texts, call), peaks["fp32"])
            dataset = dataset.limited(max(texts, *args.batches))
        run_columns = columns_of_run(model, dataset, info, args.threads)
        earlier = None
        if args.resume:
            earlier = rows_to_reuse(args.results_dir, run_columns, cells)
            say(f"resume     reusing {len(earlier)} rows of earlier runs")
            cells = cells_to_run(cells, {cell_of(row): row["messages/s"] for row in earlier.to_dict("records")})
        if args.dry_run:
            return list_cells(cells, args.repeats)
        limits = {name: getattr(args, name) for name in ("min_time", "stall_timeout", "check_time")}
        sweep = prepare_sweep(model, dataset, variants, device, call, peaks=peaks, **limits)
    describe_sweep(sweep, dataset.name)
    if busy is not None:
        sweep = replace(sweep, uuid=info.uuid)
        run_columns["busy"] = f"{busy:.2f}"
    recorder = Recorder(run_columns, None if args.no_save else args.results_dir, print, earlier)
    measure_cells(args, sweep, cells, recorder)
    if any(row["tflops"] and not row["mfu"] and sweep.peak_of(row["variant"]) for row in recorder.rows):
        note("MFU above 100% omitted: the peak measurement was disturbed, or its kernels are slow on this machine")
    completed = recorder.completed()
    for line in [] if completed.empty else verdict(completed, *follow_up_commands(args, type(model.task))):
        say(line)
    return int(any(row["status"] != "ok" for row in recorder.rows) or bool(recorder.unsaved))


if __name__ == "__main__":
    run(main)
