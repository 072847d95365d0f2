"""Print how long things take."""

import contextlib
import time
from collections.abc import Iterator

from utils import say


@contextlib.contextmanager
def step(heading: str) -> Iterator[None]:
    """Print a heading before the block and its duration after it."""
    start = time.monotonic()
    say(heading)
    yield
    say(f"           {time.monotonic() - start:.0f} s")


def time_words(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
