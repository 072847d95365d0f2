"""Texts -> padded batches, made while the model runs: what the benchmark times from texts, and what labels texts."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from bench.batches import make_batches

CHUNK = 2048  # texts that are tokenized at once
QUEUED_BATCHES = 16  # that wait for the model, at most


def token_batches(
    texts: list[str],
    tokenize: Callable[[list[str]], dict[str, list]],
    batching: tuple[int, str],
    widths_of: Callable[[np.ndarray], np.ndarray] = lambda lengths: lengths,
) -> Iterator[tuple[np.ndarray, dict[str, list], int]]:
    """Tokenizes chunk by chunk; yields of each batch (indices into `texts`, its rows of tokens, tokens to pad to).

    `batching`: size and order, see make_batches. `widths_of(lengths)` rounds lengths up. Unless in dataset order, texts
    are first sorted by characters, so that a chunk's texts have similar lengths. A chunk's last batch, which may not be
    full, is carried over into the next chunk. Texts without any token are in no batch.
    """
    indices, (size, order) = np.arange(len(texts)), batching
    if order != "dataset":
        indices = np.argsort([len(text) for text in texts], kind="stable")
    rest, rows = np.empty(0, int), {}
    for start in range(0, len(texts), CHUNK):
        chunk = indices[start : start + CHUNK]
        more = tokenize([texts[i] for i in chunk])
        full = [i for i, ids in enumerate(more["input_ids"]) if len(ids)]
        rows = {name: rows.get(name, []) + pick(values, full) for name, values in more.items()}
        rest = np.concatenate([rest, chunk[full]])
        if not len(rest):
            continue
        widths = widths_of(np.array([len(ids) for ids in rows["input_ids"]]))
        batches = make_batches(widths, size, order)
        kept = batches.pop() if start + CHUNK < len(texts) else np.empty(0, int)
        for batch in batches:
            yield rest[batch], {name: pick(values, batch) for name, values in rows.items()}, int(widths[batch].max())
        rest, rows = rest[kept], {name: pick(values, kept) for name, values in rows.items()}


def pick(values: list, indices: Iterable[int]) -> list:
    return [values[i] for i in indices]


def share_of(texts: list[str], number: int, workers: int) -> np.ndarray:
    """Returns the indices of a worker's texts: all workers get about the same number of characters."""
    return np.sort(np.argsort([len(text) for text in texts], kind="stable")[number::workers])


def prefetch(items: Iterator, queued: int = QUEUED_BATCHES) -> Iterator:
    """Yields the items, which a thread makes while the caller works on earlier ones; its error is raised here."""
    ready = queue.Queue(queued)

    def make() -> None:
        try:
            for item in items:
                ready.put((item, None))
            ready.put((None, None))
        except Exception as error:
            ready.put((None, error))

    threading.Thread(target=make, daemon=True).start()
    while True:
        item, error = ready.get()
        if error:
            raise error
        if item is None:
            return
        yield item
