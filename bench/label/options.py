"""Options of the scripts that write a row for each text, see job.py. Nothing heavy is imported here."""

from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from bench.machine import process_count
from bench.options import Parser, add_original, add_text_options, hub_name, int_from, list_of


def job_parser(description: str, long_texts: tuple[str, ...], long_help: str, rows: int) -> tuple[Parser, dict]:
    """Return the parser of a script with the options that all share, and its groups by title, for further options."""
    parser, count, names = Parser(description), int_from(1), list_of(str.strip)
    parser.usage = "%(prog)s MODEL INPUT --output DIR [options]"
    parser.add_argument("model_id", metavar="MODEL", type=hub_name, help="Hub id or folder of a model, or of an export")
    parser.add_argument("input", metavar="INPUT", help="file or folder of texts")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the output")
    titles = "input", "task", "output", "how to run", "checking", "many machines"
    groups = {title: parser.add_argument_group(title) for title in titles}

    add_text_options(groups["input"])
    add = groups["input"].add_argument
    add("--limit", type=count, metavar="ROWS", help="read only the first ROWS rows")
    add("--long", choices=long_texts, default="cut", help=f"truncate long texts, or {long_help} (default: cut)")
    add("--strict", action="store_true", help="stop at the first bad row instead of writing nulls")

    add = groups["output"].add_argument
    add("--keep-columns", type=names, metavar="LIST", help="columns to copy (default: all except the text)")
    add("--keep-text", action="store_true", help="also copy the text")
    add("--token-count", action="store_true", help="add a column of token counts; estimated for very long texts")
    add("--prefix", default="", help="prefix for the names of the new columns")
    rows_help = "rows per part, fewer if these exceed 128 MiB (default: %(default)s)"
    add("--rows-per-file", type=count, default=rows, metavar="N", help=rows_help)
    add("--overwrite", action="store_true", help="replace the parts of another job in DIR")

    add = groups["how to run"].add_argument
    add("--device", choices=("gpu", "cpu"), help="default: gpu if there is one")
    add("--gpu", type=list_of(int_from(0)), metavar="LIST", help="GPU ids (default: 0)")
    add("--variant", metavar="NAME", help="variant, as in run_benchmark.py (default: the fastest proven one)")
    add("--workers", type=process_count, metavar="N", help="workers on the CPU or on each GPU")
    add("--threads", type=process_count, metavar="N", help="CPU threads of each worker")
    add("--batch-tokens", type=count, metavar="N", help="tokens per batch, including padding")
    results_help = "results of run_benchmark.py (default: results)"
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=results_help)
    add("--dry-run", action="store_true", help="estimate rows, output size and time, then stop")

    add_original(groups["checking"])
    exclusive = groups["checking"].add_mutually_exclusive_group()
    exclusive.add_argument("--no-check", action="store_true", help="report wrong rows at the end instead of stopping")
    exclusive.add_argument("--check-only", action="store_true", help="only check an existing DIR")

    add = groups["many machines"].add_argument
    ray_help = "run on the Ray cluster at ADDRESS; without ADDRESS, start one on this machine"
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help=ray_help)
    add("--shard", type=shard, metavar="K/N", help="process only the K-th of N shares of the input")
    return parser, groups


def parse_job(parser: Parser) -> Namespace:
    """Parse the command line; refuse combinations of the shared options."""
    args = parser.parse_args()
    if args.shard and (args.ray or args.check_only or args.overwrite):
        parser.error("--shard cannot be combined with --ray, --check-only or --overwrite")
    if args.gpu and (args.ray or args.device == "cpu"):
        parser.error("--gpu cannot be combined with --ray or --device cpu")
    return args


def shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ArgumentTypeError(f"{text!r} is not like 3/16, from 1/16 to 16/16")
    return int(number), int(count)
