"""Draws a uniform sample of Reddit comments from monthly Pushshift dumps, a dataset for run_benchmark.py.

    python data/sample_reddit.py dumps/RC_*.zst --workers 4
    python data/sample_reddit.py RC_2012-*.zst --subreddit askscience,physics --min-chars 201 --output science.csv.gz

A dump is read once, by one process, which needs memory for its window of up to 2 GiB and for two samples. Every comment
gets a priority, the 64-bit XXH3 hash of its id with the seed; the sample is the --count comments of the lowest priority
that no rule excludes ("bottom-k", Cohen and Kaplan, Summarizing Data Using Bottom-k Sketches, 2007). So it is uniform
without replacement, and a seed gives the same sample whatever the number of workers and the order of the dumps. A
comment that occurs twice, in overlapping dumps, can be drawn once only.

The file has the columns id, subreddit and body, sorted by id, that is by age. A body is what the dump has (with its
line breaks, and `&gt;` for >); half a surrogate pair becomes U+FFFD. Counts and progress go to standard error.

Exit code: 0, 1 if a dump is corrupt or no comment is left, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import csv
import gzip
import io
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
from tqdm import tqdm
from xxhash import xxh3_64_intdigest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.files import LONGEST_NAME, check_writable, new_file
from bench.processes import ProcessPool, heartbeat
from bench.tables.datasets import DATASETS, has_text, removal
from bench.tables.format_json_lines import NOT_JSON
from bench.tables.readers import Table, UnreadableFile
from bench.tables.storage import locate
from utils import Parser, RunError, first_line, int_from, run, say

# what is read of a comment; `created_utc`, in seconds since 1970, stands in quotes in some early dumps
SCHEMA = pa.schema([("id", "string"), ("subreddit", "string"), ("body", "string"), ("created_utc", "float64")])
# What becomes of a line. Each is counted once, under the first of these that is true of it.
COUNTS = {
    "broken": "not JSON",
    "other": "JSON, but no comment: without id, subreddit or body",
    "empty": "nothing but white space",
    "deleted": "[deleted] and the like",
    "removed": "[removed], [ Removed by Reddit ] and the like",
    "subreddit": "not in --subreddit",
    "date": "outside --after and --before, or without a date",
    "length": "outside --min-chars and --max-chars",
    "eligible": "all others: from these is drawn",
}

# priority, id, subreddit, body
Drawn = tuple[int, str, str, str]


class BadDump(RunError):
    """A dump can't be read to its end; the message names it and says why."""


# ------------------------------------------------------------------------------------------------- in a worker


def sample_dumps(dumps: list[Path], rules: Namespace) -> tuple[Counter, list[Drawn], list[str]]:
    """Counts the lines of the dumps by COUNTS, and draws the eligible comments of the lowest priority.

    With --skip-bad, bad dumps are left out and named in the third value; else raises BadDump.
    """
    counts, drawn, bad, before = Counter(), [], [], 0
    for path in dumps:
        try:
            more, comments = sample_dump(path, rules, before)
            counts += more
            drawn = lowest(drawn + comments, rules.count)
        except BadDump as error:
            if not rules.skip_bad:
                raise
            bad.append(str(error))
        before += path.stat().st_size
    return counts, drawn, bad


def sample_dump(path: Path, rules: Namespace, before: int = 0) -> tuple[Counter, list[Drawn]]:
    """Counts and draws from one dump; `before`: bytes of the dumps that were read before. Raises BadDump."""
    counts, drawn, bound = Counter(), [], 2**64
    try:
        for rows in Table(locate(path), SCHEMA).rows(SCHEMA):
            comments = list(zip(*(column.to_pylist() for column in rows.table.columns), strict=True))
            verdicts = [judge(*comment, rules) for comment in comments]
            for i, (_, reason) in rows.bad.items():
                verdicts[i] = "broken" if reason == NOT_JSON else "other"
            counts.update(verdicts)
            for (name, subreddit, body, _), verdict in zip(comments, verdicts, strict=True):
                if verdict == "eligible":
                    priority = xxh3_64_intdigest(name.encode(), rules.seed)
                    if priority <= bound:
                        drawn.append((priority, name, subreddit, body))
            if len(drawn) >= 2 * rules.count + 1000:
                drawn = lowest(drawn, rules.count)
                bound = drawn[-1][0] if len(drawn) == rules.count else bound
            heartbeat(before + rows.bytes_read)
    except UnreadableFile as error:
        raise BadDump(str(error)) from error
    return counts, lowest(drawn, rules.count)


def judge(name: str | None, subreddit: str | None, body: str | None, created: float | None, rules: Namespace) -> str:
    """Returns the key of COUNTS that fits a comment."""
    if name is None or subreddit is None or body is None:
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
    """Returns the `count` comments of the lowest priority, in this order, each id once."""
    once = {}
    for comment in sorted(drawn):
        once.setdefault(comment[1], comment)
    return list(once.values())[:count]


# -------------------------------------------------------------------------------------------------- the script


def sample_all(rules: Namespace) -> tuple[Counter, list[Drawn], list[str]]:
    """Deals the dumps to the workers, the largest first, and takes their counts and samples together."""
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
    counts, drawn, bad = zip(*samples, strict=True)
    return sum(counts, Counter()), lowest(list(chain(*drawn)), rules.count), list(chain(*bad))


def write_sample(path: Path, sample: list[Drawn]) -> None:
    """Writes a CSV.gz, whole or not at all, without a time stamp, so that the same sample gives the same file.

    Every field is quoted, since pandas takes a bare carriage return for the end of a row.
    """
    with (
        new_file(path) as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(("id", "subreddit", "body"))
        # ids are numbers in base 36, so that the shorter one is the smaller
        writer.writerows(row[1:] for row in sorted(sample, key=lambda row: (len(row[1]), row[1])))


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("dumps", nargs="+", type=dump, metavar="DUMPS", help="RC_*.zst files")
    add("--count", type=int_from(1), default=10_000, help="comments to draw (default: 10000)")
    add("--min-chars", type=int_from(0), default=0, help="the shortest body drawn (default: 0)")
    add("--max-chars", type=int_from(1), default=math.inf, help="the longest body drawn (default: any)")
    add("--subreddit", type=subreddits, default=frozenset(), metavar="LIST", help="only these, in any case: a,b,c")
    add("--after", type=day, default=-math.inf, metavar="DATE", help="only from YYYY-MM-DD on, 00:00 UTC, inclusive")
    add("--before", type=day, default=math.inf, metavar="DATE", help="only before YYYY-MM-DD, 00:00 UTC, exclusive")
    add("--seed", type=int_from(0, 2**64 - 1), default=0, help="another draws another sample (default: 0)")
    add("--workers", type=int_from(1), default=1, help="dumps read at once, 2 GiB of memory each (default: 1)")
    add("--skip-bad", action="store_true", help="pass over corrupt and truncated dumps, as if they were not given")
    sample = Path(__file__).with_name("my_sample.csv.gz")
    add("--output", type=csv_gz, default=sample, help="default: data/my_sample.csv.gz")
    args = parser.parse_args()
    if len({path.resolve() for path in args.dumps}) < len(args.dumps):
        parser.error("the same dump is given twice")
    if args.min_chars > args.max_chars:
        parser.error("--min-chars is more than --max-chars: no comment has such a length")
    if args.output.resolve() in [path.resolve() for path in args.dumps]:
        parser.error(f"--output {args.output} is one of the dumps")
    if args.after >= args.before:
        parser.error("--after is not before --before: no comment has such a date")
    return args


def dump(text: str) -> Path:
    if not os.path.isfile(text) or not os.access(text, os.R_OK):
        raise ArgumentTypeError(f"{text!r} is not a file that can be read")
    return Path(text)


def subreddits(text: str) -> frozenset[str]:
    names = [name.strip().lower().removeprefix("/").removeprefix("r/") for name in text.split(",")]
    if not all(re.fullmatch(r"[\w:.-]+", name) for name in names):
        raise ArgumentTypeError(f"{text!r} is not a comma list of subreddits")
    return frozenset(names)


def day(text: str) -> float:
    """Returns the seconds from 1970 to 00:00 UTC of a date."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a date like 2012-01-31") from error


def csv_gz(text: str) -> Path:
    if not text.endswith(".csv.gz") or os.path.isdir(text) or len(os.fsencode(Path(text).name)) > LONGEST_NAME:
        raise ArgumentTypeError(f"{text!r} is no name of a .csv.gz file")
    if Path(text).name in chain(*DATASETS.values()):
        raise ArgumentTypeError(f"{text!r} is the name of a published or bundled dataset")
    return Path(text)


def main() -> int:
    args = parse_arguments()
    check_writable(args.output.parent)
    counts, sample, bad = sample_all(args)
    for line in bad:
        say(f"passed over {line}")
    rows = [("dumps", len(args.dumps) - len(bad), f"read to their end; bad and passed over: {len(bad)}")]
    rows += [("lines", counts.total(), "of these dumps, blank ones left out")]
    rows += [(f"  {name}", counts[name], meaning) for name, meaning in COUNTS.items()]
    for name, count, meaning in [*rows, ("drawn", len(sample), "each id once")]:
        say(f"{name:<11} {count:>14,}  {meaning}")
    if not sample:
        raise RunError("no comment is eligible, so nothing is written")
    try:
        write_sample(args.output, sample)
    except OSError as error:
        raise RunError(f"{args.output}: {first_line(error)}") from error
    fewer = f", fewer than the {args.count} asked for" if len(sample) < args.count else ""
    say(f"{args.output}: {len(sample)} comments{fewer}")
    return 0


if __name__ == "__main__":
    import sample_reddit  # workers need its functions under this name

    run(sample_reddit.main)
