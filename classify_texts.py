"""Label texts in bulk with an encoder classifier, using the fastest variant that is proven to match the original model.

    python classify_texts.py SamLowe/roberta-base-go_emotions comments.csv.gz --output labelled
    python classify_texts.py ./my-model s3://bucket/texts --output s3://bucket/labelled --column text --shard 3/16

INPUT: a file of CSV, TSV, JSON Lines (also .gz, .zst) or Parquet, or a folder of them, local or in a bucket (s3://,
gs://, hf://datasets/...). Sub-folders such as year=2024 become columns.

DIR gets Parquet files, named by input file and first row (part-000000-0000000000.parquet), with the input's rows in
order, its other columns, and the probability of each label. Rows without a usable text have nulls; _bad_rows.jsonl
lists those that cannot be parsed or answered. Some rows are compared with the original model: see _receipt.json.

After an interruption, rerun the same command to resume.
README.md explains how the variant is chosen and how to use several machines.
References and other reusable files are kept in BENCHMARK_CACHE (default: the folder .cache beside this script).
Exit code: 0 on success, 1 if something failed or rows are wrong, 2 for wrong usage or input, 130 after Ctrl-C.
"""

from argparse import Namespace

from bench.label.options import job_parser, parse_job
from bench.options import LONG_TEXTS, add_task_options, list_of
from utils import UserError, before_imports, run

LABEL_OPTIONS = "top_label", "min_score", "labels"


def parse_arguments() -> Namespace:
    long_help = "read overlapping windows and take each label's maximum or mean"
    parser, groups = job_parser(__doc__, LONG_TEXTS, long_help, rows=100_000)
    add = groups["output"].add_argument
    add("--top-label", action="store_true", help="write only the most probable label and its score")
    add("--labels", type=list_of(str.strip), metavar="LIST", help="write only these labels (default: all)")
    add("--min-score", type=float, metavar="SCORE", help="write null for lower scores")
    add("--float16", action="store_true", help="write scores as float16, which rounds them by up to 0.0005")
    add_task_options(groups["checking"], pooling=False)
    args = parse_job(parser)
    if args.top_label and (args.labels or args.min_score is not None):
        parser.error("--top-label cannot be combined with --labels or --min-score")
    return args


if __name__ == "__main__":
    before_imports(parse_arguments)

from collections.abc import Callable

from bench.label.job import JobKind, run_job
from bench.label.rows import OutputSpec
from bench.model.embedding import Embedding
from bench.model.model import Model
from bench.model.resolve import open_model


def main() -> int:
    args = parse_arguments()

    def open_classifier(call: Callable) -> Model:
        model = open_model(args.model_id, call, args.task)
        if isinstance(model.task, Embedding):
            raise UserError(f"{args.model_id} is an embedding model, which has no labels; use embed_texts.py")
        return model.with_thresholds(args.threshold)

    def make_output(model: Model, **fields) -> OutputSpec:
        asked = {"top_label": args.top_label, "min_score": args.min_score, "labels": args.labels or model.labels}
        return OutputSpec(**fields, **asked)

    return run_job(args, JobKind([args.column], open_classifier, make_output, LABEL_OPTIONS, ("task", "threshold")))


if __name__ == "__main__":
    run(main)
