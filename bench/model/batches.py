"""Token counts -> batches -> shards: the only place that knows of order, sizes, padding and each worker's share."""

from dataclasses import dataclass

import numpy as np

BATCHINGS = ("in-order", "sorted", "token-budget")
# long texts: truncated, or read in windows whose answers are combined by each label's maximum or mean
LONG_TEXTS = "cut", "windows", "windows-mean"


@dataclass(frozen=True)
class Batching:
    """How texts are put into batches, by one of the BATCHINGS.

    `in-order` and `sorted` put `batch_size` texts into each, as they come or by ascending token count. `token-budget`
    sorts them too and puts as many into each as stay within `batch_tokens` once they are padded, but at least one.
    """

    name: str
    batch_size: int = 0
    batch_tokens: int = 0
    long: str = "cut"  # what becomes of texts that are longer than the model takes, one of LONG_TEXTS

    def __str__(self) -> str:
        size = f"{self.batch_tokens} tokens" if self.name == "token-budget" else f"{self.batch_size} {self.name}"
        return f"{size}, long texts in windows" if self.long != "cut" else size


def make_batches(lengths: np.ndarray, batching: Batching, groups: np.ndarray | None = None) -> list[np.ndarray]:
    """Makes batches of texts that have so many tokens, each batch an array of indices into `lengths`.

    Texts of different `groups` are in different batches. Every index occurs once; the last batch of a group may be
    smaller. Sorting is stable, and writing a batch's results at its indices puts them back in the caller's order.
    """
    if groups is not None and groups.any():
        members = [np.flatnonzero(groups == number) for number in np.unique(groups)]
        return [own[batch] for own in members for batch in make_batches(lengths[own], batching)]
    indices = np.arange(len(lengths)) if batching.name == "in-order" else np.argsort(lengths, kind="stable")
    if batching.name != "token-budget":
        return np.split(indices, range(batching.batch_size, len(indices), batching.batch_size))
    starts = [0]
    for end, length in enumerate(lengths[indices]):  # ascending, so that the text at the end is the longest
        if end > starts[-1] and (end + 1 - starts[-1]) * length > batching.batch_tokens:
            starts.append(end)
    return np.split(indices, starts[1:])


def round_lengths_up(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """Rounds lengths up to multiples of 2 from 32 on, of 4 from 64 on and so forth, but never above `max_length`.

    Cuts the number of shapes to a third at the cost of 1 to 2% more padding; each new shape costs some runtimes set-up.
    """
    step = 2 ** np.maximum(np.floor(np.log2(lengths)).astype(int) - 4, 0)
    return np.minimum(-(-lengths // step) * step, max_length)


def padded_tokens(lengths: np.ndarray, batches: list[np.ndarray]) -> np.ndarray:
    """Counts each batch's tokens once its texts are padded to its longest: [batches]."""
    return np.array([len(batch) * int(lengths[batch].max()) for batch in batches])


def balance_shards(lengths: np.ndarray, batches: list[np.ndarray], workers: int) -> list[list[np.ndarray]]:
    """Deals the batches to the workers so that all get about the same padded tokens.

    Each batch, the most expensive first, goes to the worker with the least so far (longest processing time first,
    Graham 1969); then each list is put back in the order of `batches`. With fewer batches than workers some are empty.
    """
    costs = padded_tokens(lengths, batches)
    totals, shards = np.zeros(workers), [[] for _ in range(workers)]
    for i in np.argsort(-costs, kind="stable"):
        worker = int(totals.argmin())
        totals[worker] += costs[i]
        shards[worker].append(i)
    return [[batches[i] for i in sorted(shard)] for shard in shards]


def pad(
    rows: dict[str, list], pad_values: dict[str, int], padding_side: str = "right", to_length: int = 0
) -> dict[str, np.ndarray]:
    """Pads a batch: what the model gets, name -> int64 [texts, tokens].

    `rows` has the `input_ids` of each text, and perhaps their `token_type_ids`, else all are 0. `pad_values` says what
    the model gets, and what stands where padding is. All are as long as the longest row, or as `to_length` if that is
    more.
    """
    lengths = np.array([len(row) for row in rows["input_ids"]])
    mask = np.arange(max(lengths.max(), to_length)) < lengths[:, None]
    mask = mask if padding_side == "right" else mask[:, ::-1]
    inputs = {name: np.full(mask.shape, value, dtype=np.int64) for name, value in pad_values.items()}
    for name, array in inputs.items():
        array[mask] = np.concatenate(rows[name]) if name in rows else name == "attention_mask"
    return inputs
