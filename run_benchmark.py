"""Finds the fastest way to run an encoder classifier on this machine, and whether the fast way is still right.

    python run_benchmark.py --model onnx-fp16 --device gpu
    python run_benchmark.py --model torch,torch-bf16,onnx --device cpu --model-id random-roberta-base --limit 256

Every combination of variant, workers, batch size and order is a cell. A cell is measured in messages/s and gives a
row, printed on standard output and saved under results/. Notes, progress and the summary go to standard error.

What is timed: the forward passes over all batches of a cell, from the first worker's start to the last worker's end,
on one clock, with the device synchronized at both ends. Left out: tokenizing, padding, moving to the device, loading,
compiling, and the warm-up. A cell repeats whole passes until --min-time seconds are measured; its row has the median,
the minimum and the maximum. The fastest cell of each variant and worker count is timed once more from the texts
themselves to the logits on the host, tokenizing, padding and moving while the model runs: a row of its own.

What is checked: 256 texts, evenly spaced. Their probabilities, taken from the last timed pass, are compared with those
of the original model in eager FP32 PyTorch: `max_diff` is the largest difference of any label's probability, `flips`
the share of changed decisions. `ok` means that a cell ran and its outputs are finite; judge accuracy by these two.

Exit code: 0, 1 if a cell failed (its row says why) or a row could not be saved, 2 for wrong usage or input, 130 after
Ctrl-C.
"""

import contextlib
import itertools
import math
import sys
from argparse import ArgumentTypeError, Namespace
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench import machine, results
from bench.batches import ORDERS
from bench.export import find_export
from bench.files import check_writable, slug
from bench.inputs import PADDING_CHANGES, identify, padding_words, prepare_inputs
from bench.models import DEFAULT_MODEL, RANDOM_MODEL, find_model
from bench.notes import is_native, note, note_what_slows
from bench.passes import Cell
from bench.resume import cell_of, cells_to_run, measured_before
from bench.sweep import Sweep, estimate, run_cells
from bench.table import HEADER, table_line
from bench.texts import Dataset, load_dataset
from bench.verdict import next_command, verdict
from bench.workers import in_fresh_process
from runtimes import VARIANTS
from runtimes.runner import Place
from utils import CACHE, Parser, UserError, clean, int_from, list_of, process_count, run, say, step

BUSY = 0.1  # others' share of the device above which a note is printed
BUSY_MIB = 1024  # MiB in use on a GPU above which a note is printed (a desktop takes less)
BATCH_TOKENS = {"gpu": [16384, 32768, 65536], "cpu": [1024, 4096, 16384]}
QUICK = {"limit": 64, "batches": [1, 8], "batch_tokens": [512], "order": ["length", "tokens"], "min_time": 0.0}
QUICK_TEXTS = 10.0  # seconds of a pass, above which a first look does not time it from texts, too
LOADING = 5.0  # seconds, about, until a variant's workers are ready


# ------------------------------------------------------------------------------------------------------- options


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add, whole = parser.add_argument, int_from(1)
    names = f"comma list of {', '.join(VARIANTS)}; or all"
    add("--model", required=True, type=list_of(str.strip), metavar="LIST", help=names)
    add("--device", required=True, choices=("gpu", "cpu"))
    add("--dataset", default="normal", help="normal, filtered, or a CSV, CSV.gz or Parquet file (default: normal)")
    add("--column", default="body", help="the file's text column (default: body)")
    model_help = f"Hub id, local folder, or {RANDOM_MODEL}, which needs no network (default: %(default)s)"
    add("--model-id", default=DEFAULT_MODEL, help=model_help)
    add("--gpu", type=int_from(0), default=0, help="GPU id (default: 0)")
    sizes = [1, 2, 4, 8, 16, 32]
    add("--batches", type=list_of(whole), default=sizes, help="texts in a batch (default: 1,2,4,8,16,32)")
    token_help = "tokens in a batch, padding counted, in order tokens (default: 1024,4096,16384; GPU 16384,32768,65536)"
    add("--batch-tokens", type=list_of(whole), help=token_help)
    add("--workers", type=list_of(process_count), default=[1], help="comma list of worker counts (default: 1)")
    add("--threads", type=process_count, default=1, help="CPU threads of each worker (default: 1)")
    order_help = "comma list of dataset, length, tokens (default: all three)"
    add("--order", type=list_of(order), default=list(ORDERS), help=order_help)
    add("--limit", type=whole, help="use only this many texts, evenly spaced through the dataset (default: all)")
    min_help = "measure each cell for at least this many seconds, in whole passes (default: 3)"
    add("--min-time", type=seconds, default=3.0, help=min_help)
    rounds_help = "measure every cell this many times, in turn: a slow minute of a shared machine then hits all alike"
    add("--rounds", type=whole, default=1, help=f"{rounds_help} (default: 1)")
    timeout_help = "give up on a cell after this many seconds without progress (default: 600; 0: never)"
    add("--timeout", type=seconds, default=600.0, help=timeout_help)
    saving = parser.add_mutually_exclusive_group()
    saving.add_argument("--results-dir", type=Path, default=Path("results"), help="default: results")
    saving.add_argument("--no-save", action="store_true", help="save nothing")
    add(
        "--resume",
        action="store_true",
        help="skip cells with a good row of the same texts, weights, commit and versions",
    )
    add("--dry-run", action="store_true", help="print the cells that would run, and stop")
    quick = "a first look in about two minutes: 64 texts, sizes 1 and 8 and 512 tokens, one pass each"
    add("--quick", action="store_true", help=quick)
    args = parser.parse_args()
    parser.set_defaults(**{"batch_tokens": BATCH_TOKENS[args.device]} | (QUICK if args.quick else {}))
    return parser.parse_args()


def order(text: str) -> str:
    if text not in ORDERS:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(ORDERS)}")
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
            if device in variant.all_on and machine.versions(*variant.packages) and is_native(variant, device)
        ]
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"no variant {name!r}; there are: {', '.join(VARIANTS)}, or all of them as `all`")
        if device in VARIANTS[name].refused:
            raise UserError(f"{name} can't run on a {device}: {VARIANTS[name].refused[device]}")
    return names


def plan_cells(args: Namespace, messages: int) -> list[Cell]:
    """Returns the cells asked for; sizes above the number of messages are left out, with a note.

    One text at a time is the same work in orders dataset and length: it is measured once, as dataset. Raises UserError
    if none is left.
    """
    sizes = [
        (size, "dataset" if size == 1 else order) for size in args.batches for order in args.order if order != "tokens"
    ]
    sizes = list(dict.fromkeys(sizes))
    batchings = [(size, order) for size, order in sizes if size <= messages]
    left_out = ",".join(dict.fromkeys(str(size) for size, _ in sizes if size > messages))
    batchings += [(size, "tokens") for size in args.batch_tokens if "tokens" in args.order]
    if not batchings:
        raise UserError(f"--batches {left_out}: there are only {messages} messages")
    if left_out:
        note(f"sizes {left_out} are left out: there are only {messages} messages")
    whole = [(size, "dataset", "texts") for size in args.batches if size <= messages]
    return [
        Cell(variant, workers, *how)
        for variant, workers in itertools.product(args.model, args.workers)
        for how in (whole if VARIANTS[variant].whole_texts else batchings)
    ]


# ------------------------------------------------------------------------------------------------ before the cells


def find_machine(args: Namespace) -> tuple[dict[str, str], str]:
    """Names the device and measures what others use of it; notes what is odd.

    Returns the row's columns and NVML's id of the GPU (empty without). Raises UserError for a GPU that can't be used.
    """
    name, driver, uuid, load = machine.cpu_name(), "", "", None
    if args.device == "gpu":
        name, driver, uuid = in_fresh_process(machine.find_gpu, args.gpu)
    say(f"machine    {name}{', driver ' + driver if driver else ''}")
    if args.device == "cpu":
        load = machine.cpu_load()
        if (load or 0) > BUSY:
            note(f"others keep {load:.0%} of the cores busy: expect less messages/s, and less steady ones")
    else:
        try:
            load, others, used = machine.gpu_load(uuid)
            if others or load > BUSY or used > BUSY_MIB:
                note(f"others use the GPU: {others} processes seen, {used:.0f} MiB, busy {load:.0%} of the time")
        except UserError as error:
            note(str(error))
            uuid = ""
    load = "" if load is None else f"{load:.2f}"
    return {"device": slug(name), "driver": driver, "load": load, "commit": machine.project_commit()}, uuid


def columns_of(variant: str) -> dict[str, str]:
    """Returns the columns that are the same in all rows of a variant: its name, and the versions that it runs with."""
    versions = machine.versions("torch", "transformers", *VARIANTS[variant].packages)
    return {"variant": variant, "versions": ", ".join(f"{name} {version}" for name, version in versions.items())}


def prepare(args: Namespace, model: Path, variants: list[str], dataset: Dataset, uuid: str) -> Sweep:
    """Does all that comes before the first cell: token ids, the reference, exports, the peak."""
    place = Place(args.gpu if args.device == "gpu" else None, args.threads)
    with step("reference  token ids, and eager FP32 torch on some of the messages"):
        inputs = prepare_inputs(model, dataset.texts, place.gpu)
    lengths = inputs.lengths
    p5, p50, p95, p99 = np.percentile(lengths, [5, 50, 95, 99])
    say(f"model      {args.model_id}: {inputs.about['model']}")
    say(f"dataset    {clean(dataset.name)}: {len(lengths)} messages; tokens: mean {lengths.mean():.1f},")
    say(f"           p5 {p5:.0f}, p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, most {lengths.max()}")
    if inputs.about["empty"]:
        note(f"{inputs.about['empty']} texts give no token and are left out")
    if inputs.about["padding_effect"] > PADDING_CHANGES:
        note(padding_words(inputs.about["model"].split(",")[0], inputs.about["padding_effect"]))
    say(f"tokenizer  {inputs.about['tokenizer']}, measured when these token ids were made")
    say(f"check      {len(inputs.checked)} of the messages are compared with the reference")
    sources = {}
    for name in variants:
        try:
            in_fresh_process(VARIANTS[name].check, place.gpu)
            sources[name], origin = model, args.model_id
            if VARIANTS[name].export:
                sources[name], origin = find_export(VARIANTS[name].export, args.model_id, model)
        except UserError as error:  # its cells fail, the others run
            sources[name], origin = error, error
        say(f"variant    {name}: {origin}")
    texts_within = QUICK_TEXTS if args.quick else math.inf
    with step("peak       how fast this device multiplies large matrices"):
        precisions = {"fp32", *(VARIANTS[name].computes_in(place.gpu) for name in variants)}
        peaks = in_fresh_process(machine.measure_peaks, sorted(precisions), place)
    say(f"           {', '.join(f'{name} {peak / 1e12:.3g}' for name, peak in peaks.items())} TFLOP/s")
    return Sweep(model, inputs, sources, place, peaks, args.min_time, texts_within, args.timeout, uuid)


# ------------------------------------------------------------------------------------------------------- the cells


def measure_cells(args: Namespace, sweep: Sweep, cells: list[Cell], before: dict, same: dict) -> tuple[list, list]:
    """Measures the cells, printing and appending each row; returns all rows, and those that could not be saved."""
    rows, unsaved, costs = [], [], estimate(sweep, cells)
    groups = {(cell.variant, cell.workers) for cell in cells}
    total = args.rounds * (sum(costs.values()) + len(groups) * LOADING)
    say(f"plan       {len(cells)} cells, about {max(1, round(total / 60))} min, compiling not counted")
    print(HEADER, flush=True)
    measured = contextlib.closing(run_cells(sweep, cells, before, args.rounds))
    layout = "{percentage:3.0f}% {bar} {elapsed}, {remaining} left"
    progress_bar = tqdm(total=args.rounds * sum(costs.values()), bar_format=layout, file=sys.stderr, disable=None)
    try:
        with measured as measured, progress_bar as progress:
            for cell, figures in measured:
                row = dict.fromkeys(results.COLUMNS, "") | same | columns_of(cell.variant) | asdict(cell) | figures
                rows.append(row)
                unsaved.append(row)
                if not args.no_save:
                    save(args.results_dir, unsaved)
                progress.write(table_line(row), file=sys.stdout)
                sys.stdout.flush()
                progress.update(costs.get(cell, 0))
    finally:
        if unsaved and not args.no_save:
            lines = results.HEADER + "".join(map(results.line_of, unsaved))
            say(f"not saved in {args.results_dir}, so copy it from here:\n{lines.rstrip()}")
    return rows, [] if args.no_save else unsaved


def save(results_dir: Path, unsaved: list[dict]) -> None:
    """Appends the last of the rows to its file, and takes it out of the list; else says why it stays there."""
    path = results.results_path(results_dir, unsaved[-1])
    try:
        results.append_row(path, unsaved[-1])
        unsaved.pop()
    except OSError as error:
        say(f"{path}: not saved: {error.strerror}")


def note_the_peak(sweep: Sweep, rows: list[dict]) -> None:
    """Measures the peak once more; notes where the shares of it would be lower, or can't be told."""
    if any(row["tflops"] and not row["mfu"] and VARIANTS[row["variant"]].precision != "int8" for row in rows):
        note("shares of the peak above 100% are left out: torch, which measures the peak, was slow or is slow here")
    after = in_fresh_process(machine.measure_peaks, sorted(sweep.peaks), sweep.place)
    for name, peak in after.items():
        if peak > 1.05 * sweep.peaks[name]:
            note(
                f"the {name} peak was {peak / sweep.peaks[name]:.2f} times as high after the sweep: divide shares of it"
            )


def say_verdict(args: Namespace, sweep: Sweep, rows: list[dict]) -> None:
    good, _, _ = results.good_rows(rows)
    command = next_command(args)
    for line in [] if good.empty else verdict(results.latest(good), command):
        say(clean(line))


def main() -> int:
    args = parse_arguments()
    args.model = choose_variants(args.model, args.device)
    dataset = load_dataset(args.dataset, args.column, args.limit)
    columns, uuid = find_machine(args)
    note_what_slows(args, columns["load"])
    for line in dataset.notes:
        note(line)
    cells, before = plan_cells(args, len(dataset.texts)), results.good_rows([])[0]
    same = {"model": args.model_id, "dataset": dataset.name, "messages": len(dataset.texts), "threads": args.threads}
    same |= {name: columns[name] for name in ("device", "commit")}
    if not (args.no_save or args.dry_run):
        longest = max(args.model, key=len)
        check_writable(results.results_path(args.results_dir, same | {"variant": longest}).parent)
    if args.resume or not args.dry_run:
        check_writable(CACHE)
        model = find_model(args.model_id)
        same |= identify(model, dataset.texts)
    if args.resume:
        before = measured_before(args.results_dir, same, columns_of, cells)
    speeds = {cell_of(row): row["messages/s"] for row in before.to_dict("records")}
    cells = cells_to_run(cells, speeds) if args.resume else cells
    if args.dry_run or not cells:
        say(f"{len(cells)} cells to run" + f", {args.rounds} times" * (args.rounds > 1))
        for cell in cells:
            print(cell.variant, cell.workers, cell.size, cell.order, cell.timed, sep="\t")
        return 0

    sweep = prepare(args, model, list(dict.fromkeys(cell.variant for cell in cells)), dataset, uuid)
    same |= columns | {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    rows, unsaved = measure_cells(args, sweep, cells, speeds, same)
    note_the_peak(sweep, rows)
    say_verdict(args, sweep, [*before.astype(str).to_dict("records"), *rows])
    return int(any(row["status"] != "ok" for row in rows) or bool(unsaved))


if __name__ == "__main__":
    run(main)
