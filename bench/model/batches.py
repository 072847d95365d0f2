"""Token counts -> batches -> shards: order, sizes, padding and each worker's share."""

from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True)
class Batching:
    """How rows are grouped into batches.

    `in-order` and `sorted` group `batch_size` rows in file order or by ascending token count. `token-budget` sorts them
    too and fills each batch up to `batch_tokens`, padding included, with at least one row.
    """

    name: str  # one of BATCHINGS
    batch_size: int = 0
    batch_tokens: int = 0
    long: str = "cut"  # how texts above the model's limit are read, one of LONG_TEXTS

    def __str__(self) -> str:
        size = f"{self.batch_tokens} tokens" if self.name == "token-budget" else f"{self.batch_size} {self.name}"
        return f"{size}, long texts in windows" if self.long != "cut" else size


def make_batches(lengths: np.ndarray, batching: Batching, groups: np.ndarray | None = None) -> list[np.ndarray]:
    """Return batches, each an array of indices into `lengths`, the token counts of the rows.

    Rows of different `groups` are in different batches. Every index occurs once; the last batch of a group may be
    smaller. Sorting is stable, so writing a batch's results at its indices restores the caller's order.
    """
    if groups is not None and groups.any():
        members = [np.flatnonzero(groups == number) for number in np.unique(groups)]
        return [rows[batch] for rows in members for batch in make_batches(lengths[rows], batching)]
    indices = np.arange(len(lengths)) if batching.name == "in-order" else np.argsort(lengths, kind="stable")
    if batching.name != "token-budget":
        return np.split(indices, range(batching.batch_size, len(indices), batching.batch_size))
    starts, ascending = [0], lengths[indices]
    while starts[-1] < len(indices):
        start = starts[-1]
        following = ascending[start : start + batching.batch_tokens // ascending[start]]
        padded = np.arange(1, len(following) + 1) * following  # the last row of a batch is the longest
        starts.append(start + max(1, np.searchsorted(padded, batching.batch_tokens, side="right")))
    return np.split(indices, starts[1:-1])


def round_lengths_up(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """Round lengths up to multiples of 2 from 32, of 4 from 64 and so on, but never above `max_length`.

    A third as many shapes for 1 to 2% more padding; some runtimes need set-up time for each new shape.
    """
    step = 2 ** np.maximum(np.floor(np.log2(lengths)).astype(int) - 4, 0)
    return np.minimum(-(-lengths // step) * step, max_length)


def padded_tokens(lengths: np.ndarray, batches: list[np.ndarray]) -> np.ndarray:
    """Return each batch's tokens when its rows are padded to the longest: int [batches]."""
    return np.array([len(batch) * int(lengths[batch].max()) for batch in batches])


def balance_shards(lengths: np.ndarray, batches: list[np.ndarray], workers: int) -> list[list[np.ndarray]]:
    """Distribute the batches so that all workers get about the same number of padded tokens.

    Each batch, the most expensive first, goes to the worker with the least so far (longest processing time first,
    Graham 1969). Each worker's list keeps the order of `batches`; with fewer batches than workers some are empty.
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
    """Return a padded batch: input name -> int64 [rows, tokens].

    `rows` has `input_ids` and perhaps `token_type_ids` (otherwise zeros). `pad_values` names the model's inputs, each
    with its padding value. Rows are padded to the longest, or to `to_length` if that is more.
    """
    lengths = np.array([len(row) for row in rows["input_ids"]])
    mask = np.arange(max(lengths.max(), to_length)) < lengths[:, None]
    mask = mask if padding_side == "right" else mask[:, ::-1]
    inputs = {}
    for name, value in pad_values.items():
        inputs[name] = np.where(mask, int(name == "attention_mask"), value)
        if name in rows:
            inputs[name][mask] = np.fromiter(chain.from_iterable(rows[name]), np.int64, lengths.sum())
    return inputs
