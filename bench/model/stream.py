"""Texts -> padded batches, made while the model runs."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from bench.model.batches import Batching, make_batches
from bench.model.model import Model
from bench.tables.items import Item, count_characters

CHUNK_TEXTS = 2048  # tokenized at once, at most: enough to keep all cores of a fast tokenizer busy
FIRST_TEXTS = 64  # tokenized first, and twice as many each time: the model need not wait long for its first batch
CHUNK_CHARACTERS = 2**21  # of these texts, unless one alone has more: a second of work, 100 MB of memory
QUEUED_BATCHES = 16  # that wait for the model, at most: enough for its fastest moment, and little memory


@dataclass(frozen=True)
class Batch:
    """Texts that the model gets at once.

    indices: which texts these are, several times the same if it is in windows; inputs: name -> int64 [texts, tokens],
    padded; lengths: int [texts], how many of these are real; lost: int [texts], how many tokens of each were cut off.
    """

    indices: np.ndarray
    inputs: dict[str, np.ndarray]
    lengths: np.ndarray
    lost: np.ndarray


def text_batches(
    model: Model,
    texts: list[Item],
    batching: Batching,
    padded_lengths: Callable[[np.ndarray], np.ndarray] = lambda lengths: lengths,
) -> Iterator[Batch]:
    """Tokenizes, sorts and pads texts, chunk by chunk. `padded_lengths(lengths)` may round lengths up.

    Unless they stay in order, texts are first sorted by characters, so that a chunk's texts have similar lengths. A
    chunk's last batch, which may not be full, is carried over into the next chunk. Texts without any token are in no
    batch.
    """
    characters = np.array([count_characters(text) for text in texts], int)
    indices = np.arange(len(texts))
    if batching.name != "in-order":
        indices = np.argsort(characters, kind="stable")
    rest, rows = np.empty(0, int), {}
    for chunk in split_chunks(indices, characters):
        tokens = model.tokenize([texts[i] for i in chunk], windows=batching.long != "cut")
        owners = np.array(tokens.pop("item"), int)
        full = [i for i, ids in enumerate(tokens["input_ids"]) if len(ids)]
        rows = {name: rows.get(name, []) + pick(values, full) for name, values in tokens.items()}
        rest = np.concatenate([rest, chunk[owners[full]]])
        if not len(rest):
            continue
        lengths = np.array([len(ids) for ids in rows["input_ids"]])
        widths = padded_lengths(lengths)
        batches = make_batches(widths, batching, model.groups(rows["input_ids"]))
        carried = batches.pop() if chunk[-1] != indices[-1] else np.empty(0, int)
        for batch in batches:
            of_batch = {name: pick(values, batch) for name, values in rows.items()}
            inputs = model.pad(of_batch, to_length=int(widths[batch].max()))
            yield Batch(rest[batch], inputs, lengths[batch], lost=np.array(of_batch["lost"]))
        rest, rows = rest[carried], {name: pick(values, carried) for name, values in rows.items()}


def split_chunks(indices: np.ndarray, characters: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the indices, in their order, of as many texts as are tokenized at once."""
    start, total, most = 0, 0, min(FIRST_TEXTS, CHUNK_TEXTS)
    for end, i in enumerate(indices):
        if end - start == most or (end > start and total + characters[i] > CHUNK_CHARACTERS):
            yield indices[start:end]
            start, total, most = end, 0, min(2 * most, CHUNK_TEXTS)
        total += characters[i]
    if start < len(indices):
        yield indices[start:]


def pick(values: list, indices: Iterable[int]) -> list:
    return [values[i] for i in indices]


def share_of(texts: list[Item], number: int, workers: int) -> np.ndarray:
    """Returns the indices of a worker's texts: all workers get about the same number of characters."""
    return np.sort(np.argsort([count_characters(text) for text in texts], kind="stable")[number::workers])


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
