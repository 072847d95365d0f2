"""embed_texts.py: vectors in the input's order, against sentence-transformers' encode."""

import csv
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import refused
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from tiny import make_sentence_model, make_tiny_encoder

import classify_texts
import embed_texts
import export_onnx
import run_benchmark
from bench.judge import WITHIN
from bench.label import receipt
from bench.label.folder import write_rows
from bench.model import resolve
from bench.model.model import Model
from bench.model.reference import Reference
from bench.report.rows import read_results

ASKED = {"prompt_name": "query", "normalize": True}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Runs add to the evidence in results/ of the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory, texts) -> Path:
    folder = tmp_path_factory.mktemp("models")
    encoder, head = make_tiny_encoder(folder / "encoder", texts), [Pooling(32, "mean"), Normalize()]
    return make_sentence_model(folder / "tiny", encoder, head, prompts={"query": "which "})


@pytest.fixture
def comments(tmp_path, texts) -> Path:
    """A CSV file of 40 rows; every seventh has no text, and one text exceeds the model's limit."""
    file = tmp_path / "comments.csv"
    with file.open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["id", "title", "body"])
        rows.writerows([i, f"title {i}", "[removed]" if i % 7 == 3 else text] for i, text in enumerate(texts[:39]))
        rows.writerow([39, "title", " ".join(texts[:30])])
    return file


def read_bodies(comments: Path) -> list[str | None]:
    rows = csv.DictReader(comments.open(newline=""))
    return [None if row["body"] == "[removed]" else row["body"] for row in rows]


def encode(model: Path, texts: list[str], **options) -> np.ndarray:
    library = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    return np.stack([library.encode(text, show_progress_bar=False, **options) for text in texts])


def read_vectors(folder: Path, name: str = "embedding") -> tuple[pa.Table, np.ndarray]:
    """Return the only part, and its vectors without nulls."""
    [part] = folder.glob("part-*")
    table = pq.read_table(part)
    column = table[name].combine_chunks()
    return table, column.flatten().to_numpy().reshape(-1, column.type.list_size)


def test_vectors_equal_those_of_encode_in_the_inputs_order(call, tmp_path, model, comments):
    code, _, err = call(embed_texts, model, comments, "--output", tmp_path / "out", "--token-count")
    assert code == 0, err
    table, vectors = read_vectors(tmp_path / "out")
    bodies = read_bodies(comments)
    assert table.schema.names == ["id", "title", "embedding", "tokens"]
    assert table["id"].to_pylist() == [str(i) for i in range(40)]
    assert table["embedding"].is_null().to_pylist() == [body is None for body in bodies]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    assert np.abs(vectors - encode(model, [body for body in bodies if body])).max() < 1e-5
    written = json.loads((tmp_path / "out/_receipt.json").read_text())
    assert written["verdict"] == WITHIN and written["rows_compared"] == written["texts"] == 34
    assert written["texts_truncated"] > 0 and written["largest_difference"] < 1e-5
    code, _, err = call(embed_texts, model, comments, "--output", tmp_path / "out", "--check-only", "--token-count")
    assert code == 0, err


def test_options_change_the_vectors_as_in_encode(call, tmp_path, model, comments):
    options = "--prompt-name", "query", "--truncate-dim", 5, "--normalize", "--float16", "--prefix", "my_"
    code, _, err = call(embed_texts, model, comments, "--output", tmp_path / "out", *options)
    assert code == 0, err
    table, vectors = read_vectors(tmp_path / "out", "my_embedding")
    assert table.schema.field("my_embedding").type == pa.list_(pa.float16(), 5)
    bodies = [body for body in read_bodies(comments) if body]
    expected = encode(model, bodies, prompt_name="query", truncate_dim=5, normalize_embeddings=True)
    assert np.abs(vectors - expected).max() < 1e-3
    written = json.loads((tmp_path / "out/_receipt.json").read_text())
    assert written["verdict"] == WITHIN and "which " in written["task"] and "mean" in written["task"]
    code, _, err = call(embed_texts, model, comments, "--output", tmp_path / "out", *options[2:])
    assert code == 2 and "--prompt-name" in err, "a run with another prompt does not resume"


def test_several_columns_and_windows(call, tmp_path, model, comments, texts):
    options = "--column", "title,body", "--long", "windows", "--keep-text"
    code, _, err = call(embed_texts, model, comments, "--output", tmp_path / "out", *options)
    assert code == 0, err
    table, vectors = read_vectors(tmp_path / "out")
    assert {"title", "body"} < set(table.schema.names)
    assert np.abs(vectors[0] - encode(model, [f"title 0\n\n{texts[0]}"])[0]).max() < 1e-5
    assert json.loads((tmp_path / "out/_receipt.json").read_text())["verdict"] == WITHIN


def test_a_benchmark_measures_these_vectors(call, monkeypatch, model, comments):
    asked = "--column", "title,body,id", "--prompt", "a ", "--truncate-dim", "5"
    code, _, err = call(embed_texts, model, comments, "--output", "out", "--dry-run", "--device", "cpu", *asked)
    assert code == 0 and not Path("out").exists() and "run_benchmark.py" in err
    opened, open_model = [], resolve.open_model
    monkeypatch.setattr(run_benchmark, "open_model", lambda *a: opened.append(open_model(*a)) or opened[0])
    options = "--variant", "torch", "--quick", "--device", "cpu", "--model-id", model, "--dataset", comments
    code, out, err = call(run_benchmark, *options, "--task", "embedding", *asked, "--dry-run")
    assert code == 0 and out, err
    texts = [f"title 0\n\n{read_bodies(comments)[0]}\n\n0"]
    vectors = Reference.load(opened[0], threads=1).of_items([tuple(texts[0].split("\n\n"))])
    assert np.abs(vectors - encode(model, texts, prompt="a ", truncate_dim=5)).max() < 1e-5


def test_the_pooling_of_a_plain_encoder_is_named_unless_it_is_chosen(call, model, comments):
    command = embed_texts, model.parent / "encoder", comments, "--output", "out", "--dry-run", "--device", "cpu"
    for options in ([], ["--pooling", "mean"]):
        code, _, err = call(*command, *options)
        assert code == 0 and ("modules.json" in err) == (not options), err


def test_wrong_vectors_stop_the_run(call, tmp_path, monkeypatch, model, comments):
    write = receipt.pq.ParquetFile.read
    monkeypatch.setattr(receipt.pq.ParquetFile, "read", lambda *a, **o: write(*a, **o).take(list(range(39, -1, -1))))
    code, _, err = call(embed_texts, model, comments, "--output", tmp_path / "out")
    assert code == 1 and str(tmp_path / "out") in err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--prompt-name", "nothing"], "--prompt-name"),
        (["--truncate-dim", 33], "--truncate-dim"),
        (["--pooling", "cls"], "--pooling"),
        (["--long", "windows", "--prompt", "which "], "--long"),
        (["--column", "nothing"], "nothing"),
        (["--column", "title,body,nothing"], "nothing"),
    ],
)
def test_wrong_usage_is_refused_before_the_start(call, tmp_path, model, comments, options, named):
    code, _, err = call(embed_texts, model, comments, "--output", tmp_path / "out", *options)
    assert code == 2 and named in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_input_with_a_column_of_that_name_needs_a_prefix(call, tmp_path, model, comments):
    comments.write_text(comments.read_text().replace("title", "embedding", 1))
    code, _, err = call(embed_texts, model, comments, "--output", tmp_path / "out")
    assert code == 2 and "embedding" in err and "--prefix" in err


@pytest.mark.needs("optimum")
def test_an_export_alone_gives_the_same_vectors_and_can_be_compared(call, tmp_path, monkeypatch, model, comments):
    monkeypatch.chdir(tmp_path)
    options = "--precision", "fp32", "--no-upload", "--device", "cpu", "--dataset", comments, "--save-dir", "alone"
    code, _, err = call(export_onnx, model, *options)
    report, card = json.loads(Path("alone/parity.json").read_text()), Path("alone/README.md").read_text()
    assert code == 0 and report["labels"] == [] and report["verdict"] == WITHIN, err
    [line] = re.findall("^python swiftsure/(.*)$", card, re.MULTILINE)
    script, folder, file, *options = shlex.split(line)
    assert (script, folder) == ("embed_texts.py", ".")
    Path(file).write_text(comments.read_text().replace("body", "text", 1))
    expected = encode(model, [body for body in read_bodies(comments) if body])
    for original, compared in ([], 0), (["--original", model], len(expected)):
        shutil.rmtree("vectors", ignore_errors=True)
        code, _, err = call(embed_texts, "alone", file, *options, "--device", "cpu", *original)
        assert code == 0, err
        assert np.abs(read_vectors(Path("vectors"))[1] - expected).max() < 1e-5
        assert json.loads(Path("vectors/_receipt.json").read_text())["rows_compared"] == compared
    code, _, err = call(embed_texts, "alone", file, *options, "--variant", "torch")
    assert code == 2 and "torch" in err


def test_a_classifier_script_refuses_an_embedding_model(call, tmp_path, model, comments):
    code, _, err = call(classify_texts, model, comments, "--output", tmp_path / "out")
    assert code == 2 and "embed_texts.py" in err


def test_embed_returns_what_encode_returns(in_this_process, model, texts):
    some = [*texts[:20], " ".join(texts[:30])]
    vectors = embed_texts.embed(str(model), some, device="cpu")
    assert vectors.dtype == np.float32 and np.abs(vectors - encode(model, some)).max() < 1e-5
    asked = embed_texts.embed(model, some, device="cpu", prompt="which ", truncate_dim=4)
    assert np.abs(asked - encode(model, some, prompt="which ", truncate_dim=4)).max() < 1e-5
    with pytest.raises(TypeError, match="truncate"):
        embed_texts.embed(model, some, truncate=4)
    assert "--truncate-dim" in refused(lambda: embed_texts.embed(model, some, device="cpu", truncate_dim=99))


def test_embed_takes_one_text_and_prefers_the_prompt_as_encode_does(in_this_process, model):
    vector = embed_texts.embed(model, "Hello there", device="cpu")
    assert vector.shape == (32,) and np.abs(vector - encode(model, ["Hello there"])[0]).max() < 1e-5
    both = {"prompt": "there ", "prompt_name": "query"}
    vectors = embed_texts.embed(model, np.array(["Hello there"]), device="cpu", **both)
    assert np.abs(vectors - encode(model, ["Hello there"], **both)).max() < 1e-5


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["a", None], "1 is None"),
        ([float("nan")], "nan"),
        ([b"x"], "b'x'"),
        ([3], "3"),
        ([("a", "b")], "('a', 'b')"),
        ({"a": "b"}, "dict"),
        (None, "NoneType"),
        (pd.DataFrame({"a": ["b"]}), "DataFrame"),
    ],
)
def test_embed_refuses_what_is_no_list_of_texts(model, given, name):
    assert name in refused(lambda: embed_texts.embed(model, given, device="cpu"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", "tpu"), ("truncate_dim", "5"), ("truncate_dim", 5.0), ("truncate_dim", True), ("prompt", 5)],
)
def test_embed_refuses_values_of_another_kind(in_this_process, model, name, value):
    options = {"device": "cpu"} | {name: value}
    assert f"--{name.replace('_', '-')}" in refused(lambda: embed_texts.embed(model, ["a text"], **options))


def test_embed_leaves_the_callers_process_as_it_is(model):
    def settings() -> tuple:
        return torch.get_num_threads(), bool(torch.tensor([1e-40]).mul(0.5)[0]), dict(os.environ)

    before = settings()
    assert embed_texts.embed(model, ["one text"], device="cpu").shape == (1, 32) and settings() == before


def test_vectors_that_float16_cannot_hold_are_nulls(call, tmp_path, model, comments):
    dense = Dense(32, 8, activation_function=torch.nn.Identity())
    with torch.no_grad():
        dense.linear.weight *= torch.tensor([1.0] * 7 + [3e5])[:, None]
    folder = make_sentence_model(tmp_path / "large", model, [Pooling(32, "mean"), dense])
    call(embed_texts, folder, comments, "--output", tmp_path / "out", "--float16", "--device", "cpu")
    table, vectors = read_vectors(tmp_path / "out")
    bodies = read_bodies(comments)
    expected = encode(folder, [body or "" for body in bodies])
    fits = (np.abs(expected).max(axis=1) < 65504) & [body is not None for body in bodies]
    assert 0 < fits.sum() < 34 and table["embedding"].is_valid().to_pylist() == fits.tolist()
    assert np.isfinite(vectors).all()


def test_parts_take_no_more_space_than_the_numbers(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 64)
    with (tmp_path / "part.parquet").open("wb") as file:
        write_rows(pa.table({"embedding": column, "id": range(2000)}), file)
    chunk = pq.ParquetFile(tmp_path / "part.parquet").metadata.row_group(0).column(0)
    assert chunk.total_compressed_size < vectors.nbytes and "BYTE_STREAM_SPLIT" in chunk.encodings


def test_the_benchmark_compares_an_embedding_model_with_encode(call, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    options = "--device", "cpu", "--limit", 40, "--batches", 8, "--batching", "sorted", "--min-time", 0
    options += "--prompt-name", "query", "--normalize"
    code, _, err = call(run_benchmark, "--variant", "torch,sentence-transformers", "--model-id", model, *options)
    assert code == 0, err
    rows, _, _ = read_results(sorted(tmp_path.glob("results/*/*.tsv")))
    assert {*rows["variant"]} == {"torch", "sentence-transformers"} and {*rows["status"]} == {"ok"}
    assert (rows["flips"] == 0).all() and (rows["max_diff"] < 1e-5).all() and (rows["decisions"] >= 40).all()
    assert {*rows["threshold"]} == {Model.from_folder(model, "", None, ASKED).task.rule_id} != {""}
    command = err[err.index("python embed_texts.py") :]
    assert "--prompt-name query" in command and "--normalize" in command
