"""Pairs of texts and zero-shot classification in all scripts, and classify() from Python."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, kill_after_a_part
from tiny import make_tiny_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import classify_texts
import export_onnx
import run_benchmark
from bench.judge import NOT_WITHIN, WITHIN
from bench.report.rows import read_results
from runtimes.classifier import Classifier
from utils import UserError

NAMES = {0: "contradiction", 1: "entailment", 2: "neutral"}
CPU = ["--device", "cpu"]
LABELS = ["--candidate-labels", "if,his whole,a", "--hypothesis-template", "design of {}"]


@pytest.fixture(scope="module")
def nli(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("nli") / "nli"
    label2id = {name: i for i, name in NAMES.items()}
    return make_tiny_bert(folder, texts, num_labels=3, problem_type=None, id2label=NAMES, label2id=label2id)


@pytest.fixture
def source(tmp_path, texts, monkeypatch):
    """Write a file of 60 pairs, some of them without one of their texts."""
    monkeypatch.chdir(tmp_path)
    second = ["" if i % 20 == 3 else "[removed]" if i % 20 == 9 else text for i, text in enumerate(texts[60:120])]
    first = [None if i % 20 == 5 else text for i, text in enumerate(texts[:60])]
    pd.DataFrame({"id": range(60), "body": first, "second": second}).to_parquet("source.parquet", row_group_size=12)
    return tmp_path / "source.parquet"


def read(folder) -> pd.DataFrame:
    return pd.read_parquet(folder).sort_values("id", ignore_index=True)


def nli_probabilities(folder, first: str, second: str, **options) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    options = {"truncation": True} | options
    return network(**tokenizer(first, second, return_tensors="pt", **options)).logits[0].softmax(0).detach().numpy()


def test_pairs_are_labelled_and_rows_without_a_text_have_nulls(nli, source, call, tmp_path):
    options = [*CPU, "--variant", "torch", "--pair-column", "second"]
    code, _, err = call(classify_texts, nli, source, "--output", "out", *options)
    assert code == 0, err
    found, given = read("out"), pd.read_parquet(source)
    assert list(found.columns) == ["id", *NAMES.values()]
    missing = [i for i in range(60) if i % 20 in (3, 5, 9)]
    assert np.flatnonzero(found["entailment"].isna()).tolist() == missing
    for i in (0, 17, 41):
        expected = nli_probabilities(nli, given["body"][i], given["second"][i])
        assert found.loc[i, [*NAMES.values()]].to_numpy(float) == pytest.approx(expected, abs=1e-5)
    receipt = json.loads((tmp_path / "out" / "_receipt.json").read_text())
    assert (receipt["verdict"], receipt["flips"], receipt["column"]) == (WITHIN, 0, "body, second")
    assert receipt["rows_compared"] == 51
    code, _, err = call(classify_texts, nli, source, "--output", "out", *options, "--truncation", "only_first")
    assert code == 2 and "--truncation" in err


def test_a_killed_zero_shot_job_is_resumed_and_ray_and_shards_write_the_same(nli, source, call, tmp_path):
    options = [nli, source, *CPU, "--variant", "torch", "--threads", 1, "--rows-per-file", 9, *LABELS]
    assert call(classify_texts, *options, "--output", "whole")[0] == 0
    whole = read("whole")
    assert list(whole.columns) == ["id", "second", "if", "his whole", "a"]
    command = [sys.executable, ROOT / "classify_texts.py", *options, "--output", "killed"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, start_new_session=True)
    kill_after_a_part(process, tmp_path / "killed")
    changed = [*options[:-2], "--hypothesis-template", "other {}"]
    code, _, err = call(classify_texts, *changed, "--output", "killed")
    assert code == 2 and "--hypothesis-template" in err
    for output, runs in {"killed": [[]], "shards": [["--shard", "1/2"], ["--shard", "2/2"], []]}.items():
        for run in runs:
            code, _, err = call(classify_texts, *options, "--output", output, *run)
            assert code == 0, err
        pd.testing.assert_frame_equal(read(output), whole, check_exact=False, atol=1e-5)


@pytest.mark.all_types  # slow
@pytest.mark.needs("ray")
def test_ray_writes_the_same_zero_shot_labels(nli, source, call, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    options = [nli, source, *CPU, "--variant", "torch", "--threads", 1, "--multi-label", *LABELS]
    assert call(classify_texts, *options, "--output", "whole")[0] == 0
    code, _, err = call(classify_texts, *options, "--output", "ray", "--ray")
    assert code == 0, err
    pd.testing.assert_frame_equal(read("ray"), read("whole"), check_exact=False, atol=1e-5)


def test_top_label_and_windows(nli, source, call):
    options = [nli, source, *CPU, "--variant", "torch", *LABELS, "--top-label"]
    code, _, err = call(classify_texts, *options, "--long", "windows", "--output", "out")
    assert code == 0, err
    found = read("out")
    assert set(found["label"].dropna()) <= {"if", "his whole", "a"} and found["score"].between(1 / 3, 1).sum() == 57


def test_the_benchmark_has_the_pipeline_as_a_row_and_the_fastest_variant_is_used(nli, source, call, tmp_path):
    options = ["--model", "torch,pipeline", "--model-id", nli, "--dataset", source, *CPU, "--batches", 4]
    options += ["--min-time", 0, "--check-time", 0, "--batching", "token-budget,in-order", "--batch-tokens", 256]
    for given in (LABELS, ["--pair-column", "second"]):
        code, _, err = call(run_benchmark, *options, *given)
        assert code == 0, err
        assert re.search(rf"classify_texts.py .*{given[0]}", err, re.DOTALL), "the command to continue with"
    rows = read_results(list(tmp_path.glob("results/*/*.tsv")))[0]
    assert (rows["status"] == "ok").all() and (rows["max_diff"] < 1e-5).all() and (rows["within"] == "yes").all()
    zero_shot, pairs = (
        rows[rows["threshold"].str.startswith("zero-shot")],
        rows[rows["threshold"].str.startswith("pairs")],
    )
    assert len(zero_shot) + len(pairs) == len(rows) and set(zero_shot["variant"]) == {"torch", "pipeline"}
    assert set(zero_shot["decisions"]) == {57} and set(pairs["decisions"]) == {51}
    speeds = {f"{speed:.1f}" for speed in zero_shot[zero_shot["stage"] == "end-to-end"]["messages/s"]}
    code, _, err = call(classify_texts, nli, source, "--output", "out", *CPU, *LABELS, "--dry-run")
    assert code == 0 and speeds & set(re.findall(r"[\d.]+", err)), "a speed in texts, not in rows"
    code, _, err = call(classify_texts, nli, source, "--output", "out", *CPU, "--candidate-labels", "x,y", "--dry-run")
    assert code == 0 and not speeds & set(re.findall(r"[\d.]+", err)) and "run_benchmark.py" in err


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (["--pair-column", 'a "second", b'], [*NAMES.values()]),
        (["--candidate-labels", "if,a", "--multi-label"], ["if", "a"]),
        (["--candidate-labels", "comma.txt"], ["if, not", "a/b"]),
    ],
)
def test_the_command_of_a_card_runs_as_printed(options, labels, nli, source, call, tmp_path, monkeypatch):
    (tmp_path / "comma.txt").write_text("if, not\na/b\n")
    pd.read_parquet(source).rename(columns={"second": 'a "second", b'}).to_parquet("data.parquet")
    data = ["--dataset", "data.parquet", *CPU, "--no-upload", "--limit", 8, "--batch-size", 4]
    code, out, err = call(export_onnx, nli, *data, "--precision", "fp32", *options)
    assert code in (0, 1), out + err
    monkeypatch.chdir(tmp_path / "nli-onnx")
    card = (tmp_path / "nli-onnx" / "README.md").read_text()
    *earlier, line = re.search(r"^```sh\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)[1].splitlines()
    for command in [command for command in earlier if command.startswith("printf")]:
        subprocess.run(command, shell=True, check=True)
    _, _, *words = shlex.split(line)
    code, _, err = call(classify_texts, *words, *CPU)
    assert code == 0 and list(pd.read_parquet("labels").columns)[-len(labels) :] == labels, err


@pytest.mark.parametrize("options", [["--pair-column", "second"], LABELS])
def test_an_export_is_checked_on_pairs_and_its_example_runs(options, nli, source, call, tmp_path, monkeypatch):
    data = ["--dataset", source, *CPU, "--no-upload", "--batch-size", 4]
    code, out, err = call(export_onnx, nli, *data, "--precision", "fp32", *options)
    report = json.loads(next((tmp_path / "nli-onnx").glob("parity*.json")).read_text())
    assert code == 0 and report["verdict"] == WITHIN and report["texts"] in (51, 57), out + err
    assert 0 < report["largest_difference"]["max"] < 1e-5
    card = (tmp_path / "nli-onnx" / "README.md").read_text()
    assert f"pipeline_tag: {report['task']}\n" in card
    [example] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    monkeypatch.chdir(tmp_path / "nli-onnx")
    exec(example, names)
    pair = ("design of his whole", "a lot of lanes " * 90)
    truncation = "longest_first" if "--pair-column" in options else "only_first"
    pair = pair if truncation == "longest_first" else pair[::-1]
    expected = nli_probabilities(nli, *pair, truncation=truncation)
    found = names["classify"]([pair, None, ("a", "if")], batch_size=2)
    assert found[0] == pytest.approx(expected, abs=1e-4) and np.isnan(found[1]).all()


def test_the_export_of_a_reranker_is_checked_on_whole_queries(texts, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny_bert(tmp_path / "rerank", texts, num_labels=1, problem_type=None, id2label={0: "LABEL_0"})
    rows = {"query": [texts[i // 5] for i in range(60)], "body": texts[60:120], "qid": [i // 5 for i in range(60)]}
    pd.DataFrame(rows).to_parquet("rows.parquet")
    options = ["rerank", "--dataset", "rows.parquet", *CPU, "--no-upload", "--column", "query", "--pair-column", "body"]
    options += ["--precision", "fp32", "--limit", 20, "--group-column"]
    code, out, err = call(export_onnx, *options, "qid")
    assert code == 0, out + err
    report = json.loads(next((tmp_path / "rerank-onnx").glob("parity*.json")).read_text())
    assert report["texts"] == 20 and 20 < report["decisions"] <= 20 + 4 * 4 and report["changed"] == 0
    code, _, err = call(export_onnx, *options, "none", "--check-only")
    assert code == 2 and "'none'" in err
    options = ["rerank", "rows.parquet", "--output", "out", *CPU, "--column", "query", "--pair-column", "body"]
    code, _, err = call(classify_texts, *options, "--float16")
    assert code == 2 and "--float16" in err


def test_a_changed_order_alone_fails_the_check(texts, tmp_path, call, monkeypatch):
    """Scores move by less than a tenth of their standard deviation, and queries are ranked otherwise."""
    monkeypatch.chdir(tmp_path)
    make_tiny_bert(tmp_path / "rerank", texts, num_labels=1, problem_type="regression", id2label={0: "LABEL_0"})
    pairs = [(texts[i // 30], texts[60 + i]) for i in range(60)]
    rows = pd.DataFrame(pairs, columns=["query", "body"]).assign(qid=[i // 30 for i in range(60)])
    rows.to_parquet("rows.parquet")
    tokenizer = AutoTokenizer.from_pretrained("rerank")
    network = AutoModelForSequenceClassification.from_pretrained("rerank").eval()
    inputs = [tokenizer(*pair, return_tensors="pt", truncation=True, max_length=128) for pair in pairs]
    scores = np.array([network(**of_pair).logits.item() for of_pair in inputs])
    noise = np.random.default_rng(1).uniform(-1, 1, (60, 1)) * scores.std() / 12
    answers = {pair: score for pair, score in zip(pairs, scores[:, None] + noise, strict=True)}
    changed = 0
    for group in (range(30), range(30, 60)):  # neighbours in the reference's order that are not in that of the answers
        ranked = sorted(group, key=lambda i: scores[i])
        changed += sum(answers[pairs[i]] >= answers[pairs[j]] for i, j in itertools.pairwise(ranked))
    original = Classifier.predict_share

    def noisy(self, items, batching):
        indices, predictions = original(self, items, batching)
        return indices, replace(predictions, answers=np.array([answers[item] for item in items]))

    monkeypatch.setattr(Classifier, "predict_share", noisy)
    options = ["rerank", "--dataset", "rows.parquet", *CPU, "--no-upload", "--column", "query", "--pair-column", "body"]
    code, out, err = call(export_onnx, *options, "--precision", "fp32", "--group-column", "qid")
    report = json.loads(next((tmp_path / "rerank-onnx").glob("parity*.json")).read_text())
    assert code == 1 and report["verdict"] == NOT_WITHIN, out + err
    assert report["changed"] == report["evidence"]["changed"] == changed > 5


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--pair-column", "none"], ["'none'", "--pair-column"]),
        (["--pair-column", "id"], ["'id'", "--pair-column"]),
        (["--pair-column", "body"], ["'body'", "--column", "--pair-column"]),
        (["--candidate-labels", "labels.txt"], ["labels.txt", "--candidate-labels"]),
        (["--candidate-labels", "./conf/labels"], ["./conf/labels", "--candidate-labels"]),
        (["--candidate-labels", "."], ["--candidate-labels"]),
        (["--truncation", "only_first"], ["--truncation", "--pair-column"]),
        (["--multi-label"], ["--multi-label", "--candidate-labels"]),
        (["--hypothesis-template", "of {}"], ["--hypothesis-template", "--candidate-labels"]),
        (["--candidate-labels", "a,a"], ["--candidate-labels", "'a'"]),
        (["--candidate-labels", "a", "--hypothesis-template", "x"], ["--hypothesis-template"]),
        (["--candidate-labels", "a", "--pair-column", "second"], ["--candidate-labels", "--pair-column"]),
        (["--pair-column", "second", "--task", "classification"], ["--task", "--pair-column"]),
        (["--pair-column", "second", "--long", "windows"], ["--long", "--truncation"]),
        ([], ["--pair-column", "--candidate-labels", "--task classification"]),
    ],
)
def test_wrong_usage_is_one_line_before_anything_is_loaded(options, names, nli, source, call, monkeypatch):
    monkeypatch.setattr("bench.model.model.Model.load_torch", None)
    code, _, err = call(classify_texts, nli, source, "--output", "out", *CPU, *options)
    assert code == 2 and err.count("\n") == 1 and all(name in err for name in names), err
    assert not os.path.exists("out")


def test_classify_takes_pairs_from_any_container(nli, texts, in_this_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame({"first": texts[:4], "second": [texts[4], None, float("nan"), texts[5]]}, index=[7, 5, 3, 1])
    expected = [nli_probabilities(nli, texts[0], texts[4]), nli_probabilities(nli, texts[3], texts[5])]
    rows = table.to_numpy()
    for given in (
        rows,
        list(rows),
        rows.tolist(),
        list(table.itertuples(index=False)),
        pd.Series(list(rows), table.index),
    ):
        found = classify_texts.classify(nli, given, device="cpu")
        assert found.to_numpy()[[0, 3]] == pytest.approx(np.array(expected), abs=1e-5)
        assert found.isna().all(axis=1).tolist() == [False, True, True, False]
    assert list(found.index) == [7, 5, 3, 1] and list(found.columns) == [*NAMES.values()]


@pytest.mark.parametrize(
    ("missing", "options"),
    [
        ([], {}),
        ([None, float("nan"), pd.NA], {}),
        ([("a", None), ("", "a")], {}),
        ([None], {"truncation": "only_first"}),
        ([None], {"candidate_labels": [*NAMES.values()]}),
    ],
)
def test_classify_without_a_usable_text_has_rows_of_nan(missing, options, nli, in_this_process):
    found = classify_texts.classify(nli, missing, device="cpu", **options)
    assert list(found.columns) == [*NAMES.values()] and len(found) == len(missing) and found.isna().all(axis=None)


@pytest.mark.parametrize(
    ("given", "options", "name"),
    [
        (pd.DataFrame({"first": ["a"], "second": ["b"]}), {}, "DataFrame"),
        ({"a": "b"}, {}, "dict"),
        (b"a", {}, "bytes"),
        (None, {}, "NoneType"),
        ([b"a"], {}, "b'a'"),
        ([{"text": "a", "text_pair": "b"}], {}, "text_pair"),
        ([("a", 5)], {}, "5"),
        ([("a", "b"), "a", ("", "")], {}, "pairs"),
        ([("a", ""), "a"], {}, "pairs"),
        ([("a", "b")], {"device": "cuda"}, "cuda"),
        ([("a", "b")], {"truncation": "only_second"}, "only_second"),
        ([("a", "b")], {"pair_column": "x"}, "pair_column"),
        (["a"], {"task": "pairs"}, "pairs"),
        (["a"], {"task": "nli"}, "nli"),
        (["a"], {"candidate_labels": ["a", "b"], "multi_label": "false"}, "false"),
        (["a"], {"candidate_labels": ["a", None]}, "--candidate-labels"),
    ],
)
def test_classify_refuses_what_it_would_misread(given, options, name, nli):
    with pytest.raises(UserError) as caught:
        classify_texts.classify(nli, given, **options)
    assert name in str(caught.value)


PYTHON = """
import os, subprocess, sys, warnings
from multiprocessing import active_children
before = dict(os.environ)
from classify_texts import classify
model, first, second = sys.argv[1:]
print(classify(model, [first, None, second], candidate_labels=["if", "a"], device="cpu").to_json())
print(classify(model, [(first, second), (first, "")], device="cpu").to_json())
assert before == dict(os.environ) and not active_children()
assert not open(f"/proc/self/task/{os.getpid()}/children").read(), "a process is left"
for texts in (first, [first, (first, second)], [(first, second, first)]):
    try:
        classify(model, texts, device="cpu")
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_classify_from_python(nli, texts, tmp_path):
    """In a script without `if __name__ == "__main__"`, which starts no second copy of itself."""
    (tmp_path / "script.py").write_text(PYTHON)
    command = [sys.executable, "script.py", nli, texts[0], texts[1]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    zero_shot, pairs, *refusals = done.stdout.splitlines()
    zero_shot, pairs = (pd.DataFrame(json.loads(frame)) for frame in (zero_shot, pairs))
    assert list(zero_shot.columns) == ["if", "a"] and zero_shot["if"].isna().tolist() == [False, True, False]
    assert zero_shot.loc["0"].sum() == pytest.approx(1)
    assert pairs.loc["0"].to_numpy(float) == pytest.approx(nli_probabilities(nli, *texts[:2]), abs=1e-5)
    assert pairs.loc["1"].isna().all() and len(refusals) == 3
    assert all("UserError" in refusal for refusal in refusals)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py"]
