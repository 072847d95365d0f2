"""Labels texts in bulk with an encoder classifier, by the fastest way that was measured to be right.

    python classify_texts.py SamLowe/roberta-base-go_emotions comments.csv.gz --output labelled
    python classify_texts.py ./my-model parquet-folder --output labelled --column text --top --device cpu
    python classify_texts.py ./my-model /shared/texts --output /shared/labelled --ray auto --device gpu

INPUT is a CSV, CSV.gz or Parquet file, or a folder of them. DIR gets part-00000.parquet, part-00001.parquet, ...: for
every row, in the input's order, its other columns and one float32 column for each label (probabilities as transformers'
pipeline gives them; nulls where a row has no text). Columns of a CSV file stay text.

How it runs: as the fastest row, from texts to logits, that run_benchmark.py saved for this device and these weights and
that changes at most 0.1% of the decisions. Without one, onnx-fp16 on a GPU, else the best precision that the CPU
computes natively. --variant, --workers, --threads and --batch-tokens say otherwise.

A part appears whole or not at all. An interrupted run, started again with the same arguments, goes on behind the last
part.

Exit code: 0, 1 if something failed on the way, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import contextlib
import fcntl
import itertools
import json
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench import machine, on_ray, parts, results
from bench.classify import TEMPORARY, Labeller, Way, describe
from bench.export import find_export
from bench.files import check_writable, digest, new_file, slug
from bench.inputs import identify
from bench.models import RANDOM_MODEL, find_model, read_json
from bench.parts import Layout
from bench.verdict import rank
from bench.workers import in_fresh_process
from runtimes import VARIANTS
from runtimes.runner import Place
from utils import CACHE, Parser, UserError, cpu_cores, int_from, list_of, process_count, run, say

CHOICES = [name for name, variant in VARIANTS.items() if not variant.whole_texts]
JOB = "_job.json"  # in the output folder: what it is made of
HOW = "device", "variant", "workers", "threads", "batch_tokens"  # options that say how it runs
TOKENS = {"gpu": 16384, "cpu": 1024}  # in a batch, where nothing was measured


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add, whole = parser.add_argument, int_from(1)
    add("model_id", metavar="MODEL", help=f"Hub id, local folder, or {RANDOM_MODEL}")
    add("input", metavar="INPUT", type=Path, help="a CSV, CSV.gz or Parquet file, or a folder of them")
    add("--output", metavar="DIR", type=Path, required=True, help="where the parts go")
    add("--column", default="body", help="the text column (default: body)")
    add("--keep", type=list_of(str.strip), metavar="LIST", help="columns to copy (default: all but the text)")
    add("--keep-text", action="store_true", help="copy the text, too")
    add("--top", action="store_true", help="only the most probable label and its score")
    add("--limit", type=whole, help="only so many rows, the first ones (default: all)")
    add("--rows-per-file", type=whole, default=100_000, metavar="N", help="rows of a part (default: 100000)")
    add("--device", choices=("gpu", "cpu"), help="default: gpu if there is one")
    add("--gpu", type=list_of(int_from(0)), metavar="LIST", help="GPU ids, a worker each (default: 0)")
    add("--variant", choices=CHOICES, metavar="NAME", help=f"one of {', '.join(CHOICES)}")
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


def choose_columns(args: Namespace, files: list[Path], labels: list[str]) -> list[str]:
    """Returns the columns to copy. Raises UserError if a label has the name of one."""
    all_but_text = [name for name in parts.schema_of(files[0]).names if name != args.column]
    keep = all_but_text if args.keep is None else [name for name in args.keep if name]
    keep = list(dict.fromkeys([*keep, *[args.column] * args.keep_text]))
    added = ["label", "score"] if args.top else labels
    if clash := [name for i, name in enumerate(added) if name in keep or name in added[:i]]:
        raise UserError(f"two columns would be called {clash[0]!r}: leave it out with --keep, or take --top")
    return keep


def find_device(args: Namespace) -> tuple[str, str]:
    """Returns `gpu` or `cpu`, and the device's name as it is in results/; on Ray those of one of its machines."""
    if args.gpu and (args.ray or args.device == "cpu"):
        raise UserError("--gpu goes with neither --ray nor --device cpu")
    call = on_ray.on_a_node if args.ray else in_fresh_process
    if args.device != "cpu":
        try:
            name, _, _ = call(machine.find_gpu, args.gpu[0] if args.gpu else 0)
            return "gpu", slug(name)
        except UserError:
            if args.device == "gpu" or args.gpu:
                raise
    return "cpu", slug(call(machine.cpu_name))


def measured_way(args: Namespace, device: str, weights_id: str) -> dict | None:
    """Returns the fastest right row, from texts, of this device and these weights; None if nothing was measured."""
    rows, _, _ = results.read_results(sorted(args.results_dir.rglob("*.tsv")))
    rows = rows[(rows["device"] == device) & (rows["weights_id"] == weights_id)]
    rows = rows[rows["variant"].isin([args.variant] if args.variant else CHOICES)]
    if rows.empty:
        return None
    texts = ["dataset", "messages", "texts_id"]  # speeds on others can't be compared: take those with most rows
    fullest = rows.groupby(texts).size().idxmax()
    ranked = rank(results.latest(rows[(rows[texts] == list(fullest)).all(axis=1)]))
    right = ranked[ranked["right"]].to_dict("records")
    return right[0] if right else None


def choose_way(args: Namespace, device: str, name: str, weights_id: str) -> dict:
    """Returns variant, workers, threads, size and order, and says why."""
    bf16 = "bf16" in machine.cpu_capabilities()
    way = {"device": device, "variant": "onnx-fp16" if device == "gpu" else "torch-bf16" if bf16 else "onnx"}
    way |= {"workers": 1, "threads": cpu_cores(), "size": TOKENS[device], "order": "tokens"}
    measured = measured_way(args, name, weights_id)
    if measured:
        way |= {key: measured[key] for key in way if key != "device"}
        words = f"{measured['variant']}, {measured['messages/s']:.1f} messages/s on {measured['dataset']}"
        say(f"fastest right row in {args.results_dir}: {words}, {measured['date'][:10]}")
    else:
        say(f"nothing right was measured in {args.results_dir} for this device and model: taking what should be fast")
    asked = {"variant": args.variant, "workers": args.workers, "threads": args.threads}
    asked |= {"size": args.batch_tokens, "order": args.batch_tokens and "tokens"}
    way |= {key: value for key, value in asked.items() if value is not None}
    if device in VARIANTS[way["variant"]].refused:
        raise UserError(f"{way['variant']} can't run on a {device}: {VARIANTS[way['variant']].refused[device]}")
    return way


def remembered(output: Path) -> dict:
    """Returns the job of the parts in a folder; nothing where it is not known."""
    try:
        return read_json(output / JOB)
    except UserError:
        return {}


def check_parts(output: Path) -> None:
    """Raises UserError if a folder holds anything but parts and what belongs to them."""
    ours = {JOB, *(path.name for path in [*parts.part_files(output), *output.glob(f".*{TEMPORARY}")])}
    if foreign := sorted(path.name for path in output.iterdir() if path.name not in ours):
        raise UserError(f"{output} holds {foreign[0]}, which is not a part: name another folder")


def start_output(args: Namespace, job: dict) -> None:
    """Checks the output folder and clears it of what is half-made, with --overwrite of all parts.

    Raises UserError if it holds other things, or parts of another job.
    """
    check_parts(args.output)
    before, done = remembered(args.output), parts.part_files(args.output)
    if done and not (args.output / JOB).is_file():
        raise UserError(f"{args.output} holds {done[0].name}, which no run of this script made: name another folder")
    if done and before != job and not args.overwrite:
        other = [key for key in job if before.get(key) != job[key]]
        raise UserError(f"{args.output} holds parts of another {', '.join(other)}; --overwrite starts anew")
    for path in [*args.output.glob(f".*{TEMPORARY}"), *(done if args.overwrite else [])]:
        path.unlink()
    if before != job:
        with new_file(args.output / JOB) as file:
            file.write(json.dumps(job, indent=2).encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder until this one ends or dies. Raises UserError if another is in it."""
    check_writable(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"another run is writing into {folder}") from error
    finally:
        os.close(descriptor)


# ----------------------------------------------------------------------------------------------------------- labelling


def label_all(args: Namespace, files: list[Path], ways: list[Way], layout: Layout) -> None:
    """Writes the parts that are missing, and says how fast.

    Raises UserError for an input that can't be read, and RunError if the workers fail twice over a part.
    """
    total = min(sum(map(parts.estimate_rows, files)), layout.limit or sys.maxsize)
    rows = {n: min(layout.rows, total - n * layout.rows) for n in range(math.ceil(total / layout.rows))}  # of each part
    there = [n for n in rows if parts.is_whole(args.output / parts.part_name(n), rows[n])]
    first = next(n for n in itertools.count() if n not in there)
    done, made, counts, start = sum(rows[n] for n in there), 0, np.zeros(3, dtype=int), time.monotonic()
    with (
        Labeller(ways, args.output) as labeller,
        tqdm(total=total, initial=done, unit=" rows", disable=None) as progress,
    ):

        def show(texts: list[int | None]) -> None:
            progress.update(done + sum(filter(None, texts)) - progress.n)

        if args.ray:
            missing = [n for n in rows if n not in there]
            labelled = on_ray.label_on_ray(missing, ways[0], args.workers, files, layout, args.output)
        else:
            labelled = labeller.label_parts(files, layout, first, show)
        for more, counted in labelled:
            counts, done, made = counts + counted, done + more, made + 1
            progress.update(done - progress.n)
        progress.total = done
    if not (whole := parts.part_files(args.output)):
        raise UserError("the input has no rows")
    if whole[-1].name != parts.part_name(len(whole) - 1):
        raise UserError(f"{whole[-1]} is behind the last row of the input: it is not of this run")
    done = sum(map(parts.estimate_rows, whole))
    if not made:
        say(f"all {done:,} rows are labelled already")
        return
    if not counts[0]:
        say(f"no row has a text; {done:,} rows in all")
        return
    (texts, tokens, lost), seconds = counts, time.monotonic() - start - labeller.loading
    if lost:
        say(f"{lost:,} texts have nulls: they gave no token, or the model no finite number")
    say(f"{texts:,} texts, {tokens:,} tokens, {seconds:.1f} s, {texts / seconds:,.1f} messages/s; {done:,} rows in all")


def find_ways(args: Namespace, model: Path, about: dict, how: dict) -> list[Way]:
    """Returns how each worker labels, with an export if need be, and says so."""
    source, origin, variant = model, args.model_id, VARIANTS[how["variant"]]
    if variant.export:
        source, origin = find_export(variant.export, args.model_id, model)
    say(f"labelling by {how['variant']}, {origin}: {how['workers']} x {how['threads']}, {how['size']} {how['order']}")
    gpus = [None] if how["device"] == "cpu" else args.gpu or [0]  # Ray shows an actor only its own
    workers = 1 if args.ray else how["workers"]  # of a part
    alone = not args.ray and len(gpus) * workers == 1
    places = [Place(gpu, how["threads"], alone) for gpu in gpus for _ in range(workers)]
    return [
        Way(model, about, how["variant"], source, place, len(places), how["size"], how["order"]) for place in places
    ]


def main() -> int:
    args = parse_arguments()
    files = parts.find_files(args.input.absolute())
    if args.ray and not all(map(parts.is_parquet, files)):
        raise UserError("on Ray the input is Parquet, of which each machine can read its part: convert it first")
    check_writable(CACHE)
    model, args.output = find_model(args.model_id), args.output.absolute()
    about, weights_id = in_fresh_process(describe, model), identify(model, [])["weights_id"]
    if inside := [file for file in files if args.output.resolve() in file.resolve().parents]:
        raise UserError(f"{inside[0]} is in the output folder: name another one")
    columns = choose_columns(args, files, about["labels"])
    schema = parts.common_schema(files, list(dict.fromkeys([*columns, args.column])), args.column)
    layout = Layout(schema, columns, args.column, about["labels"], args.top, args.rows_per_file, args.limit)
    with locked(args.output), on_ray.cluster(args.ray) if args.ray else contextlib.nullcontext():
        before = remembered(args.output)
        asked = {name: getattr(args, name) for name in HOW}
        if (before.get("options"), before.get("model")) == (asked, weights_id) and not args.overwrite:
            how = before["way"]  # though by now another may be the fastest in results/
        else:
            how = choose_way(args, *find_device(args), weights_id)
        ways = find_ways(args, model, about, how)
        job = {"input": digest(files), "model": weights_id, "options": asked, "way": how}
        job |= asdict(layout) | {"schema": str(schema)}
        job["export"] = digest([ways[0].source]) if ways[0].source != model else ""
        start_output(args, job)
        label_all(args, files, ways, layout)
    return 0


if __name__ == "__main__":
    run(main)
