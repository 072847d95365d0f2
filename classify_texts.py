"""Label texts in bulk with an encoder classifier, using the fastest variant that is proven to match the original model.

    python classify_texts.py SamLowe/roberta-base-go_emotions comments.csv.gz --output labelled
    python classify_texts.py cross-encoder/nli-MiniLM2-L6-H768 a.csv --output topics --candidate-labels cooking,sports
    python classify_texts.py ./my-model s3://bucket/texts --output s3://bucket/labelled --column text --shard 3/16

INPUT: a file of CSV, TSV, JSON Lines (also .gz, .zst) or Parquet, or a folder of them, local or in a bucket (s3://,
gs://, hf://datasets/...). Sub-folders such as year=2024 become columns.

DIR gets Parquet files, named after the input file and the first row (part-comments.csv.gz-75298043-0000000000.parquet).
They have the input's rows in order, its other columns, and the probability of each label; nulls where there is no text
or no answer. _bad_rows.jsonl lists the rows that cannot be parsed or answered. Some rows are compared with the original
model: see _receipt.json.

The variant is the fastest one that --results-dir proves for this device, model and length of texts. If there is none, a
job of over half an hour starts with a quick benchmark (not with --ray), and a shorter one runs in FP32 PyTorch.

After an interruption, rerun the same command to resume. If files were added to an input folder, it labels only these.
Several machines can share a job, even of a single file: give each its --shard, then run --check-only, see
docs/clusters.md.

References and other reusable files are kept in BENCHMARK_CACHE (default: the folder .cache beside this script).
Exit code: 0 on success, 1 if something failed or rows are wrong, 2 for wrong usage or input, 130 after Ctrl-C.
"""

from argparse import Namespace

from bench.label.options import job_parser, parse_job
from bench.options import ITEM_OPTIONS, LONG_TEXTS, add_task_options, float_from, list_of
from bench.task_options import task_choice
from utils import ROOT, UserError, before_imports, run


def parse_arguments() -> Namespace:
    long_help = "read overlapping windows and take each label's maximum or mean"
    parser, groups = job_parser(__doc__, LONG_TEXTS, long_help, rows=100_000)
    add = groups["output"].add_argument
    add("--top-label", action="store_true", help="write only the most probable label and its score")
    add("--labels", type=list_of(str.strip), metavar="LIST", help="write only these labels (default: all)")
    add("--min-score", type=float_from(-1e38), metavar="SCORE", help="write null for lower scores")
    add("--float16", action="store_true", help="write scores as float16, which rounds them by up to 0.0005")
    add_task_options(groups["task"], vectors=False)
    args = parse_job(parser)
    if args.top_label and (args.labels or args.min_score is not None):
        parser.error("--top-label cannot be combined with --labels or --min-score")
    return args


if __name__ == "__main__":
    before_imports(parse_arguments)

import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from bench.label.job import answer_items, run_job
from bench.label.plan import PlanOptions, plan_for
from bench.label.rows import OutputSpec
from bench.model.classification import REGRESSION, Classification
from bench.model.model import Model
from bench.model.resolve import open_model
from bench.tables.items import Item, has_text, item_of


def classify(
    model_id: str,
    texts: list,
    candidate_labels: list[str] | None = None,
    device: str | None = None,
    results_dir: Path = ROOT / "results",
    **options: object,
):
    """Return the probability of each label for texts, or for pairs of texts, as a pandas DataFrame.

        from classify_texts import classify

        classify("cross-encoder/nli-MiniLM2-L6-H768", [("It rains.", "It is wet."), ("It rains.", "It is dry.")])
        classify("cross-encoder/nli-MiniLM2-L6-H768", ["Mix the eggs."], candidate_labels=["cooking", "politics"])

    `options`: hypothesis_template, multi_label, truncation and task, as on the command line. The variant is the fastest
    one that `results_dir` proves for this machine, otherwise FP32 PyTorch; an export that it needs is created in the
    working directory. Missing values, and texts without an answer, have nan. The index is that of a pandas Series. No
    process is left running. Raises UserError.
    """
    import pandas as pd

    items, length = items_to_classify(texts)
    usable = [i for i, item in enumerate(items) if item is not None]
    given = [items[i] for i in usable]
    is_pair = length == 2 or (not length and "truncation" in options)
    asked = dict.fromkeys(("task", *ITEM_OPTIONS)) | {"candidate_labels": candidate_labels, "pair_column": is_pair}
    if not (length or is_pair) and candidate_labels is None:
        asked["task"] = "classification"  # for the names of the labels, whatever the model compares
    if unknown := options.keys() - (asked.keys() - {"pair_column"}):
        raise UserError(f"classify() has no option {min(unknown)}")
    task, task_options = task_choice(Namespace(**asked | options, device=device))
    model, answers = answer_items(
        given,
        lambda call: open_classifier(model_id, call, task, options=task_options),
        lambda model, call: plan_for(model, given, PlanOptions(device, results_dir=Path(results_dir)), call),
    )
    values = np.full((len(items), len(model.labels)), np.nan)
    values[usable] = answers
    return pd.DataFrame(values, columns=model.labels, index=texts.index if isinstance(texts, pd.Series) else None)


def items_to_classify(texts: Iterable) -> tuple[list[Item | None], int]:
    """Return the items (None if a text is missing), and how many texts each has: 1, 2, or 0 if all are missing.

    Raises UserError for other things, and for texts among pairs.
    """
    import pandas as pd

    wanted = "classify() takes a list of texts, or of pairs of texts"
    if isinstance(texts, str | bytes | Mapping | pd.DataFrame) or not isinstance(texts, Iterable):
        raise UserError(f"{wanted}, not a {type(texts).__name__}; of a DataFrame give a column, or to_numpy() of two")
    items, lengths = [], set()
    for i, row in enumerate(texts):
        is_pair = isinstance(row, tuple | list | np.ndarray)
        parts = list(row) if is_pair else [row]
        parts = [None if pd.api.types.is_scalar(part) and pd.isna(part) else part for part in parts]
        if not all(isinstance(part, str | None) for part in parts) or (is_pair and len(parts) != 2):
            raise UserError(f"{wanted}; number {i} is {reprlib.repr(row)}")
        lengths |= {len(parts)} if is_pair or parts[0] is not None else set()
        items.append(item_of(parts) if all(map(has_text, parts)) else None)
    if len(lengths) > 1:
        raise UserError(f"{wanted}, and this list has both")
    return items, max(lengths, default=0)


def open_classifier(model_id: str, *arguments, **options) -> Model:
    """Call open_model(). Raises UserError if the model has no labels."""
    model = open_model(model_id, *arguments, **options)
    if not isinstance(model.task, Classification):
        raise UserError(f"{model_id} is an embedding model, which has no labels; use embed_texts.py")
    return model


def main() -> int:
    args = parse_arguments()
    task, task_options = task_choice(args)

    def open_for_job(call: Callable) -> Model:
        model = open_classifier(args.model_id, call, task, args.original, task_options).with_thresholds(args.threshold)
        if model.task.problem_type != REGRESSION and not 0 <= (args.min_score or 0) <= 1:
            raise UserError(f"--min-score {args.min_score:g}: give a probability, from 0 to 1")
        if args.float16 and model.task.takes_pairs and model.task.problem_type == REGRESSION:
            raise UserError("--float16 would make equal scores of different ones, by which pairs are ranked; drop it")
        return model

    return run_job(args, open_for_job, OutputSpec)


if __name__ == "__main__":
    run(main)
