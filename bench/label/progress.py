"""How far a job is: a bar on a terminal, a line a minute where there is none."""

import time

from tqdm import tqdm

from utils import say

SECONDS = 60  # between two lines


class Progress:
    """Shows how many of about `total` rows are done, of which some were `before` this run. A context manager."""

    def __init__(self, total: int, before: int):
        self.total, self.before, self.start = total, before, time.monotonic()
        self.bar, self.said = tqdm(total=total, initial=before, unit=" rows", disable=None), self.start

    def show(self, done: int) -> None:
        """Shows that so many rows are done in all."""
        self.bar.update(done - self.bar.n)
        now = time.monotonic()
        if self.bar.disable and now - self.said >= SECONDS:
            self.said = now
            say(progress_line(done, self.total, self.before, now - self.start))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()


def progress_line(done: int, total: int, before: int, seconds: float) -> str:
    """Says how many rows are done, how many in a second of this run, and how long the others take at that pace."""
    speed = (done - before) / seconds
    line = f"progress   {done:,} of about {total:,} rows, {speed:,.1f} rows/s"
    return f"{line}, {max(total - done, 0) / speed / 3600:,.1f} h left" if speed > 0 else line
