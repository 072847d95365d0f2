"""What holds for any input: batches, shards, padding, parity, result rows, and a fuzz of what reads results."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import export_onnx
import plot_results
import utils
from utils import UserError

CHECKS = [HealthCheck.function_scoped_fixture]  # a file that every example writes anew
settings.register_profile(
    "same", deadline=None, max_examples=100, derandomize=True, database=None, suppress_health_check=CHECKS
)
settings.load_profile("same")
pytestmark = pytest.mark.filterwarnings("error")

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=200).map(np.array)
SIZES, ORDERS = st.integers(1, 300), st.sampled_from(utils.ORDERS)
PROBLEMS = ("multi_label_classification", "single_label_classification", "regression")


# ------------------------------------------------------------------------------------------------ batches and shards


@given(LENGTHS, SIZES, ORDERS)
def test_every_text_is_in_one_batch_and_its_place_can_be_found_again(lengths, size, order):
    batches = utils.make_batches(lengths, size, order)
    if order == "tokens":
        assert all(len(batch) == 1 or utils.padded_tokens(lengths, batch) <= size for batch in batches)
        grown = [len(batch) + 1 for batch in batches[:-1]], [lengths[batch[0]] for batch in batches[1:]]
        assert (np.prod(grown, axis=0) > size).all()
    else:
        assert [len(batch) for batch in batches[:-1]] == [size] * (math.ceil(len(lengths) / size) - 1)
        assert 1 <= len(batches[-1]) <= size
    indices = np.concatenate(batches)
    assert sorted(indices) == list(range(len(lengths)))
    outputs = np.full(len(lengths), -1)
    for batch in batches:
        outputs[batch] = lengths[batch] * 1000 + batch  # of a text alone, as a model's are
    assert (outputs == lengths * 1000 + np.arange(len(lengths))).all()
    if order == "dataset":
        assert (indices == np.arange(len(lengths))).all()
    else:
        assert (indices == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))).all()


@given(LENGTHS, st.sampled_from([512, 500]))
def test_few_lengths_are_hardly_more_padding(lengths, limit):
    lengths = np.minimum(lengths, limit)
    widths = utils.few_lengths(lengths, limit)
    assert (widths >= lengths).all() and (widths <= np.minimum(limit, lengths * 17 / 16)).all()
    every = utils.few_lengths(np.arange(1, limit + 1), limit)
    assert (np.diff(every) >= 0).all() and set(widths) <= set(every) and len(set(every)) <= 96


@given(LENGTHS, SIZES)
def test_sorting_by_length_never_pads_more(lengths, size):
    padded = {
        order: sum(utils.padded_tokens(lengths, batch) for batch in utils.make_batches(lengths, size, order))
        for order in utils.ORDERS
    }
    assert lengths.sum() <= padded["length"] <= padded["dataset"]


@given(LENGTHS, SIZES, ORDERS, st.integers(1, 20))
def test_shards_lose_nothing_keep_the_order_and_are_balanced(lengths, size, order, workers):
    batches = utils.make_batches(lengths, size, order)
    shards = utils.deal_shards(lengths, batches, workers)
    assert len(shards) == workers
    place = {tuple(batch): i for i, batch in enumerate(batches)}
    dealt = [[place[tuple(batch)] for batch in shard] for shard in shards]
    assert sorted(i for shard in dealt for i in shard) == list(range(len(batches)))
    assert all(shard == sorted(shard) for shard in dealt)
    loads = [sum(utils.padded_tokens(lengths, batch) for batch in shard) for shard in shards]
    costs = [utils.padded_tokens(lengths, batch) for batch in batches]
    # the bound of any list scheduling (Graham 1969)
    assert max(loads) <= sum(costs) / workers + (1 - 1 / workers) * max(costs) + 1e-6


@given(st.lists(st.lists(st.integers(0, 50_000), min_size=1, max_size=40), min_size=1, max_size=20), st.integers(0, 3))
def test_padding_keeps_every_token_and_masks_the_rest(rows, pad_id):
    input_ids, mask = utils.pad_batch(rows, pad_id)
    assert input_ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert input_ids.dtype == mask.dtype == np.int64
    for row, ids, ones in zip(rows, input_ids, mask, strict=True):
        assert ids.tolist() == row + [pad_id] * (len(ids) - len(row))
        assert ones.tolist() == [1] * len(row) + [0] * (len(ids) - len(row))


@given(st.integers(1, 10**6), st.integers(1, 2000))
def test_evenly_spaced_indices_are_distinct_and_evenly_spaced(total, count):
    indices = utils.evenly_spaced(total, count)
    gaps = np.diff([*indices, total])
    assert len(indices) == min(count, total) and indices[0] == 0
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


# ------------------------------------------------------------------------------------------------------------ parity


@st.composite
def pairs(draw):
    """A problem and two arrays of logits [texts, labels], the second with values that are not finite."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 5)))
    logits = draw(arrays.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32)))
    others = draw(arrays.arrays(np.float32, shape, elements=st.floats(width=32), fill=st.just(np.float32(0))))
    return draw(st.sampled_from(PROBLEMS)), logits, others


@given(pairs())
def test_parity_and_its_statistics(pair):
    problem, logits, others = pair
    reference, probs = utils.probabilities(logits, problem), utils.probabilities(others, problem)
    if problem != "regression":
        assert ((reference >= 0) & (reference <= 1)).all()
        assert not ((probs < 0) | (probs > 1)).any()
    if problem == "single_label_classification":
        assert reference.sum(axis=1) == pytest.approx(np.ones(len(reference)))

    assert utils.flips(reference, reference, problem) == 0
    changed = utils.flips(probs, reference, problem)
    assert 0 <= changed <= 1
    lost = ~np.isfinite(probs)
    assert changed >= (lost.any(axis=1) if problem == "single_label_classification" else lost).mean() - 1e-12
    if problem != "regression" and not lost.any():
        assert utils.flips(reference, probs, problem) == changed

    same = export_onnx.statistics(reference, reference, problem)
    assert set(same["largest_difference"].values()) == {0.0}
    assert (same["mean_over_labels"], same["changed_decisions"], same["non_finite_texts"]) == (0, 0, 0)
    stats = export_onnx.statistics(probs, reference, problem)
    assert stats["non_finite_texts"] == lost.any(axis=1).sum()
    largest = stats["largest_difference"]
    ordered = [largest[key] for key in ("min", "p25", "median", "p75", "p90", "p95", "p99", "max")]
    if stats["non_finite_texts"] == len(probs):
        assert np.isnan([*largest.values(), stats["mean_over_labels"]]).all()
    else:
        assert ordered == pytest.approx(sorted(ordered)) and ordered[0] >= 0
        assert ordered[0] <= largest["mean"] * (1 + 1e-9) and largest["mean"] <= ordered[-1] * (1 + 1e-9)
        assert stats["mean_over_labels"] <= largest["mean"] * (1 + 1e-9)
    gate = export_onnx.failed_gate(stats, changed)
    assert bool(gate) == bool(lost.any())
    worst = export_onnx.worst_texts(probs, reference, ["a text"] * len(probs), ["label"] * probs.shape[1])
    assert len(worst) == min(export_onnx.WORST, len(probs))


# ------------------------------------------------------------------------------------------------------- result rows

# what a cell can't hold: half a pair of surrogates is no UTF-8; a bare carriage return, which utils.run keeps out
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=20)
CELLS = TEXT | st.sampled_from(["", '"', '""', "\t", "\n", "a\tb", 'a"\n"b', "\0", "\ufeff", "\u2028", "NA", " x "])
ROWS = st.fixed_dictionaries(dict.fromkeys(utils.COLUMNS, CELLS))


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_rows_come_back_as_they_were_saved(tmp_path, rows):
    path = tmp_path / "rows.tsv"
    path.unlink(missing_ok=True)
    expected = []
    for row in rows:
        utils.save_row(path, row)
        expected = [other for other in expected if not utils.same_cell(row, other)] + [row]
        assert utils.read_rows(path) == expected


def good_row(size: int, **columns) -> dict:
    """A row whose every column names its cell, so that one that comes back changed is seen."""
    row = dict.fromkeys(utils.COLUMNS, f"text {size}") | dict.fromkeys(("workers", "threads", "messages"), "1")
    row |= dict.fromkeys(("messages/s", "min", "max"), f"{size}.5") | {"max_diff": "0.001", "flips": "0.25"}
    row |= dict.fromkeys(plot_results.LATER_FLOATS, f"{size}.25")
    return row | {"size": str(size), "order": "length", "status": "ok", "model": "some/model"} | columns


STATUSES = st.sampled_from(["ok", "ok", "ok", "out of memory", 'died of "it"', "two\nlines", "a\ttab"])
FILES = st.lists(STATUSES, min_size=1, max_size=8)


def text_of(path: Path, statuses: list[str]) -> list[str]:
    """Saves a row for each status; the header and each row as text."""
    path.parent.mkdir(exist_ok=True)
    records = []
    for size, status in enumerate(statuses, start=1):
        path.unlink(missing_ok=True)
        utils.save_row(path, good_row(size, status=status))
        records.append(path.read_text().split("\n", 1)[1])
    return ["\t".join(utils.COLUMNS) + "\n", *records]


def plotted(folder: Path) -> list[dict] | None:
    """What plot_results.py reads, or None if it finds nothing; any other error is one too many."""
    try:
        return plot_results.read_results(folder)
    except UserError:
        return None


HEADER = "\t".join(utils.COLUMNS).encode() + b"\n"
PIECES = [b"\t", b"\n", b"\r", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", b"1", b"ok", b"length", b"nan", b"1e999", HEADER]
PIECES += [b"size\tmessages/s\n", b"workers\tsize\tmessages/s\n", b"9" * 5000, "²".encode(), b"-1", b"x" * 200_000]
NOISE = st.binary(max_size=300) | st.lists(st.sampled_from(PIECES), max_size=80).map(b"".join)
NOISE |= NOISE.map(HEADER.__add__) | st.lists(st.sampled_from(PIECES), min_size=24, max_size=24).map(b"\t".join)


@given(NOISE)
@example(b"")
@example(HEADER)
@example(HEADER + b"\t".join([b"1"] * 24) + b"\n")
def test_whatever_is_in_a_file_its_readers_end_with_rows_or_a_user_error(tmp_path, content):
    path = tmp_path / "model" / "device_variant_dataset.tsv"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    for row in plotted(tmp_path) or []:
        assert row["status"] == "ok" and row["messages/s"] > 0 and row["size"] >= 1
    try:
        rows = utils.read_rows(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(tuple(row) == utils.COLUMNS and None not in row.values() for row in rows)


EDITS = st.binary(max_size=5) | st.sampled_from([b'"', b'""', b"\t", b"\n", b"\r\n", b"\xff", b"9" * 400, b"\0"])


@given(FILES, st.data())
def test_an_edit_within_a_row_costs_the_readers_no_other_row(tmp_path, statuses, data):
    path = tmp_path / "model" / "device_variant_dataset.tsv"
    header, *records = text_of(path, statuses)
    edited = data.draw(st.integers(0, len(records) - 1))
    record = records[edited].encode()
    at = data.draw(st.integers(0, len(record) - 1))
    end = min(at + data.draw(st.integers(0, 10)), len(record) - 1)  # its line break stays
    record = record[:at] + data.draw(EDITS) + record[end:]
    before, after = "".join(records[:edited]).encode(), "".join(records[edited + 1 :]).encode()
    path.write_bytes(header.encode() + before + record + after)

    others = {size for size, status in enumerate(statuses, start=1) if status == "ok" and size != edited + 1}
    assert others <= {row["size"] for row in plotted(tmp_path) or []}
    try:
        rows = utils.read_rows(path)
    except UserError:
        return
    assert {str(size) for size in others} <= {row["size"] for row in rows}


@given(FILES, st.data())
def test_a_cut_costs_the_readers_only_what_is_behind_it(tmp_path, statuses, data):
    path = tmp_path / "model" / "device_variant_dataset.tsv"
    records = text_of(path, statuses)
    whole = data.draw(st.integers(1, len(records)))
    rest = "".join(records[whole:]).encode()
    path.write_bytes("".join(records[:whole]).encode() + rest[: data.draw(st.integers(0, len(rest)))])
    good = [size for size, status in enumerate(statuses[: whole - 1], start=1) if status == "ok"]
    assert [row["size"] for row in plotted(tmp_path) or []][: len(good)] == good
    try:
        rows = utils.read_rows(path)
    except UserError:
        return
    assert [row["size"] for row in rows][: whole - 1] == [str(size) for size in range(1, whole)]
