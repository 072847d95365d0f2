"""Which rows are compared with transformers' own call, and what the comparison finds."""

import re

import numpy as np
import pyarrow as pa
import pytest

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.label.comparison import Comparison
from bench.label.output import RECEIPT_FILE, read_footers, write_part
from bench.label.receipt import Checker, read_receipt
from bench.label.rows import Answers, Counts, OutputSpec, label_table
from bench.label.sample import FIRST_ROWS, LATER_ROWS, MOST_ROWS, Sample, add_sample, pick_sample
from bench.label.splits import InputPart, InputSplit
from bench.model.model import Model
from bench.model.reference import Reference
from bench.tables.storage import locate
from utils import RunError

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


def spec(model: Model, top_label: bool = False) -> OutputSpec:
    schema = pa.schema([("id", pa.int64()), ("body", pa.string())])
    same = {"written": model.labels, "half": False, "min_score": None, "prefix": "", "rows": 1000, "limit": None}
    return OutputSpec(schema, ["id"], "body", model.labels, top_label=top_label, **same)


def compare(model, table, answers, folder, top_label=False, precision="bf16") -> Comparison:
    output = spec(model, top_label)
    labelled, counts = label_table(table, Answers(answers, np.ones(len(answers), int)), output)
    part = InputPart(0, 0, table, last=True)
    write_part(locate(folder), part, labelled, counts, job="")
    comparison = Comparison(model, precision, output, locate(folder), gpu=None)
    comparison.look([pick_sample(part.name, table, "body", model)])
    return comparison


def test_the_sample_has_the_longest_the_shortest_special_tokens_and_others(model, table, texts):
    sample = pick_sample("part", table, "body", model)
    bodies = table["body"].to_pylist()
    assert len(sample.rows) == len(set(sample.rows)) == FIRST_ROWS
    assert sample.texts == [bodies[i] for i in sample.rows] and not {None, "[deleted]"} & set(sample.texts)
    assert {"x" * 9000, min(texts[:100], key=len), "a <mask> </s> b"} <= set(sample.first(LATER_ROWS).texts)
    spread = np.histogram(sample.rows, bins=4, range=(0, len(bodies)))[0]
    assert spread.min() >= 8, "from everywhere in the part"
    few = pick_sample("part", table.slice(0, 5), "body", model)
    assert sorted(few.rows) == [1, 2, 3, 4] and not pick_sample("part", table.slice(0, 1), "body", model).rows


def test_samples_of_many_parts_stay_few_and_spread():
    samples = []
    for number in range(1, 1000):
        samples = add_sample(samples, Sample(str(number), list(range(64)), ["x"] * 64))
        assert sum(len(sample.rows) for sample in samples) <= MOST_ROWS - FIRST_ROWS
    numbers = [int(sample.part) for sample in samples]
    assert len(numbers) > 10 and numbers[0] < 100 and numbers[-1] > 900


@pytest.mark.parametrize("top_label", [False, True])
def test_correct_rows_pass(top_label, model, table, answers, tmp_path):
    found = compare(model, table, answers, tmp_path, top_label, precision="fp32")
    assert (found.rows, found.changed, found.no_answer) == (FIRST_ROWS, 0, 0)
    assert found.decisions == FIRST_ROWS * (1 if top_label else len(model.labels))
    assert 0 < found.largest < 1e-6 or found.largest == 0
    assert found.verdict()[0] == WITHIN
    found.precision = "bf16"
    assert found.verdict()[0] == UNPROVEN, "so few rows prove nothing about a lower precision"


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
    found = compare(model, table, np.ascontiguousarray(WRONG[how](answers)), tmp_path, top_label)
    assert found.verdict()[0] == NOT_WITHIN, found


def test_fp32_with_differences_above_rounding_is_wrong_even_if_no_decision_changes(model, table, answers, tmp_path):
    closer = np.clip(answers + np.where(answers > 0.5, 0.01, -0.01), 0, 1).astype(np.float32)
    assert compare(model, table, closer, tmp_path).changed == 0
    assert compare(model, table, closer, tmp_path, precision="fp32").verdict()[0] == NOT_WITHIN


def test_a_receipt_counts_the_rows_and_has_the_verdict(model, table, answers, tmp_path, capsys):
    found = compare(model, table, answers, tmp_path)
    footers = read_footers(locate(tmp_path), "", [InputSplit(0, table=None)])
    assert [footer.counts for footer in footers.values()] == [Counts(rows=104, texts=102, removed=1)]
    checker = Checker(found, {"variant": "torch-bf16"}, [InputSplit(0, table=None)])
    checker.finish([], checker.check_complete())
    receipt = read_receipt(locate(tmp_path))
    assert receipt["rows"] == 104 and receipt["rows_without_text"] == 2 and receipt["variant"] == "torch-bf16"
    assert (receipt["rows_compared"], receipt["flips"], receipt["verdict"]) == (FIRST_ROWS, 0, UNPROVEN)
    err = capsys.readouterr().err
    assert ["104", "2", "1"] in [re.findall(r"\d+", line) for line in err.splitlines()], "rows, without text, removed"
    assert RECEIPT_FILE in err


def test_the_first_wrong_part_stops_the_run_and_leaves_a_receipt(model, table, answers, tmp_path):
    found = compare(model, table, np.ascontiguousarray(1 - answers), tmp_path)
    sample = pick_sample(InputPart(0, 0, table, last=True).name, table, "body", model)
    with pytest.raises(RunError) as stopped:
        Checker(found, {}, []).add(Counts(rows=104), sample)
    assert NOT_WITHIN in str(stopped.value) and "--no-check" in str(stopped.value)
    assert read_receipt(locate(tmp_path))["verdict"] == NOT_WITHIN
    checker = Checker(found, {}, [], stops=False)
    checker.add(Counts(), Sample("part", [], []))
    assert checker.later is None, "a part without texts is not the first that can be compared"
    checker.add(Counts(rows=104), sample)
    checker.add(Counts(rows=104), sample)
    assert [len(later.rows) for later in checker.later] == [LATER_ROWS]
