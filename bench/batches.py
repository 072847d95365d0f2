"""Token counts -> batches -> shards: the only place that knows of order, size, padding and each worker's share."""

import numpy as np

ORDERS = ("dataset", "length", "tokens")


def make_batches(lengths: np.ndarray, size: int, order: str) -> list[np.ndarray]:
    """Makes batches of `size` texts (the last may be smaller), each an array of indices into `lengths`.

    In order `tokens` a batch has as many texts as stay within `size` tokens once they are padded, but at least one.
    Every index occurs once. In orders `length` and `tokens` the texts are sorted by token count (stable); writing a
    batch's results at its indices puts them back in the caller's order.
    """
    indices = np.arange(len(lengths)) if order == "dataset" else np.argsort(lengths, kind="stable")
    starts = list(range(0, len(indices), size))
    if order == "tokens":
        starts = [0]
        for end, length in enumerate(lengths[indices]):  # ascending, so that the text at the end is the longest
            if end > starts[-1] and (end + 1 - starts[-1]) * length > size:
                starts.append(end)
    return np.split(indices, starts[1:])


def round_up(lengths: np.ndarray, limit: int) -> np.ndarray:
    """Rounds lengths up to multiples of 2 from 32 on, of 4 from 64 on and so forth, but never above `limit`.

    Cuts the number of shapes to a third at the cost of 1 to 2% more padding; each new shape costs some runtimes set-up.
    """
    step = 2 ** np.maximum(np.floor(np.log2(lengths)).astype(int) - 4, 0)
    return np.minimum(-(-lengths // step) * step, limit)


def padded_tokens(lengths: np.ndarray, batches: list[np.ndarray]) -> np.ndarray:
    """Counts each batch's tokens once its texts are padded to its longest: [batches]."""
    return np.array([len(batch) * int(lengths[batch].max()) for batch in batches])


def deal_shards(lengths: np.ndarray, batches: list[np.ndarray], workers: int) -> list[list[np.ndarray]]:
    """Deals the batches to the workers so that all get about the same padded tokens.

    Each batch, the most expensive first, goes to the worker with the least so far (longest processing time first,
    Graham 1969); then each list is put back in the order of `batches`. With fewer batches than workers some are empty.
    """
    costs = padded_tokens(lengths, batches)
    loads, shards = np.zeros(workers), [[] for _ in range(workers)]
    for i in np.argsort(-costs, kind="stable"):
        worker = int(loads.argmin())
        loads[worker] += costs[i]
        shards[worker].append(i)
    return [[batches[i] for i in sorted(shard)] for shard in shards]


def pad(rows: dict[str, list], fills: dict[str, int], side: str = "right", width: int = 0) -> dict[str, np.ndarray]:
    """Pads a batch: what the model gets, name -> int64 [texts, tokens].

    `rows` has the `input_ids` of each text, and perhaps their `token_type_ids`, else all are 0. `fills` says what the
    model gets, and what stands where padding is. All are as long as the longest row, or as `width` if that is more.
    """
    lengths = np.array([len(row) for row in rows["input_ids"]])
    mask = np.arange(max(lengths.max(), width)) < lengths[:, None]
    mask = mask if side == "right" else mask[:, ::-1]
    inputs = {name: np.full(mask.shape, fill, dtype=np.int64) for name, fill in fills.items()}
    for name, array in inputs.items():
        array[mask] = np.concatenate(rows[name]) if name in rows else name == "attention_mask"
    return inputs
