"""Writes what is missing of the output, on this machine or by a Ray cluster."""

import contextlib
import time
from collections.abc import Callable, Iterator

from bench.label import on_ray, output
from bench.label.pool import LabelPool
from bench.label.progress import Progress
from bench.label.receipt import Checker
from bench.label.rows import Counts
from utils import say


def label_missing(pool: LabelPool, checker: Checker, actors: int) -> tuple[Counts, float]:
    """Writes the parts that are missing of a checker's splits, and has some rows compared.

    `actors`: how many of a Ray cluster do it, 0 for this machine. Returns what was counted of them, and how many
    seconds it took. Raises UserError for an input that can't be read, and RunError if the workers fail twice over a
    part or if its rows are wrong.
    """
    splits, spec, folder = checker.splits, checker.comparison.output, pool.folder
    there = output.whole_parts(output.read_footers(folder, spec.job, splits), spec)
    before = [(split, *output.parts_there(split, there)[1:]) for split in splits]
    missing = [(split, rows) for split, rows, complete in before if not complete]
    done = already = sum(rows for _, rows, _ in before)
    if done and missing:
        say(f"goes on    behind {done:,} rows that are labelled")
    total = done + sum(max(split.estimate_rows() - rows, 0) for split, rows in missing)
    made, start = Counts(), time.monotonic()
    checker.stop_at_bad_rows([footer.counts for footer in output.parts_of(splits, there).values()])

    with pool, report_kept_rows(lambda: done, total), Progress(total, done) as progress:

        def show(texts: list[int | None]) -> None:
            progress.show(already + pool.answered + sum(filter(None, texts)))

        if actors:
            job = on_ray.RayJob(pool.specs[0], pool.batching, spec, folder, there)
            labelled = on_ray.label_on_ray([split for split, _ in missing], job, actors)
        else:
            parts = (part for split, rows in missing for part in split.read(spec, rows, there))
            labelled = pool.label_parts(parts, spec, show)
        for part in labelled:
            made, done = made + part.counts, done + part.counts.rows
            progress.show(max(done, already + pool.answered))
            checker.add(part.counts, part.sample)
        progress.bar.total = done
    return made, time.monotonic() - start - pool.loading - checker.comparison.seconds


@contextlib.contextmanager
def report_kept_rows(done: Callable[[], int], total: int) -> Iterator[None]:
    """Says, where Ctrl-C or another signal ends the block, how many rows are written."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        say(f"kept       {done():,} of about {total:,} rows are written; the same command goes on behind them")
        raise
