"""Items -> padded batches, made while the model runs."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bench.model.batches import Batching, make_batches
from bench.model.model import Model
from bench.tables.items import Item, count_characters

CHUNK_TEXTS = 2048  # tokenized at once, at most: keeps all cores of a fast tokenizer busy
FIRST_TEXTS = 64  # tokenized first, doubled each time: the model gets its first batch soon
CHUNK_CHARACTERS = 2**21  # per chunk, unless a single text has more: a second of work, 100 MB
QUEUED_BATCHES = 16  # waiting for the model, at most: enough for its fastest moment, and little memory


@dataclass(frozen=True)
class Batch:
    """Rows that the model gets at once."""

    indices: np.ndarray  # the item of each row; several rows may have the same
    inputs: dict[str, np.ndarray]  # name -> int64 [rows, tokens], padded
    lengths: np.ndarray  # tokens of each row without padding
    lost: np.ndarray  # tokens of each row that truncation removed
    owners: np.ndarray  # of each row, see Task.answers
    done: float  # about which share of all items, weighted by length, is done after this batch


def text_batches(model: Model, texts: list[Item], batching: Batching, padded_lengths: Callable) -> Iterator[Batch]:
    """Tokenize, sort and pad items, chunk by chunk; `padded_lengths(lengths)` may round lengths up.

    Unless they stay in order, items are first sorted by characters, so that a chunk has similar lengths. The last batch
    of a chunk, which may not be full, is carried over to the next one. Items without tokens are in no batch.
    """
    characters = np.array([count_characters(text) for text in texts], int)
    indices = np.arange(len(texts))
    if batching.name != "in-order":
        indices = np.argsort(characters, kind="stable")
    rest, rows = np.empty((3, 0), int), {}
    parts = model.task.parts
    read = 0  # characters of the chunks
    for chunk in split_chunks(indices, characters, parts):
        tokens = model.tokenize(pick(texts, chunk), windows=batching.long != "cut")
        numbers = np.array([tokens.pop(name) for name in ("item", "part", "lost")], int)
        numbers[0] = chunk[numbers[0]]
        full = np.flatnonzero([len(ids) for ids in tokens["input_ids"]])
        rows = {name: rows.get(name, []) + pick(values, full) for name, values in tokens.items()}
        rest = np.concatenate([rest, numbers[:, full]], axis=1)
        before, read = read, read + characters[chunk].sum()
        if not rest.size:
            continue
        lengths = np.array([len(ids) for ids in rows["input_ids"]])
        widths = padded_lengths(lengths)
        batches = make_batches(widths, batching, model.groups(rows["input_ids"]))
        carried = batches.pop() if chunk[-1] != indices[-1] else np.empty(0, int)
        for number, batch in enumerate(batches, 1):
            of_batch = {name: pick(values, batch) for name, values in rows.items()}
            inputs = model.pad(of_batch, to_length=int(widths[batch].max()))
            items, part, lost = rest[:, batch]
            done = (before + (read - before) * number / len(batches)) / max(characters.sum(), 1)
            yield Batch(items, inputs, lengths[batch], lost, items * parts + part, done)
        rest, rows = rest[:, carried], {name: pick(values, carried) for name, values in rows.items()}


def split_chunks(indices: np.ndarray, characters: np.ndarray, parts: int = 1) -> Iterator[np.ndarray]:
    """Yield the indices, in order, of as many items as are tokenized at once; each is tokenized in `parts`."""
    largest = max(1, CHUNK_TEXTS // parts)
    start, most = 0, min(max(1, FIRST_TEXTS // parts), largest)
    totals = np.cumsum([0, *characters[indices]])
    while start < len(indices):
        fitting = np.searchsorted(totals, totals[start] + CHUNK_CHARACTERS // parts, side="right") - 1
        end = min(max(fitting, start + 1), start + most)
        yield indices[start:end]
        start, most = end, min(2 * most, largest)


def pick(values: list, indices: np.ndarray) -> list:
    return [values[i] for i in indices.tolist()]


def share_of(texts: list[Item], number: int, workers: int) -> np.ndarray:
    """Return the indices of a worker's items; all workers get about the same number of characters."""
    return np.sort(np.argsort([count_characters(text) for text in texts], kind="stable")[number::workers])


def prefetch(items: Iterator, queued: int = QUEUED_BATCHES) -> Iterator:
    """Yield the items, which a thread makes ahead of the caller; its error is raised here."""
    ready = queue.Queue(queued)

    def make() -> None:
        try:
            for item in items:
                ready.put((item, None))
            ready.put((None, None))
        except Exception as error:
            ready.put((None, error))

    threading.Thread(target=make, daemon=True).start()
    for item, error in iter(ready.get, (None, None)):
        if error:
            raise error
        yield item
