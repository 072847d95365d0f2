"""Which rows are compared with transformers' own call, and what the comparison finds."""

import re

import numpy as np
import pyarrow as pa
import pytest

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.label.folder import RECEIPT_FILE, check_complete, write_part
from bench.label.receipt import (
    LATER_ROWS,
    MAX_LATER_ROWS,
    Checker,
    Sample,
    add_sample,
    pick_sample,
    read_receipt,
)
from bench.label.rows import Answers, Counts, OutputSpec, label_table
from bench.label.splits import InputPart, InputSplit, LabelJob
from bench.model.model import Model
from bench.model.reference import Reference
from bench.model.task import Task
from bench.tables.items import items_of
from bench.tables.storage import locate
from utils import RunError

RECORDED = []  # counters that went into the evidence
pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def model(tiny_model) -> Model:
    return Model.from_folder(tiny_model, "tiny")


@pytest.fixture(scope="module")
def table(texts) -> pa.Table:
    """Some rows have no text, one has a very long text, and one contains special tokens."""
    bodies = [None, *texts[:100], "x" * 9000, "a <mask> </s> b", "[deleted]"]
    return pa.table({"id": np.arange(len(bodies)), "body": bodies})


@pytest.fixture(scope="module")
def answers(model, table) -> np.ndarray:
    """Probabilities of the rows that have a text, by transformers' own call."""
    full = [body for body in table["body"].to_pylist() if body not in (None, "[deleted]")]
    return Reference.load(model).of_items(full).astype(np.float32)


def output(model: Model, **options) -> OutputSpec:
    schema = pa.schema([("id", pa.int64()), ("body", pa.string())])
    return OutputSpec(schema, ["body"], ["id"], model.labels, model.labels, **options)


def compare(model, table, answers, folder, precision="bf16", no_check=False, **options) -> Checker:
    """Write a part with these answers, and compare some of its rows."""
    spec, part = output(model, **options), InputPart("a.csv-12345678", 0, table, last=True)
    labelled, counts = label_table(table, items_of(table, ["body"]), Answers(answers, np.ones(len(answers), int)), spec)
    footers = {part.name: write_part(locate(folder), part, labelled, counts)}
    splits = [InputSplit(part.file, table=None)]
    job = LabelJob(model, locate("in"), locate(folder), splits, spec, {}, no_check=no_check, footers=footers)
    checker = Checker(job, precision, gpu=None, fields={"variant": "torch-bf16"}, record=RECORDED.append)
    checker.compare([pick_sample(part, items_of(table, ["body"]), model)])
    return checker


def test_the_sample_has_the_longest_the_shortest_special_tokens_and_others(model, table, texts):
    def sample_of(table) -> Sample:
        return pick_sample(InputPart("a.csv-12345678", 0, table, last=True), items_of(table, ["body"]), model)

    sample, bodies = sample_of(table), table["body"].to_pylist()
    assert len(sample.rows) == len(set(sample.rows)) == Task.compared_rows
    assert sample.items == [bodies[i] for i in sample.rows] and not {None, "[deleted]"} & set(sample.items)
    assert {"x" * 9000, min(texts[:100], key=len), "a <mask> </s> b"} <= set(sample.first(LATER_ROWS).items)
    spread = np.histogram(sample.rows, bins=4, range=(0, len(bodies)))[0]
    assert spread.min() >= 8, "from everywhere in the part"
    assert sorted(sample_of(table.slice(0, 5)).rows) == [1, 2, 3, 4] and not sample_of(table.slice(0, 1)).rows


def test_samples_of_many_parts_stay_few_and_spread():
    samples = []
    for number in range(1, 1000):
        samples = add_sample(samples, Sample(str(number), list(range(64)), ["x"] * 64))
        assert sum(len(sample.rows) for sample in samples) <= MAX_LATER_ROWS
    numbers = [int(sample.part) for sample in samples]
    assert len(numbers) > 10 and numbers[0] < 100 and numbers[-1] > 900


@pytest.mark.parametrize("options", [{}, {"top_label": True}, {"top_label": True, "float16": True}])
def test_correct_rows_pass(options, model, table, answers, tmp_path):
    checker = compare(model, table, answers, tmp_path, precision="fp32", **options)
    assert (checker.parity.items, checker.parity.changed, checker.parity.non_finite) == (Task.compared_rows, 0, 0)
    assert checker.parity.decisions == Task.compared_rows * (1 if options else len(model.labels))
    assert checker.parity.max_diff < (2**-11 if "float16" in options else 1e-6)
    assert checker.verdict()[0] == WITHIN
    checker.precision = checker.parity.precision = "bf16"
    assert checker.verdict()[0] == UNPROVEN, "so few rows prove nothing about a lower precision"


@pytest.mark.parametrize(
    ("options", "is_evidence"), [({}, True), ({"float16": True}, False), ({"min_score": 0.9}, False)]
)
def test_only_whole_answers_are_evidence(options, is_evidence, model, table, answers, tmp_path):
    """Of scores that were not written, it isn't known whether a label crossed its threshold."""
    RECORDED.clear()
    compare(model, table, answers, tmp_path, **options)
    assert bool(RECORDED) == is_evidence


WRONG = {
    "labels in another order": lambda probs: probs[:, ::-1],
    "rows in another order": lambda probs: probs[::-1],
    "no number": lambda probs: np.where(np.arange(len(probs))[:, None] % 9 == 0, np.nan, probs),
    "the same for all": lambda probs: np.tile(probs[:1], (len(probs), 1)),
    "the contrary": lambda probs: 1 - probs,
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("top_label", [False, True])
def test_wrong_rows_are_found(how, top_label, model, table, answers, tmp_path):
    wrong = np.ascontiguousarray(WRONG[how](answers))
    checker = compare(model, table, wrong, tmp_path, top_label=top_label)
    assert checker.verdict()[0] == NOT_WITHIN, checker.parity


def test_fp32_with_differences_above_rounding_is_wrong_even_if_no_decision_changes(model, table, answers, tmp_path):
    closer = np.clip(answers + np.where(answers > 0.5, 0.01, -0.01), 0, 1).astype(np.float32)
    assert compare(model, table, closer, tmp_path).parity.changed == 0
    assert compare(model, table, closer, tmp_path, precision="fp32").verdict()[0] == NOT_WITHIN


def test_a_receipt_counts_the_rows_and_has_the_verdict(model, table, answers, tmp_path, capsys):
    checker = compare(model, table, answers, tmp_path)
    footers = check_complete(checker.job)
    assert [footer.counts for footer in footers.values()] == [Counts(rows=104, texts=102, rows_removed=1)]
    checker.finish([], footers)
    receipt = read_receipt(checker.job)
    assert receipt["rows"] == 104 and receipt["rows_without_text"] == 2 and receipt["variant"] == "torch-bf16"
    assert (receipt["rows_compared"], receipt["flips"], receipt["verdict"]) == (Task.compared_rows, 0, UNPROVEN)
    err = capsys.readouterr().err
    assert ["104", "2", "1"] in [re.findall(r"\d+", line) for line in err.splitlines()], "rows, without text, removed"
    assert RECEIPT_FILE in err


def test_the_first_wrong_part_stops_the_run_and_leaves_a_receipt(model, table, answers, tmp_path):
    wrong = np.ascontiguousarray(1 - answers)
    checker = compare(model, table, wrong, tmp_path)
    sample = pick_sample(InputPart("a.csv-12345678", 0, table, last=True), items_of(table, ["body"]), model)
    with pytest.raises(RunError) as stopped:
        checker.add(Counts(rows=104), sample)
    assert NOT_WITHIN in str(stopped.value) and "--no-check" in str(stopped.value)
    assert read_receipt(checker.job)["verdict"] == NOT_WITHIN
    checker = compare(model, table, wrong, tmp_path, no_check=True)
    checker.add(Counts(), Sample("part", [], []))
    assert checker.later_samples is None, "a part without texts is not the first that can be compared"
    checker.add(Counts(rows=104), sample)
    checker.add(Counts(rows=104), sample)
    assert [len(later.rows) for later in checker.later_samples] == [LATER_ROWS]
