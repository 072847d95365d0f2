"""Embed texts in bulk with the fastest variant that is proven to match SentenceTransformer.encode().

    python embed_texts.py sentence-transformers/all-MiniLM-L6-v2 comments.csv.gz --output vectors
    python embed_texts.py intfloat/e5-small-v2 s3://bucket/texts --output s3://bucket/vectors --prompt "query: "

MODEL: a sentence-transformers model, or any encoder, whose tokens are then pooled by --pooling.
INPUT: a file of CSV, TSV, JSON Lines (also .gz, .zst) or Parquet, or a folder of them, local or in a bucket (s3://,
gs://, hf://datasets/...). Sub-folders such as year=2024 become columns.

DIR gets Parquet files with the input's rows in order, its other columns, and `embedding`, a fixed-size list of float32;
null where there is no text or no answer. _bad_rows.jsonl lists the rows that cannot be parsed or answered. Some rows
are compared with the original model: see _receipt.json. A decision is which of 256 texts is the nearest.

The variant is the fastest one that --results-dir proves for this device, model and length of texts. If there is none, a
job of over half an hour starts with a quick benchmark (not with --ray), and a shorter one runs in FP32 PyTorch.

From Python: `from embed_texts import embed`; `embed(MODEL, texts)` returns a numpy array, float32 [texts, dimensions].

After an interruption, rerun the same command to resume. docs/clusters.md explains how to use several machines.

References and other reusable files are kept in BENCHMARK_CACHE (default: the folder .cache beside this script).
Exit code: 0 on success, 1 if something failed or vectors are wrong, 2 for wrong usage or input, 130 after Ctrl-C.
"""

from argparse import Namespace

from bench.label.options import job_parser, parse_job
from bench.options import VECTOR_OPTIONS, add_vector_options
from utils import UserError, before_imports, run, say


def parse_arguments() -> Namespace:
    # 25,000 vectors of 384 dimensions take 38 MB, several times while a part is written
    parser, groups = job_parser(__doc__, ("cut", "windows"), "take the mean over overlapping windows", rows=25_000)
    add_vector_options(groups["task"])
    add = groups["output"].add_argument
    add("--float16", action="store_true", help="write vectors as float16, in half the space")
    parser.set_defaults(task="embedding")
    return parse_job(parser)


if __name__ == "__main__":
    before_imports(parse_arguments)

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.label.job import answer_items, run_job
from bench.label.plan import PlanOptions, choose_plan, find_device
from bench.label.rows import VectorSpec
from bench.model.model import Model
from bench.model.resolve import open_model


def embed(
    model_id: str | Path,
    texts: str | Sequence[str],
    *,
    variant: str = "torch",
    device: str | None = None,
    batch_tokens: int | None = None,
    **options,
) -> np.ndarray:
    """Return the vectors of texts, float32 [texts, dimensions], or of one text, as SentenceTransformer.encode() does.

    `variant`: as in run_benchmark.py; `device`: gpu or cpu (default: gpu if there is one); `options`: `prompt`,
    `prompt_name`, `truncate_dim`, `normalize` and `pooling`, see --help. Texts without tokens have nan. The model is
    loaded into another process at each call; none is left running. Raises UserError.
    """
    wanted = "embed() takes a text or a list of texts"
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable) or hasattr(texts, "columns"):
        raise UserError(f"{wanted}, not a {type(texts).__name__}; give one column, or join several first")
    items = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(items):
        if not isinstance(text, str):
            raise UserError(f"{wanted}; number {i} is {reprlib.repr(text)}: leave it out, or make one text of it")
    if unknown := options.keys() - VECTOR_OPTIONS:
        raise TypeError(f"embed() has no option {min(unknown)!r}; its options: {', '.join(VECTOR_OPTIONS)}")
    asked = PlanOptions(device=device, variant=variant, batch_tokens=batch_tokens)
    _, vectors = answer_items(
        items,
        lambda call: open_model(str(model_id), call, "embedding", options=options),
        lambda model, call: choose_plan(find_device(asked)[0], None, asked),
    )
    return vectors[0] if isinstance(texts, str) else vectors


def main() -> int:
    args = parse_arguments()
    asked = {name: getattr(args, name) for name in VECTOR_OPTIONS}

    def open_encoder(call: Callable) -> Model:
        model = open_model(args.model_id, call, args.task, args.original, asked)
        if args.long != "cut" and model.task.prompt:
            raise UserError(f"--long {args.long}: only the first window would have the prompt; use --long cut")
        if model.task.is_plain and not args.pooling:
            say(f"pooling    {model.task.pooling}, as {args.model_id} has no modules.json; choose with --pooling")
        return model

    return run_job(args, open_encoder, VectorSpec)


if __name__ == "__main__":
    run(main)
