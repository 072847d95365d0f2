"""The evidence: comparisons add up, each text counts once, and a damaged file costs only its damaged lines."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench.report.evidence
from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.model.classification import MULTI, Classification
from bench.model.parity import ParityCounter
from bench.provenance import answering_code
from bench.report.evidence import FILE, EvidenceFile, evidence_key
from bench.tables.items import hash_item

TASK = Classification(("joy", "fear"), MULTI, (0.5, 0.5))
MODEL = SimpleNamespace(weights_id="w", task=TASK, max_length=512)
PLACE = {"dataset": "x.csv", "device": "d-2-cores"}
KEY = evidence_key(MODEL, "onnx-int8", "e", **PLACE)
ROW = {name: KEY[name] for name in ("weights_id", "threshold", "dataset", "variant", "versions", "device")}


def compared(texts: list, flipped=(), finite: bool = True, largest: float = 0.1) -> ParityCounter:
    """Return the counter of a comparison in which the first label of the texts in `flipped` changes."""
    reference = np.full((len(texts), 2), 0.45)
    answers = reference + largest / 10
    answers[[text in flipped for text in texts], 0] = 0.45 + largest
    answers[:1, 1] = answers[:1, 1] if finite else np.nan
    parity = ParityCounter(TASK)
    parity.add(answers, reference, texts)
    return parity


def counts(evidence) -> tuple[int, int, int]:
    return evidence.changed, evidence.decisions, len(evidence.changes)


def test_comparisons_add_up_and_each_text_counts_once_with_its_most_changes(tmp_path):
    file = EvidenceFile(tmp_path)
    file.add(KEY, compared(["a", "b", "c", "c"], flipped="b"))
    assert counts(file.of_key(KEY)) == (1, 6, 3)
    size = file.path.stat().st_size
    file.add(KEY, compared(["c", "a", "b"]))
    assert file.path.stat().st_size == size, "nothing new"
    file.add(KEY, compared(["d", "a"], flipped="a"))
    for evidence in (file, EvidenceFile(tmp_path)):
        assert counts(evidence.of_row(ROW)) == (2, 8, 4) and evidence.of_row(ROW).max_diff == pytest.approx(0.1)
    assert hash_item(("a", "b")) != hash_item("a"), "several texts are one item"


def test_other_exports_texts_thresholds_and_versions_are_other_evidence(tmp_path):
    file = EvidenceFile(tmp_path)
    file.add(KEY, compared(["a"]))
    for name in KEY:
        file.add(KEY | {name: "onnx" if name == "variant" else "other"}, compared(["b"]))
        assert counts(file.of_key(KEY)) == (0, 2, 1), name
    assert all(file.of_row(ROW | {name: "unknown"}) is None for name in ROW)
    file.add(KEY | {"export": "new"}, compared(["x", "y", "z"]))
    assert counts(file.of_row(ROW)) == (0, 6, 3), "the export that was compared last"


def test_a_verdict_of_several_runs(tmp_path):
    for run in range(4):
        file = EvidenceFile(tmp_path)
        file.add(KEY, compared([f"{run} {i}" for i in range(450)]))
        assert file.of_row(ROW).verdict("onnx-int8", gpu=False) == (WITHIN if run == 3 else UNPROVEN), "of 3,131"
        assert file.of_row(ROW).verdict("onnx-int8", gpu=False, tolerance=0.01) == WITHIN
    file.add(KEY, compared(["nan"], finite=False))
    assert EvidenceFile(tmp_path).of_row(ROW).verdict("onnx-int8", gpu=False) == NOT_WITHIN
    rounding = EvidenceFile()
    rounding.add(KEY | {"variant": "onnx"}, compared(["a"], largest=1e-6))
    assert rounding.of_row(ROW | {"variant": "onnx"}).verdict("onnx", gpu=False) == WITHIN


DAMAGES = [
    lambda line: line[: len(line) // 2],
    lambda line: line.replace('"decisions": 4', '"decisions": -4'),
    lambda line: line.replace('"decisions": 4', '"decisions": 1e999'),
    lambda line: line.replace('"decisions": 4', f'"decisions": {10**400}'),
    lambda line: line.replace('"max_diff": 0.1', '"max_diff": NaN'),
    lambda line: line.replace("onnx-int8", "no-such-variant"),
    lambda line: json.dumps(json.loads(line) | {"texts": "no base64"}),
    lambda line: json.dumps(json.loads(line) | {"texts": ""}),
    lambda line: json.dumps(json.loads(line) | {"changes": "AAAA"}),
    lambda line: json.dumps(json.loads(line) | {"changes": "AQAAAAEAAAA="}),
    lambda line: json.dumps(json.loads(line) | {"weights_id": 3}),
    lambda line: "[" * 100_000,
    lambda line: "\x00\ufffd",
    lambda line: "",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_lines_are_skipped_and_the_others_count(damage, tmp_path, capsys):
    file = EvidenceFile(tmp_path)
    file.add(KEY, compared(["a", "b"], flipped="b"))
    line = file.path.read_text()
    damaged = damage(line.rstrip())
    assert damaged != line.rstrip()
    file.path.write_text(f"{damaged}\n{line}{damaged}")
    read = EvidenceFile(tmp_path)
    assert counts(read.of_row(ROW)) == (1, 4, 2) and FILE in capsys.readouterr().err
    read.add(KEY, compared(["c"]))
    assert counts(EvidenceFile(tmp_path).of_row(ROW)) == (1, 6, 3), "a line that was cut short is ended first"


def test_a_folder_that_cannot_be_written_loses_nothing_of_this_run(tmp_path, capsys):
    (tmp_path / FILE).mkdir()
    file = EvidenceFile(tmp_path)
    file.add(KEY, compared(["a"]))
    assert counts(file.of_row(ROW)) == (0, 2, 1) and FILE in capsys.readouterr().err
    file = EvidenceFile(tmp_path / "new", save=False)
    file.add(KEY, compared(["a"]))
    assert not Path(tmp_path / "new").exists()


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 9), min_size=1), st.sets(st.integers(0, 9))), max_size=6), st.randoms()
)
def test_neither_order_nor_overlap_nor_repetition_matters(runs, random):
    """Each run compares some texts; which of them change differs from run to run."""

    def total(runs) -> tuple:
        file = EvidenceFile()
        for texts, flipped in runs:
            file.add(KEY, compared(sorted(map(str, texts)), {*map(str, flipped)}))
        return counts(file.of_key(KEY))

    expected = {text: False for texts, _ in runs for text in texts}
    for texts, flipped in runs:
        expected |= {text: True for text in texts & flipped}
    assert total(runs) == (sum(expected.values()), 2 * len(expected), len(expected))
    assert total(random.sample(runs, len(runs)) + runs) == total(runs)


def test_other_code_is_other_evidence(tmp_path, monkeypatch):
    (tmp_path / "runtimes").mkdir()
    code = tmp_path / "runtimes" / "new.py"
    keys = []
    for text in ("x = 1", "x = 2", "x = 1"):
        code.write_text(text)
        monkeypatch.setattr(bench.report.evidence, "answering_code", lambda: answering_code(tmp_path))
        keys.append(evidence_key(MODEL, "torch-bf16", "", **PLACE))
    assert keys[0] == keys[2] != keys[1]
