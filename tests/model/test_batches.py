"""Batches, shards and padding: properties for any lengths, and an example of each."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.model.batches import Batching, balance_shards, make_batches, pad, padded_tokens, round_lengths_up

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=200).map(np.array)
SIZES = st.integers(1, 300)
BATCHINGS = st.one_of(
    *(st.builds(Batching, st.just(name), batch_size=SIZES) for name in ("in-order", "sorted")),
    st.builds(Batching, st.just("token-budget"), batch_tokens=SIZES),
)


@given(LENGTHS, BATCHINGS)
def test_every_text_is_in_one_batch_and_outputs_return_to_its_index(lengths, batching):
    batches, size, budget = make_batches(lengths, batching), batching.batch_size, batching.batch_tokens
    if budget:
        assert all(len(batch) == 1 or padded_tokens(lengths, [batch])[0] <= budget for batch in batches)
        grown = [len(batch) + 1 for batch in batches[:-1]], [lengths[batch[0]] for batch in batches[1:]]
        assert (np.prod(grown, axis=0) > budget).all()
    else:
        assert [len(batch) for batch in batches[:-1]] == [size] * (math.ceil(len(lengths) / size) - 1)
        assert 1 <= len(batches[-1]) <= size
    indices = np.concatenate(batches)
    assert sorted(indices) == list(range(len(lengths)))
    outputs = np.full(len(lengths), -1)
    for batch in batches:
        outputs[batch] = lengths[batch] * 1000 + batch  # depends on this text only, as a model's output does
    assert (outputs == lengths * 1000 + np.arange(len(lengths))).all()
    if batching.name == "in-order":
        assert (indices == np.arange(len(lengths))).all()
    else:
        assert (indices == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))).all()


@given(LENGTHS, st.sampled_from([512, 500]))
def test_few_lengths_add_little_padding(lengths, max_length):
    lengths = np.minimum(lengths, max_length)
    widths = round_lengths_up(lengths, max_length)
    assert (widths >= lengths).all() and (widths <= np.minimum(max_length, lengths * 17 / 16)).all()
    every = round_lengths_up(np.arange(1, max_length + 1), max_length)
    assert (np.diff(every) >= 0).all() and set(widths) <= set(every) and len(set(every)) <= 96


@given(LENGTHS, SIZES)
def test_sorting_by_length_never_pads_more(lengths, size):
    lengths = lengths[: max(len(lengths) // size, 1) * size]  # a smaller last batch would have the longest texts
    size = min(size, len(lengths))
    batches = [make_batches(lengths, Batching(name, batch_size=size)) for name in ("sorted", "in-order")]
    by_length, in_order = (padded_tokens(lengths, part).sum() / lengths.sum() for part in batches)
    assert 1 <= by_length <= in_order


@given(LENGTHS, BATCHINGS, st.integers(1, 20))
def test_shards_lose_nothing_keep_the_order_and_are_balanced(lengths, batching, workers):
    batches = make_batches(lengths, batching)
    shards = balance_shards(lengths, batches, workers)
    assert len(shards) == workers
    index = {tuple(batch): i for i, batch in enumerate(batches)}
    dealt = [[index[tuple(batch)] for batch in shard] for shard in shards]
    assert sorted(i for shard in dealt for i in shard) == list(range(len(batches)))
    assert all(shard == sorted(shard) for shard in dealt)
    loads = [padded_tokens(lengths, shard).sum() for shard in shards]
    costs = padded_tokens(lengths, batches)
    # the bound of any list scheduling (Graham 1969)
    assert max(loads) <= costs.sum() / workers + (1 - 1 / workers) * costs.max() + 1e-6


ROWS = st.lists(st.lists(st.integers(0, 50_000), min_size=1, max_size=40), min_size=1, max_size=20)


@given(ROWS, st.integers(0, 3), st.sampled_from(["right", "left"]), st.integers(0, 50))
def test_padding_keeps_every_token_and_masks_the_rest(rows, pad_id, side, width):
    types = [[index % 2 for index in range(len(row))] for row in rows]
    pad_values = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": 3}
    inputs = pad({"input_ids": rows, "token_type_ids": types}, pad_values, side, width)
    shape = (len(rows), max(*map(len, rows), width))
    assert all(array.shape == shape and array.dtype == np.int64 for array in inputs.values())
    for i, row in enumerate(rows):
        real = slice(0, len(row)) if side == "right" else slice(shape[1] - len(row), None)
        for name, values in {"input_ids": row, "attention_mask": [1] * len(row), "token_type_ids": types[i]}.items():
            assert inputs[name][i][real].tolist() == values
            assert inputs[name][i].sum() == sum(values) + (shape[1] - len(row)) * pad_values[name]


def test_missing_token_types_are_zeros():
    inputs = pad({"input_ids": [[8], [5, 6, 7]]}, {"input_ids": 1, "attention_mask": 0, "token_type_ids": 0})
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "input_ids": [[8, 1, 1], [5, 6, 7]],
        "attention_mask": [[1, 0, 0], [1, 1, 1]],
        "token_type_ids": [[0, 0, 0], [0, 0, 0]],
    }


def test_more_workers_than_batches_leaves_some_idle():
    batches = make_batches(np.array([5, 7, 9]), Batching("sorted", batch_size=2))
    shards = balance_shards(np.array([5, 7, 9]), batches, 5)
    assert sorted(map(len, shards)) == [0, 0, 0, 1, 1]
