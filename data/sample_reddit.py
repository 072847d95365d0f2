"""Draw a uniform random sample of Reddit comments from monthly Pushshift dumps, as a dataset for run_benchmark.py.

    python data/sample_reddit.py dumps/RC_*.zst --workers 4
    python data/sample_reddit.py RC_2012-*.zst --subreddit askscience,physics --min-chars 201 --output science.csv.gz

Each comment gets a priority, the 64-bit XXH3 hash of its id with the seed, and the sample is the --count eligible
comments with the lowest priorities ("bottom-k", Cohen and Kaplan, Summarizing Data Using Bottom-k Sketches, 2007). So
it is uniform and without replacement, and a seed gives the same sample for any number of workers and any order of the
dumps. A comment that occurs in several dumps is drawn at most once.

The output has the columns id, subreddit and body, sorted by id, oldest first. Bodies are verbatim (line breaks,
`&gt;` for >), except that half a surrogate pair becomes U+FFFD. Counts and progress go to standard error.

Exit code: 0, 1 if a dump is corrupt or no comment is eligible, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import gzip
import math
import os
import re
import sys
from argparse import ArgumentTypeError, Namespace
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from operator import call
from pathlib import Path

import pyarrow as pa
from pyarrow.csv import WriteOptions, write_csv
from tqdm import tqdm
from xxhash import xxh3_64_intdigest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.files import LONGEST_NAME, check_writable, new_file
from bench.options import Parser, int_from
from bench.processes import ProcessPool, heartbeat
from bench.tables.blocks import BAD_BYTE
from bench.tables.datasets import DATASETS
from bench.tables.format_json_lines import NOT_JSON
from bench.tables.items import has_text, removal
from bench.tables.readers import Table, UnreadableFile
from bench.tables.storage import locate, saving
from utils import RunError, run, say

# `created_utc` is in seconds since 1970; some early dumps have it in quotes
SCHEMA = pa.schema([("id", "string"), ("subreddit", "string"), ("body", "string"), ("created_utc", "float64")])
# Each line is counted once, under the first category that applies.
COUNTS = {
    "broken": "not JSON",
    "other": "JSON, but not a comment: id, subreddit or body is missing",
    "empty": "only white space",
    "deleted": "[deleted] and similar",
    "removed": "[removed], [ Removed by Reddit ] and similar",
    "subreddit": "not in --subreddit",
    "date": "outside --after and --before, or without a date",
    "length": "outside --min-chars and --max-chars",
    "eligible": "all others; the sample is drawn from these",
}

Drawn = tuple[int, str, str, str]  # priority, id, subreddit, body


def sample_dumps(dumps: list[Path], rules: Namespace) -> tuple[Counter, list[Drawn], list[str]]:
    """Return (lines by COUNTS, eligible comments with the lowest priorities, errors of dumps skipped by --skip-bad)."""
    counts, drawn, errors, bytes_done = Counter(), [], [], 0
    for path in dumps:
        try:
            dump_counts, comments = sample_dump(path, rules, bytes_done)
            counts += dump_counts
            drawn = lowest(drawn + comments, rules.count)
        except UnreadableFile as error:
            if not rules.skip_bad:
                raise RunError(str(error)) from error
            errors.append(str(error))
        bytes_done += path.stat().st_size
    return counts, drawn, errors


def sample_dump(path: Path, rules: Namespace, bytes_done: int = 0) -> tuple[Counter, list[Drawn]]:
    """Count and draw from one dump; `bytes_done` of other dumps were read before. Raises UnreadableFile."""
    counts, drawn, bound = Counter(), [], 2**64
    for rows in Table(locate(path), SCHEMA).rows(SCHEMA):
        comments = list(zip(*(column.to_pylist() for column in rows.table.columns), strict=True))
        categories = [categorize(*comment, rules) for comment in comments]
        for i, (_, reason) in rows.bad.items():
            categories[i] = "broken" if reason.startswith((NOT_JSON, BAD_BYTE)) else "other"
        counts.update(categories)
        for (id, subreddit, body, _), category in zip(comments, categories, strict=True):
            if category == "eligible":
                priority = xxh3_64_intdigest(id.encode(), rules.seed)
                if priority <= bound:
                    drawn.append((priority, id, subreddit, body))
        if len(drawn) >= 2 * rules.count + 1000:
            drawn = lowest(drawn, rules.count)
            bound = drawn[-1][0] if len(drawn) == rules.count else bound
        heartbeat(bytes_done + rows.bytes_read)
    return counts, lowest(drawn, rules.count)


def categorize(id: str | None, subreddit: str | None, body: str | None, created: float | None, rules: Namespace) -> str:
    """Return the key of COUNTS for a comment."""
    if id is None or subreddit is None or body is None:
        return "other"
    if not has_text(body):
        return removal(body) or "empty"
    if rules.subreddit and subreddit.lower() not in rules.subreddit:
        return "subreddit"
    dated = rules.after > -math.inf or rules.before < math.inf
    if dated and not rules.after <= (math.nan if created is None else created) < rules.before:
        return "date"
    if not rules.min_chars <= len(body) <= rules.max_chars:
        return "length"
    return "eligible"


def lowest(drawn: list[Drawn], count: int) -> list[Drawn]:
    """Return the `count` comments with the lowest priorities, sorted by priority, each id once."""
    distinct = {}
    for comment in sorted(drawn):
        distinct.setdefault(comment[1], comment)
    return list(distinct.values())[:count]


def sample_all(rules: Namespace) -> tuple[Counter, list[Drawn], list[str]]:
    """Distribute the dumps over the workers, the largest first, and merge their results, see sample_dumps."""
    sizes = {path: path.stat().st_size for path in rules.dumps}
    shards, total = [[] for _ in range(min(rules.workers, len(sizes)))], sum(sizes.values())
    for path in sorted(sizes, key=sizes.get, reverse=True):
        min(shards, key=lambda shard: sum(map(sizes.get, shard))).append(path)
    with (
        tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr) as progress,
        ProcessPool(partial, [(sample_dumps, shard, rules) for shard in shards]) as pool,
    ):
        samples = pool.call(call, on_heartbeat=lambda done: progress.update(sum(filter(None, done)) - progress.n))
        progress.update(total - progress.n)
    counts, drawn, errors = zip(*samples, strict=True)
    return sum(counts, Counter()), lowest(list(chain(*drawn)), rules.count), list(chain(*errors))


def write_sample(path: Path, sample: list[Drawn]) -> None:
    """Write a CSV.gz, complete or not at all; without a time stamp, so that equal samples give equal files.

    Every field is quoted, since pandas ends a row at a bare carriage return.
    """
    ordered = sorted(sample, key=lambda row: (len(row[1]), row[1]))  # ids are numbers in base 36: shorter is smaller
    _, *columns = zip(*ordered, strict=True)
    table = pa.table(columns, names=["id", "subreddit", "body"])
    with new_file(path) as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:
        write_csv(table, compressed, WriteOptions(quoting_style="all_valid"))


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("dumps", nargs="+", type=dump, metavar="DUMPS", help="RC_*.zst files")
    add = parser.add_argument_group("which comments").add_argument
    add("--count", type=int_from(1), default=10_000, help="number of comments to draw (default: 10000)")
    add("--min-chars", type=int_from(0), default=0, help="minimum length of a body (default: 0)")
    add("--max-chars", type=int_from(1), default=math.inf, help="maximum length of a body (default: no limit)")
    add("--subreddit", type=subreddits, default=frozenset(), metavar="LIST", help="only these: a,b,c (in any case)")
    add("--after", type=day, default=-math.inf, metavar="DATE", help="only from YYYY-MM-DD on (00:00 UTC, inclusive)")
    add("--before", type=day, default=math.inf, metavar="DATE", help="only before YYYY-MM-DD (00:00 UTC, exclusive)")
    add("--seed", type=int_from(0, 2**64 - 1), default=0, help="seed of the sample (default: 0)")
    add = parser.add_argument_group("how to run").add_argument
    add("--workers", type=int_from(1), default=1, help="dumps to read in parallel; each may take 2 GiB (default: 1)")
    add("--skip-bad", action="store_true", help="skip corrupt and truncated dumps instead of stopping")
    sample = Path(__file__).with_name("my_sample.csv.gz")
    add("--output", type=csv_gz, default=sample, help="a .csv.gz file (default: data/my_sample.csv.gz)")
    args = parser.parse_args()
    if len({path.resolve() for path in args.dumps}) < len(args.dumps):
        parser.error("a dump is given twice")
    if args.min_chars > args.max_chars:
        parser.error("--min-chars is greater than --max-chars")
    if args.output.resolve() in [path.resolve() for path in args.dumps]:
        parser.error(f"--output {args.output} would overwrite a dump; choose another file")
    if args.after >= args.before:
        parser.error("--after must be earlier than --before")
    return args


def dump(text: str) -> Path:
    if not os.path.isfile(text) or not os.access(text, os.R_OK):
        raise ArgumentTypeError(f"{text!r} is not a readable file")
    return Path(text)


def subreddits(text: str) -> frozenset[str]:
    names = [name.strip().lower().removeprefix("/").removeprefix("r/") for name in text.split(",")]
    if not all(re.fullmatch(r"[\w:.-]+", name) for name in names):
        raise ArgumentTypeError(f"{text!r} is not a comma-separated list of subreddits")
    return frozenset(names)


def day(text: str) -> float:
    """Return the seconds from 1970 to 00:00 UTC of a date."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a date like 2012-01-31") from error


def csv_gz(text: str) -> Path:
    if not text.endswith(".csv.gz") or os.path.isdir(text) or len(os.fsencode(Path(text).name)) > LONGEST_NAME:
        raise ArgumentTypeError(f"{text!r} is not a valid name for a .csv.gz file")
    if Path(text).name in chain(*DATASETS.values()):
        raise ArgumentTypeError(f"{text!r} is reserved for a published or bundled dataset")
    return Path(text)


def main() -> int:
    args = parse_arguments()
    check_writable(args.output.parent)
    counts, sample, errors = sample_all(args)
    for error in errors:
        say(f"skipped {error}")
    rows = [("dumps", len(args.dumps) - len(errors), f"read to the end; skipped: {len(errors)}")]
    rows += [("lines", counts.total(), "in these dumps, without blank lines")]
    rows += [(f"  {name}", counts[name], meaning) for name, meaning in COUNTS.items()]
    for name, count, meaning in [*rows, ("drawn", len(sample), "distinct ids")]:
        say(f"{name:<11} {count:>14,}  {meaning}")
    if not sample:
        raise RunError("nothing written: no comment is eligible; the counts above show why")
    with saving(locate(args.output)):
        write_sample(args.output, sample)
    note = "" if len(sample) == args.count else f" (fewer than --count {args.count})"
    say(f"{args.output}: {len(sample)} comments{note}")
    return 0


if __name__ == "__main__":
    import sample_reddit  # workers import its functions under this name

    run(sample_reddit.main)
