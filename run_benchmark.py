"""Find the fastest way to run an encoder on this machine, and check that it makes the original model's decisions.

    python run_benchmark.py --variant all --quick --device cpu --model-id random-roberta-base
    python run_benchmark.py --variant onnx-fp16,torch-bf16 --device gpu --dataset my.csv --column text

Every combination of variant, workers, threads and batching is a cell. Each cell gives a row, which is printed on
standard output and saved under results/. Notes and the verdict go to standard error.

Three things are timed: the forward passes over all batches of each cell; then, end to end from texts to answers, the
fastest cell of each variant and split (workers x threads); finally the fastest of these once more, taking turns.

--quick without --workers and --threads tries a few splits of the cores, such as 1 x 32, 8 x 4, 16 x 2 and 32 x 1,
with one variant, and measures all variants with the fastest split.

Up to 256 texts are compared with the original model in eager FP32 PyTorch: `max_diff` is the largest difference of any
label's probability, `flips` the share of changed decisions. Fast variants that are not proven yet are checked on more
texts, until each is decided, or the texts or --check-time run out. The verdict is drawn from all evidence in results/,
which every run adds to. results/README.md explains the columns and the method.

References and other reusable files are kept in BENCHMARK_CACHE (default: the folder .cache beside this script).
Exit code: 0, 1 if a cell failed (its row has the reason) or a row could not be saved, 2 for wrong usage or input, 130
after Ctrl-C.
"""

import math
import sys
import textwrap
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.machine import cpu_cores, process_count
from bench.options import (
    BATCHINGS,
    CSV_OPTIONS,
    TASK_OPTIONS,
    Parser,
    add_original,
    add_task_options,
    add_text_options,
    batching,
    command,
    float_from,
    hub_name,
    int_from,
    list_of,
)
from bench.task_options import task_choice, text_columns
from utils import CACHE, UserError, before_imports, run, say

QUICK_CHECK = 15.0  # seconds of checks in a quick benchmark
SWEEP_OPTIONS = "min_time", "stall_timeout", "check_time", "tolerance", "search"  # fields of Sweep
START = time.monotonic()  # before the imports that take seconds
BATCH_TOKENS = {"gpu": [16384, 32768, 65536], "cpu": [1024, 4096, 16384]}


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.usage = "%(prog)s --variant VARIANTS --device {gpu,cpu} [options]"

    add = parser.add_argument_group("what to measure").add_argument
    names = "comma-separated variants (torch, onnx, ...); all: those that are fast on this device; baselines: the usual"
    names += " libraries, such as transformers' pipeline (see docs/variants.md)"
    alias = add("--variant", "--model", required=True, type=list_of(str.strip), metavar="VARIANTS", help=names)
    alias.option_strings.remove("--model")  # accepted, but not in the help: it is the model in other scripts
    add("--device", required=True, choices=("gpu", "cpu"), help="where the variants run")
    model_help = "Hub id or folder of a model or export, or random-roberta-base, which needs no network"
    add("--model-id", metavar="MODEL", type=hub_name, help=f"{model_help} (default: SamLowe/roberta-base-go_emotions)")
    add("--gpu", type=int_from(0), default=0, metavar="ID", help="GPU id (default: 0)")
    add("--quick", action="store_true", help="few texts and cells: at most a minute plus the time to create exports")
    add("--dry-run", action="store_true", help="print the cells that would run and the estimated time, then stop")

    texts = parser.add_argument_group("texts")
    texts.add_argument("--dataset", default="normal", help="normal, filtered, or a file of texts (default: normal)")
    add_text_options(texts)
    limit = "use at most this many texts, evenly spaced (default: all)"
    texts.add_argument("--limit", type=int_from(1), metavar="N", help=limit)

    task = parser.add_argument_group("task")
    add_task_options(task)
    add_original(task)

    add_measuring_options(parser.add_argument_group("how to measure").add_argument)

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
        "search": args.quick and not (args.workers or args.threads),
    }
    if args.quick:
        defaults |= {"min_time": 0.0, "check_time": QUICK_CHECK} | QUICK_OPTIONS[args.device]
    parser.set_defaults(**defaults)
    return parser.parse_args()


def thread_count(text: str) -> int | None:
    return None if text == "auto" else process_count(text)


def add_measuring_options(add: Callable) -> None:
    count = {"type": int_from(1), "metavar": "N"}
    counts = {"type": list_of(int_from(1)), "metavar": "LIST"}
    seconds = {"type": float_from(0), "metavar": "SECONDS"}
    batching_help = f"comma-separated: {', '.join(BATCHINGS)} (default: all)"
    add("--batching", type=list_of(batching), metavar="LIST", default=list(BATCHINGS), help=batching_help)
    add("--batches", **counts, default=[1, 2, 4, 8, 16, 32], help="texts per batch (default: 1,2,4,8,16,32)")
    tokens = "tokens per batch, with padding, for token-budget (default: 1024,4096,16384; GPU: 16384,32768,65536)"
    add("--batch-tokens", **counts, help=tokens)
    workers = "comma-separated numbers of worker processes (default: 1; --quick: finds the fastest)"
    add("--workers", type=list_of(process_count), metavar="LIST", help=workers)
    threads = "CPU threads of each worker, or auto: all cores / workers (default: auto)"
    add("--threads", type=thread_count, metavar="N", help=threads)
    add("--min-time", **seconds, default=3.0, help="repeat each cell for at least this long (default: 3)")
    repeats = "number of rounds over all cells; with several, a slow period affects all cells equally (default: 1)"
    add("--repeats", **count, default=1, help=repeats)
    check = "time for checks of fast, unproven variants on more texts (default: 600; --quick: 15)"
    add("--check-time", **seconds, default=600.0, help=check)
    tolerance = "largest share of decisions that may change (default: %(default)s)"
    add("--tolerance", type=float_from(0, 1), default=0.001, metavar="SHARE", help=tolerance)
    stall = "time without progress after which a cell fails (default: 600; 0: never)"
    add("--stall-timeout", **seconds, default=600.0, help=stall)


if __name__ == "__main__":
    before_imports(parse_arguments)

from bench.export.ensure import runnable_variants
from bench.files import check_writable
from bench.judge import TOLERANCE
from bench.measure.cells import Cell, cells_to_run, plan_cells
from bench.measure.leaders import estimate, measure_all
from bench.measure.prepare import LEAST_SECONDS, describe_sweep, find_peaks, missing_exports, plan_sweep, prepare_sweep
from bench.measure.quick import QUICK_OPTIONS, QUICK_SECONDS, choose_variants, measure_speed, quick_size
from bench.measure.recorder import Recorder, columns_of_run, rows_for_advice, rows_to_reuse
from bench.measure.splits import expected_cells, share_cores, splits_to_try
from bench.measure.sweep import Sweep
from bench.measure.warnings import measure_busy, note, note_slow_tokenizer, note_slowdowns
from bench.model.resolve import DEFAULT_MODEL, open_model
from bench.naming import slug
from bench.processes import device_info, helper_process
from bench.report import rows
from bench.report.evidence import EvidenceFile
from bench.report.table import HEADER, time_words
from bench.report.verdict import WIDTH, fold, verdict
from bench.tables.datasets import DATASETS, load_dataset
from bench.tables.format_csv import Csv
from bench.tables.items import hash_item
from bench.variants import Device
from runtimes import VARIANTS


def usable_sizes(args: Namespace, variants: list[str], n_texts: int) -> list[int]:
    """Return --batches without those of more texts than there are. Raises UserError if that leaves no cell."""
    too_large = ",".join(str(size) for size in args.batches if size > n_texts)
    sizes = [size for size in args.batches if size <= n_texts]
    if not plan_cells(variants, [(1, 1)], args.batching, sizes, args.batch_tokens):
        raise UserError(f"--batches {too_large}: there are only {n_texts} texts; choose smaller batches")
    if too_large:
        note(f"skipping --batches {too_large}: there are only {n_texts} texts")
    return sizes


def say_plan(args: Namespace, sweep: Sweep, cells: list[Cell], variants: list[str]) -> None:
    prepared = time.monotonic() - START + len(sweep.tokens.sample) / sweep.reference_speed
    total = prepared + estimate(sweep, cells, args.repeats)
    approximate = any(VARIANTS[name].computes_in(sweep.device.gpu) != "fp32" for name in variants)
    can_check = bool(approximate and sweep.more_texts and args.check_time)
    if args.quick:
        total = min(total + can_check * args.check_time, max(sweep.deadline - START, prepared + LEAST_SECONDS))
    plan = f"{len(cells)} cells, about {time_words(total)} in all"
    if can_check and not args.quick:
        plan += f", and up to {time_words(args.check_time)} of checks on more texts"
    if not args.quick and total > 600:
        plan += " (--quick: about a minute)"
    if missing := missing_exports(sweep.model, variants):
        plan += f", plus the time to create {', '.join(missing)}"
    if compiling := [name for name in variants if VARIANTS[name].compiles]:
        plan += f" and to compile {', '.join(compiling)}"
    say(f"plan       {plan}")


def measure_cells(args: Namespace, sweep: Sweep, cells: list[Cell], recorder: Recorder) -> None:
    print(HEADER, flush=True)
    try:
        measure_all(sweep, cells, recorder, args.repeats)
    finally:
        if recorder.unsaved:
            say(f"could not save these rows in {args.results_dir}; copy them from here:")
            lines = rows.HEADER + "".join(map(rows.line_of, recorder.unsaved))  # cleaned, with tabs
            print(lines.rstrip(), file=sys.stderr)
    note_slow_tokenizer(sweep.tokens, recorder.rows)


def follow_ups(args: Namespace, sweep: Sweep, dataset_name: str, script: Sequence[str]) -> tuple[Callable, Callable]:
    """Return verdict()'s label_command and check_advice, for the same texts. `script`: see Task.script."""
    defaults = {"gpu": 0, "column": "body", "encoding": "utf-8", "results_dir": Path("results")}
    names = ("device", "gpu", "column", *CSV_OPTIONS, *TASK_OPTIONS, "original", "results_dir")
    given = {name: getattr(args, name) for name in names if getattr(args, name) != defaults.get(name)}
    if args.delimiter == "\t":
        given["delimiter"] = "tab"
    own_file = args.dataset not in DATASETS
    tolerance = args.tolerance if args.tolerance != TOLERANCE else None

    def label(winner: dict | None) -> str:
        name, output, *taken = script
        options = {option: given[option] for option in given if option in taken or option not in TASK_OPTIONS}
        if tolerance is not None and winner:  # labelling has the default tolerance
            options |= {"variant": winner["variant"], "no_check": tolerance > TOLERANCE}
        source = args.dataset if own_file else "FILE"
        return command("python", name, args.model_id, source, output=output, **options)

    def check(row: dict, texts: int | None) -> list[str]:
        known = sweep.evidence.of_row(row)
        left = sum(not known or hash_item(text) not in known.changes for text in sweep.more_texts)
        if texts and texts <= left:
            seconds = texts / row["messages/s"] + texts / sweep.reference_speed
            options = {"variant": row["variant"], "quick": True, "check_time": 60 * math.ceil(seconds / 30)}
            options |= {"model_id": args.model_id, "dataset": args.dataset if args.dataset != "normal" else None}
            line = command("python", "run_benchmark.py", **options, **given, tolerance=tolerance)
            return [f"To decide {row['variant']} ({texts:,} more texts, about {time_words(seconds)}):", *fold(line)]
        reason = "its share is too close to the tolerance"
        if texts:
            reason = f"that takes {texts:,} more texts, and {dataset_name} has {left:,}"
        looser = " or --tolerance" if row["flips"] <= args.tolerance else ""
        advice = f"{row['variant']} can't be decided now: {reason}. Use a larger --dataset{looser}."
        return textwrap.wrap(advice, WIDTH)

    return label, check


def main() -> int:
    args = parse_arguments()
    variants = choose_variants(args.variant, args.device, args.quick)
    task, task_options = task_choice(args)
    dataset = load_dataset(args.dataset, text_columns(args), Csv.from_options(args)).limited(args.limit)
    device = Device(args.gpu if args.device == "gpu" else None, cpu_cores())
    info = device_info(device.gpu)
    args.batches = usable_sizes(args, variants, len(dataset.texts))
    results_dir = None if args.no_save or args.dry_run else args.results_dir
    if results_dir:
        file = {"model": args.model_id, "dataset": dataset.name, "device": slug(info.name)}
        check_writable(rows.results_path(results_dir, file | {"variant": max(variants, key=len)}).parent)
    evidence = EvidenceFile(args.results_dir, save=results_dir is not None)
    with helper_process() as call:  # one for all calls, so that torch is imported once
        check_writable(CACHE)
        model = open_model(args.model_id, call, task, args.original, task_options).with_thresholds(args.threshold)
        variants = runnable_variants(model, variants, args.variant)
        say(f"machine    {info.name}{', driver ' + info.driver if info.driver else ''}")
        busy = measure_busy(info, device)
        splits = share_cores(args.workers or [1], args.threads)
        if args.search:
            splits = splits_to_try(model, device.kind, info.uuid)
        cells = plan_cells(variants, splits, args.batching, args.batches, args.batch_tokens)
        note_slowdowns(variants, device, splits, busy)
        for line in dataset.notes:
            note(line)
        fields = {name: getattr(args, name) for name in SWEEP_OPTIONS}
        fields |= {"evidence": evidence, "peaks": find_peaks(variants, device, call)}
        fields |= measure_speed(model, dataset.texts, fields["peaks"], call, device.gpu)
        earlier = rows_for_advice(args.results_dir, columns_of_run(model, dataset, info))
        if args.quick:
            size = quick_size(fields["reference_speed"], splits, earlier["texts"])
            dataset = dataset.limited(max([size, *args.batches]))
            fields["deadline"] = START + QUICK_SECONDS + max(args.check_time - QUICK_CHECK, 0)
        run_columns = columns_of_run(model, dataset, info)
        if busy is not None:
            run_columns["busy"], fields["uuid"] = f"{busy:.2f}", info.uuid
        reused = rows_to_reuse(earlier, run_columns, cells) if args.resume else None
        sweep = plan_sweep(model, dataset, device, call, **fields)
        recorder = Recorder(run_columns, results_dir, sys.stdout, sweep.evidence, args.tolerance, earlier, reused)
        planned = cells_to_run(expected_cells(sweep, cells), recorder.speeds())
        if args.resume:
            say(f"resume     reusing {len(reused)} rows of earlier runs")
        say_plan(args, sweep, planned, variants)
        if args.dry_run:
            for cell in planned:
                print(cell.variant, f"{cell.workers}x{cell.threads}", cell.batching, cell.stage, sep="\t")
            return 0
    sweep = prepare_sweep(sweep, variants, dataset.name, slug(info.name))
    describe_sweep(sweep, dataset.name)
    measure_cells(args, sweep, cells, recorder)
    completed = recorder.completed()
    commands = follow_ups(args, sweep, dataset.name, model.task.script) if model.can_be_compared else ()
    for line in [] if completed.empty else verdict(completed, sweep.evidence, args.tolerance, *commands):
        say(line)
    return int(any(row["status"] != "ok" for row in recorder.rows) or bool(recorder.unsaved))


if __name__ == "__main__":
    run(main)
