"""How long things take: said when they end, and in words."""

import contextlib
import time
from collections.abc import Iterator

from utils import say


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Says what the block does, and at its end how long it took."""
    start = time.monotonic()
    say(what)
    yield
    say(f"           {time.monotonic() - start:.0f} s")


def time_words(seconds: float) -> str:
    """Says how long something takes, in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
