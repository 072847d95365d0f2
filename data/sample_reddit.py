"""Draws a uniform sample of Reddit comments from monthly Pushshift dumps, a dataset for run_benchmark.py.

    python data/sample_reddit.py dumps/RC_*.zst --workers 4
    python data/sample_reddit.py RC_2012-*.zst --subreddit askscience,physics --min-chars 201 --output science.csv.gz

A dump (`RC_2005-12.zst` ... `RC_2023-03.zst`) is zstandard with a window of up to 2 GiB, one JSON object a line. It is
read once, by one process, which needs memory for the window and for two samples, however long the dump is.

Every comment gets a priority, the 64-bit XXH3 hash of its id with the seed; the sample is the --count comments of the
lowest priority that no rule excludes ("bottom-k", Cohen and Kaplan, Summarizing Data Using Bottom-k Sketches, 2007).
So it is uniform without replacement, and a seed gives the same sample whatever the number of workers and the order of
the dumps. A comment that occurs twice, in overlapping dumps, can be drawn once only.

The file has the columns id, subreddit and body, sorted by id, that is by age. A body is what the dump has (with its
line breaks, and `&gt;` for >); half a surrogate pair, which no file can hold, becomes U+FFFD. Counts and progress go
to standard error.

Exit code: 0, 1 if a dump is corrupt or no comment is left, 2 for wrong usage or input, 130 after Ctrl-C.
"""

import csv
import gzip
import io
import json
import os
import re
import signal
import sys
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from math import inf, nan
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
from xxhash import xxh3_64_intdigest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils
from utils import int_from

WINDOW = 2**31  # bytes, the largest that zstandard has (--long=31)
CHUNK = 2**20  # compressed bytes that are read at a time
PIECE = 2**13  # compressed bytes that are decompressed at a time: so few that the result stays in the cache
LONGEST_LINE = 2**26  # bytes; the longest comments have about 100 KB of JSON
ANY_DATE = (-inf, inf)  # comments without a date included
# What becomes of a line. Each is counted once, under the first of these that is true of it.
COUNTS = {
    "broken": "not JSON",
    "other": "JSON, but no comment: without id, subreddit or body",
    "empty": "nothing but white space",
    "deleted": "[deleted]",
    "removed": "[removed]",
    "subreddit": "not in --subreddit",
    "date": "outside --after and --before, or without a date",
    "length": "outside --min-chars and --max-chars",
    "eligible": "all others: from these is drawn",
}

# priority, id, subreddit, body
Drawn = tuple[int, str, str, str]


class Comment(msgspec.Struct, frozen=True, gc=False):
    """What is read of a line; msgspec passes over all other fields."""

    id: str
    subreddit: str
    body: str
    created_utc: int | float | str | None = None  # seconds since 1970; a string in some early dumps


@dataclass(frozen=True)
class Rules:
    """How many comments to draw, and which may be drawn."""

    count: int
    seed: int
    subreddits: frozenset[str]  # in lower case; empty for all
    dates: tuple[float, float]  # seconds since 1970, the first included, the last not
    chars: tuple[int, float]  # both included


class Failed(Exception):
    """The sample can't be drawn; the message says why."""


class BadDump(Failed):
    """A dump can't be read to its end; the message names it and says why."""


# ------------------------------------------------------------------------------------------------------- one dump


def sample_dump(path: Path, rules: Rules, report: Callable[[int], object]) -> tuple[Counter, list[Drawn]]:
    """How many lines each of COUNTS is true of, and the `rules.count` eligible comments of the lowest priority.

    `report` is called with the compressed bytes read since the last call. Raises BadDump and MemoryError.
    """
    decoder = msgspec.json.Decoder(Comment)
    counts, drawn, bound = Counter(), [], 2**64
    for block in read_blocks(path, report):
        comments = parse(block, decoder)
        verdicts = [judge(comment, rules) if isinstance(comment, Comment) else comment for comment in comments]
        counts.update(verdicts)
        for comment, verdict in zip(comments, verdicts, strict=True):
            if verdict == "eligible":
                priority = xxh3_64_intdigest(comment.id.encode(), rules.seed)
                if priority <= bound:
                    drawn.append((priority, comment.id, comment.subreddit, comment.body))
        if len(drawn) >= 2 * rules.count + 1000:
            drawn = lowest(drawn, rules.count)
            bound = drawn[-1][0] if len(drawn) == rules.count else bound
    return counts, lowest(drawn, rules.count)


def read_blocks(path: Path, report: Callable[[int], object]) -> Iterator[bytes]:
    """A dump in blocks of whole lines. Raises BadDump and MemoryError."""
    rest = b""
    for piece in decompress(path, report):
        end = piece.rfind(b"\n") + 1
        if end:
            yield rest + piece[:end]
            rest = b""
        rest += piece[end:]
        if len(rest) > LONGEST_LINE:
            raise BadDump(f"{path}: corrupt: a line of more than {LONGEST_LINE >> 20} MiB")
    yield rest


def decompress(path: Path, report: Callable[[int], object]) -> Iterator[bytes]:
    """The contents of a zstandard file of one or more frames, in pieces. Raises BadDump and MemoryError."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    frame = None
    try:
        with path.open("rb") as file:
            if not file.peek(1):
                raise BadDump(f"{path}: empty")
            while chunk := file.read(CHUNK):
                report(len(chunk))
                for start in range(0, len(chunk), PIECE):
                    piece = chunk[start : start + PIECE]
                    while piece:
                        frame = frame or decompressor.decompressobj()
                        yield frame.decompress(piece)
                        piece = frame.unused_data
                        if frame.eof:
                            frame = None
    except (zstandard.ZstdError, OSError) as error:
        if "llocation error" in str(error):
            raise MemoryError from error
        raise BadDump(f"{path}: corrupt: {utils.first_line(error)}") from error
    if frame:
        raise BadDump(f"{path}: truncated")


def parse(block: bytes, decoder: msgspec.json.Decoder) -> list[Comment | str]:
    """The comment in each line of a block that is not blank; instead of one that has none, `broken` or `other`."""
    try:
        return decoder.decode_lines(block)
    except (ValueError, RecursionError):
        return [parse_line(line, decoder) for line in block.split(b"\n") if line.strip()]


def parse_line(line: bytes, decoder: msgspec.json.Decoder) -> Comment | str:
    """What parse() says of a line. Half surrogate pairs, which msgspec refuses, are replaced."""
    try:
        return decoder.decode(line)
    except (ValueError, RecursionError):
        pass
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "broken"
    if not isinstance(record, dict):
        return "other"
    for name, value in record.items():
        if isinstance(value, str):
            record[name] = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    try:
        return msgspec.convert(record, Comment)
    except ValueError:
        return "other"


def judge(comment: Comment, rules: Rules) -> str:
    """Which of COUNTS is true of a comment."""
    text = comment.body.strip()
    if not text:
        return "empty"
    if text in ("[deleted]", "[removed]"):
        return text[1:-1]
    if rules.subreddits and comment.subreddit.lower() not in rules.subreddits:
        return "subreddit"
    if rules.dates != ANY_DATE and not rules.dates[0] <= seconds(comment.created_utc) < rules.dates[1]:
        return "date"
    if not rules.chars[0] <= len(comment.body) <= rules.chars[1]:
        return "length"
    return "eligible"


def seconds(created_utc: int | float | str | None) -> float:
    """A date as a number, nan where it is none."""
    try:
        return float(created_utc)
    except (TypeError, ValueError, OverflowError):
        return nan


def lowest(drawn: list[Drawn], count: int) -> list[Drawn]:
    """The `count` comments of the lowest priority, in this order, each id once."""
    once = {}
    for comment in sorted(drawn):
        once.setdefault(comment[1], comment)
    return list(once.values())[:count]


# ------------------------------------------------------------------------------------------------------ all dumps


def serve(connection: Connection, path: Path, rules: Rules) -> None:
    """A worker: samples a dump, and sends compressed bytes read, now and then, and at last the sample or an error."""
    try:
        try:
            connection.send(sample_dump(path, rules, connection.send))
        except (BadDump, MemoryError) as error:
            connection.send(error)
    except BrokenPipeError:
        return  # the parent has died


def sample_dumps(dumps: list[Path], rules: Rules, workers: int, skip_bad: bool) -> tuple[Counter, list[Drawn]]:
    """The counts and the sample of all dumps; a bad one adds to neither and is counted as `bad`. Raises Failed."""
    from tqdm import tqdm

    left = sorted(dumps, key=lambda path: path.stat().st_size)  # the largest are begun first
    running, counts, drawn = {}, Counter(), []
    progress = tqdm(total=sum(path.stat().st_size for path in dumps), unit="B", unit_scale=True, mininterval=0.5)
    try:
        while left or running:
            while left and len(running) < workers:
                path = left.pop()
                running.update([start_worker(path, rules)])
            for connection in wait(running):
                message = receive(connection, *running[connection])
                if isinstance(message, int):
                    progress.update(message)
                    continue
                del running[connection]
                if isinstance(message, BadDump) and skip_bad:
                    progress.write(f"passed over {message}", file=sys.stderr)
                    counts["bad"] += 1
                elif isinstance(message, Failed):
                    raise message
                else:
                    counts += message[0]
                    drawn = lowest(drawn + message[1], rules.count)
    finally:
        progress.close()
        for _, process in running.values():
            process.kill()
            process.join()
    return counts, drawn


def start_worker(path: Path, rules: Rules) -> tuple[Connection, tuple[Path, BaseProcess]]:
    """Starts a worker on a dump: (the connection that it sends on, (the dump, its process))."""
    context = get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(theirs, path, rules), daemon=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker inherits it: the parent ends its workers
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    theirs.close()
    return mine, (path, process)


def receive(connection: Connection, path: Path, process: BaseProcess) -> int | tuple[Counter, list[Drawn]] | Failed:
    """What a worker sends next: compressed bytes read, or its sample or error, after which it ends."""
    try:
        message = connection.recv()
    except EOFError:
        process.join()
        message = Failed(f"the worker that read {path} died, exit code {process.exitcode}: out of memory?")
    if isinstance(message, MemoryError):
        message = Failed(f"{path}: out of memory: use fewer --workers")
    if not isinstance(message, int):
        process.join()
        connection.close()
    return message


def write_sample(path: Path, sample: list[Drawn]) -> None:
    """Writes a CSV.gz, atomically, with no time stamp, so that the same sample gives the same file. Every field is
    quoted, since pandas takes a bare carriage return for the end of a row.
    """
    with (
        utils.atomic_file(path) as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(("id", "subreddit", "body"))
        # ids are numbers in base 36, so that the shorter one is the smaller
        writer.writerows(row[1:] for row in sorted(sample, key=lambda row: (len(row[1]), row[1])))


# ----------------------------------------------------------------------------------------------------- the script


def parse_arguments() -> Namespace:
    parser = utils.Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("dumps", nargs="+", type=dump, metavar="DUMPS", help="RC_*.zst files")
    add("--count", type=int_from(1), default=10_000, help="comments to draw (default: 10000)")
    add("--min-chars", type=int_from(0), default=0, help="the shortest body drawn (default: 0)")
    add("--max-chars", type=int_from(1), default=inf, help="the longest body drawn (default: any)")
    add("--subreddit", type=subreddits, default=frozenset(), metavar="LIST", help="only these, in any case: a,b,c")
    add("--after", type=day, default=-inf, metavar="DATE", help="only from YYYY-MM-DD on, 00:00 UTC, inclusive")
    add("--before", type=day, default=inf, metavar="DATE", help="only before YYYY-MM-DD, 00:00 UTC, exclusive")
    add("--seed", type=int_from(0), default=0, help="below 2**64; another draws another sample (default: 0)")
    add("--workers", type=int_from(1), default=1, help="dumps read at once, 2 GiB of memory each (default: 1)")
    add("--skip-bad", action="store_true", help="pass over corrupt and truncated dumps, as if they were not given")
    add(
        "--output",
        type=csv_gz,
        default=Path(__file__).with_name("my_sample.csv.gz"),
        help="default: data/my_sample.csv.gz",
    )
    args = parser.parse_args()
    if len({path.resolve() for path in args.dumps}) < len(args.dumps):
        parser.error("the same dump is given twice")
    if args.seed >= 2**64:
        parser.error("--seed is not below 2**64")
    if args.min_chars > args.max_chars:
        parser.error("--min-chars is more than --max-chars: no comment has such a length")
    if args.after >= args.before:
        parser.error("--after is not before --before: no comment has such a date")
    return args


def dump(text: str) -> Path:
    if not Path(text).is_file() or not os.access(text, os.R_OK):
        raise ArgumentTypeError(f"{text!r} is not a file that can be read")
    return Path(text)


def subreddits(text: str) -> frozenset[str]:
    names = [name.strip().lower().removeprefix("/").removeprefix("r/") for name in text.split(",")]
    if not all(re.fullmatch(r"[\w:.-]+", name) for name in names):
        raise ArgumentTypeError(f"{text!r} is not a comma list of subreddits")
    return frozenset(names)


def day(text: str) -> float:
    """Seconds from 1970 to 00:00 UTC of a date."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a date like 2012-01-31") from error


def csv_gz(text: str) -> Path:
    if not text.endswith(".csv.gz"):
        raise ArgumentTypeError(f"{text!r} does not end in .csv.gz")
    if Path(text).is_dir():
        raise ArgumentTypeError(f"{text!r} is a folder")
    if Path(text).name in chain(*utils.DATASETS.values()):
        raise ArgumentTypeError(f"{text!r} is the name of a published or bundled dataset")
    return Path(text)


def summary(counts: Counter, dumps: int, drawn: int) -> list[str]:
    """What was read, excluded and kept, in lines."""
    rows = [("dumps", dumps - counts["bad"], f"read to their end; bad and passed over: {counts['bad']}")]
    rows += [("lines", sum(counts[name] for name in COUNTS), "of these dumps, blank ones left out")]
    rows += [(f"  {name}", counts[name], meaning) for name, meaning in COUNTS.items()]
    rows += [("drawn", drawn, "each id once")]
    return [f"{name:<11} {count:>14,}  {meaning}" for name, count, meaning in rows]


def main() -> int:
    args = parse_arguments()
    utils.check_writable(args.output.parent)
    dates, chars = (args.after, args.before), (args.min_chars, args.max_chars)
    rules = Rules(args.count, args.seed, args.subreddit, dates, chars)
    try:
        counts, sample = sample_dumps(args.dumps, rules, args.workers, args.skip_bad)
        print(*summary(counts, len(args.dumps), len(sample)), sep="\n", file=sys.stderr)
        if not sample:
            raise Failed("no comment is eligible, so nothing is written")
        write_sample(args.output, sample)
    except (Failed, OSError) as error:
        print(f"sample_reddit.py: {error}", file=sys.stderr)
        return 1
    fewer = f", fewer than the {args.count} asked for" if len(sample) < args.count else ""
    print(f"{args.output}: {len(sample)} comments{fewer}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    utils.run(main)
