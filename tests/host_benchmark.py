"""Measure the host's part of labelling: all of it except for the model, which answers at once with zeros.

    python tests/host_benchmark.py
    python tests/host_benchmark.py comments.csv.gz --column body --model-id ./my-model --workers 1,2,4

It is not a test. For each number of workers it labels the file with the engine of classify_texts.py (or with
--embeddings that of embed_texts.py) and prints comments/s, and CPU microseconds per comment in this process and in the
workers. Before that, it times the stages one by one, on one thread.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.csv  # noqa: E402

from bench.label.pool import LabelPool  # noqa: E402
from bench.label.rows import Answers, OutputSpec, VectorSpec, choose_columns, label_table  # noqa: E402
from bench.label.splits import InputSplit, cut_splits  # noqa: E402
from bench.machine import cpu_cores  # noqa: E402
from bench.model.batches import Batching  # noqa: E402
from bench.model.model import Model  # noqa: E402
from bench.model.resolve import open_model  # noqa: E402
from bench.start_process import stopped_afterwards  # noqa: E402
from bench.tables.folders import common_schema  # noqa: E402
from bench.tables.items import items_of  # noqa: E402
from bench.tables.readers import open_table  # noqa: E402
from bench.tables.storage import locate  # noqa: E402
from bench.variants import Device, TokenRunner, Variant  # noqa: E402
from runtimes import VARIANTS  # noqa: E402
from runtimes.classifier import Classifier, ClassifierSpec  # noqa: E402


def load_instant(model: Model, exported: None, device: Device) -> TokenRunner:
    def forward(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return np.zeros((len(inputs["input_ids"]), model.task.n_outputs), np.float32)

    return TokenRunner(prepare=lambda inputs: inputs, forward=forward, warm_up=forward)


VARIANTS["instant"] = Variant(load_instant, "fp32", packages=("numpy",))


@dataclass(frozen=True)
class InstantSpec(ClassifierSpec):
    """A worker that unpickles it imports this module, and so has the variant."""


def cpu_seconds(classifier: Classifier) -> float:
    return time.process_time()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=ROOT / "data" / "synthetic_10k.csv.gz")
    parser.add_argument("--column", default="body", help="the texts (default: body)")
    parser.add_argument("--model-id", default="random-roberta-base")
    parser.add_argument("--embeddings", action="store_true", help="write vectors, as embed_texts.py does")
    parser.add_argument("--workers", default="1,2,4", help="numbers of workers (default: 1,2,4)")
    parser.add_argument("--texts", type=int, default=100_000, help="rows, made by repeating the file (default: 100000)")
    parser.add_argument("--rows-per-file", type=int, default=25_000, help="of the output (default: 25000)")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="of a batch (default: 16384)")
    parser.add_argument("--parquet", action="store_true", help="read Parquet instead of CSV")
    return parser.parse_args()


def open_split(file: Path, column: str, model: Model, args: argparse.Namespace) -> tuple[list[InputSplit], OutputSpec]:
    table = open_table(file)
    kept = choose_columns([table], [column], None, keep_text=False)
    spec = VectorSpec if args.embeddings else OutputSpec
    schema = common_schema([table], [*kept, column], [column])
    fields = {"model_labels": model.labels, "labels": model.labels, "rows_per_file": args.rows_per_file}
    output = spec(schema, [column], kept, **fields)
    return cut_splits([table], output, locate(file)), output


def time_stages(model: Model, splits: list[InputSplit], output: OutputSpec, batching: Batching) -> None:
    """Print CPU microseconds per comment of each stage, one after the other and on one thread."""
    times, count = {}, 0
    start = time.process_time()

    def stage(name: str) -> None:
        nonlocal start
        times[name] = times.get(name, 0) + time.process_time() - start
        start = time.process_time()

    classifier = Classifier(InstantSpec(model, "instant", None, Device(None, threads=1)))
    fast = model.tokenizer.backend_tokenizer
    list(classifier.batches(["A text."], batching))
    start = time.process_time()
    for part in (part for split in splits for part in split.read(output)):
        stage("read")
        items = items_of(part.table, output.text_columns)
        texts = [item for item in items if item is not None]
        stage("texts")
        for first in range(0, len(texts), 2048):
            fast.encode_batch_fast(texts[first : first + 2048])
        stage("(tokenizing alone)")
        predictions = classifier.predict(texts, batching)
        stage("tokenize, sort, pad, answer")
        label_table(part.table, items, Answers(predictions.answers.astype(np.float32), predictions.lengths), output)
        stage("columns")
        count += len(texts)
    print(*(f"{seconds / count * 1e6:6.2f} us {name}" for name, seconds in times.items()), sep="\n")


def label(model: Model, splits: list, output: OutputSpec, batching: Batching, workers: int) -> None:
    """Label with this number of workers, and print the speed."""
    device = Device(None, threads=max(1, cpu_cores() // workers))
    with tempfile.TemporaryDirectory() as folder:
        pool = LabelPool([InstantSpec(model, "instant", None, device)] * workers, batching, locate(folder))
        with pool:
            pool.start()
            pool.workers.call(Classifier.predict_share, ["A text."] * workers, batching)
            before = sum(pool.workers.call(cpu_seconds))
            start, own = time.monotonic(), time.process_time()
            parts = (part for split in splits for part in split.read(output))
            texts = sum(footer.counts.texts for footer, _ in pool.label_parts(parts, output))
            seconds, own = time.monotonic() - start, time.process_time() - own
            theirs = sum(pool.workers.call(cpu_seconds)) - before
    busy = pool.busy / seconds
    print(
        f"{workers} workers: {texts / seconds:8,.0f} comments/s; CPU {own / texts * 1e6:.2f} us here, "
        f"{theirs / texts * 1e6:.2f} us in the workers; busy {busy:.0%}"
    )


def main() -> None:
    args = parse_arguments()
    model = open_model(args.model_id, task="embedding" if args.embeddings else None)
    batching = Batching("token-budget", batch_tokens=args.batch_tokens)
    with tempfile.TemporaryDirectory() as folder, stopped_afterwards():
        table = pa.concat_tables(rows.table for rows in open_table(args.file).rows(open_table(args.file).schema))
        table = pa.concat_tables([table] * -(-args.texts // len(table))).slice(0, args.texts).combine_chunks()
        file = Path(folder) / ("texts.parquet" if args.parquet else "texts.csv")
        if args.parquet:
            pa.parquet.write_table(table, file)
        else:
            pa.csv.write_csv(table, file)
        splits, output = open_split(file, args.column, model, args)
        time_stages(model, splits, output, batching)
        for workers in map(int, args.workers.split(",")):
            label(model, splits, output, batching, workers)


if __name__ == "__main__":
    from host_benchmark import main

    main()
