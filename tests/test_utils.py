"""Datasets, token ids, batches, shards, parity and result rows."""

import csv
import gzip
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import utils
from utils import UserError

LENGTHS = np.random.default_rng(0).integers(3, 513, size=1001)


@pytest.mark.parametrize("order", utils.ORDERS)
@pytest.mark.parametrize("size", [1, 7, 32, 5000])
def test_batches_keep_every_text_and_its_order_can_be_restored(order, size):
    batches = utils.make_batches(LENGTHS, size, order)
    restored = np.zeros_like(LENGTHS)
    for batch in batches:
        restored[batch] = LENGTHS[batch]
    assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    assert (restored == LENGTHS).all()
    if order != "tokens":  # of which test_properties says more
        assert all(len(batch) == size for batch in batches[:-1]) and len(batches[-1]) <= size


def test_length_order_is_sorted_and_dataset_order_is_not_touched():
    assert (np.diff(LENGTHS[np.concatenate(utils.make_batches(LENGTHS, 8, "length"))]) >= 0).all()
    assert (np.concatenate(utils.make_batches(LENGTHS, 8, "dataset")) == np.arange(len(LENGTHS))).all()


@pytest.mark.parametrize("order", utils.ORDERS)
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_shards_lose_nothing_and_are_balanced(order, workers):
    batches = utils.make_batches(LENGTHS, 8, order)
    shards = utils.deal_shards(LENGTHS, batches, workers)
    dealt = [batch.tobytes() for shard in shards for batch in shard]
    loads = [sum(utils.padded_tokens(LENGTHS, batch) for batch in shard) for shard in shards]
    assert len(shards) == workers
    assert sorted(dealt) == sorted(batch.tobytes() for batch in batches)
    assert max(loads) / (sum(loads) / workers) < 1.02


def test_more_workers_than_batches_leaves_some_without_work():
    shards = utils.deal_shards(LENGTHS[:3], utils.make_batches(LENGTHS[:3], 2, "length"), 5)
    assert sorted(map(len, shards)) == [0, 0, 0, 1, 1]


def test_pad_batch_pads_on_the_right_with_a_mask():
    input_ids, mask = utils.pad_batch([[8], [5, 6, 7]], pad_id=1)
    assert input_ids.tolist() == [[8, 1, 1], [5, 6, 7]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert input_ids.dtype == mask.dtype == np.int64


def test_evenly_spaced_is_distinct_and_covers_the_range():
    assert utils.evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert utils.evenly_spaced(3, 10).tolist() == [0, 1, 2]


def test_probabilities_by_problem_type():
    logits = np.array([[0.0, np.log(3)]])
    assert utils.probabilities(logits, "multi_label_classification") == pytest.approx(np.array([[0.5, 0.75]]))
    assert utils.probabilities(logits, "single_label_classification") == pytest.approx(np.array([[0.25, 0.75]]))
    assert (utils.probabilities(logits, "regression") == logits).all()
    huge = utils.probabilities(np.array([[1e4, -1e4]], dtype=np.float32), "single_label_classification")
    assert huge.tolist() == [[1, 0]]
    infinite = np.array([[np.inf, -np.inf, 0]], dtype=np.float16)
    assert np.isnan(utils.probabilities(infinite, "multi_label_classification")).tolist() == [[True, True, False]]


def test_flips_counts_changed_decisions():
    reference = np.array([[0.4, 0.6], [0.1, 0.9]])
    assert utils.flips(reference, reference, "multi_label_classification") == 0
    one_label = np.array([[0.51, 0.6], [0.1, 0.9]])
    assert utils.flips(one_label, reference, "multi_label_classification") == 1 / 4
    assert utils.flips(one_label, reference, "single_label_classification") == 0
    assert utils.flips(reference[:, ::-1], reference, "single_label_classification") == 1
    assert utils.flips(np.array([[np.nan, 0.6], [0.1, 0.9]]), reference, "multi_label_classification") == 1 / 4
    moved = reference + np.array([0, 0.02])  # the second label's standard deviation is 0.15
    assert utils.flips(moved, reference, "regression") == 1 / 2


@pytest.mark.parametrize(
    ("declared", "labels", "resolved"),
    [
        (None, 1, "regression"),
        (None, 3, "single_label_classification"),
        ("multi_label_classification", 3, "multi_label_classification"),
    ],
)
def test_problem_type_of_none_is_resolved_from_the_labels(declared, labels, resolved):
    assert utils.problem_type(SimpleNamespace(problem_type=declared, num_labels=labels)) == resolved


def test_token_limit_is_the_models_and_at_most_512():
    tokenizer = SimpleNamespace(model_max_length=10**30)
    roberta = SimpleNamespace(model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    assert utils.token_limit(roberta, tokenizer) == 512
    assert utils.token_limit(SimpleNamespace(model_type="bert", max_position_embeddings=128), tokenizer) == 128
    assert utils.token_limit(SimpleNamespace(model_type="t5"), SimpleNamespace(model_max_length=64)) == 64


# ---------------------------------------------------------------------------------------------------------- datasets


def test_dataset_says_what_it_really_is(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    for file in utils.DATASETS["normal"]:
        pd.DataFrame({"body": [file]}).to_csv(tmp_path / "data" / file)
    assert utils.load_dataset("normal") == utils.Dataset("normal", ["random_sample_10k.csv.gz"], [])
    (tmp_path / "data" / "random_sample_10k.csv.gz").unlink()
    synthetic = utils.load_dataset("normal")
    assert (synthetic.name, synthetic.texts) == ("synthetic-normal", ["synthetic_10k.csv.gz"])
    assert "not there" in synthetic.notes[0]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_texts_come_back_as_they_were_written(tmp_path, suffix):
    texts = ['with "quotes", and\na line', "😀 emoji", "NA", "null", " spaces "]
    path = tmp_path / f"my_sample{suffix}"
    table = pd.DataFrame({"body": [*texts, "", "  "]})
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path)
    dataset = utils.load_dataset(str(path))
    assert dataset.texts == texts
    assert dataset.name == "my-sample"
    assert "2 of 7 rows have no text" in dataset.notes[0]
    assert utils.load_dataset(str(path), limit=2).texts == [texts[0], texts[2]]


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        (b"", "body", "can't be read"),
        (b"id,body\n", "body", "no text"),
        (b"id,body\n1,\n", "body", "no text"),
        (b"id,text\n1,a\n", "body", "no column 'body'; its columns: id, text"),
        (b"body\n\xff\xfe\n", "body", "can't be read"),
        (gzip.compress(b"body\n" + b"word\n" * 9999, mtime=0)[:-20], "body", "can't be read"),
        (b"not gzip", "body", "can't be read"),
        (b"PAR1 not parquet", "body", "can't be read"),
    ],
)
def test_a_bad_dataset_is_one_line(tmp_path, content, column, message):
    suffix = ".parquet" if b"parquet" in content else ".csv.gz" if b"gzip" in content or b"\x1f" in content else ".csv"
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        utils.load_dataset(str(path), column)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- result rows


def make_row(**values) -> dict:
    row = dict.fromkeys(utils.COLUMNS, "x") | {"model": "org/name", "workers": 1, "size": 8, "order": "length"}
    return row | {"variant": "onnx", "device": "NVIDIA-H200", "dataset": "normal"} | values


def test_rows_of_a_model_are_in_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [
        utils.results_path(Path("results"), make_row(model=model)).parent for model in ("ann/tiny", "./tiny/", ".")
    ]
    assert folders == [Path("results/tiny"), Path("results/tiny"), Path("results") / utils.slug(tmp_path.name)]


def test_a_row_replaces_its_cell_and_keeps_the_others(tmp_path):
    path = utils.results_path(tmp_path, make_row())
    assert path == tmp_path / "name" / "NVIDIA-H200_onnx_normal.tsv"
    utils.save_row(path, make_row(status="ok"))
    utils.save_row(path, make_row(size=16))
    utils.save_row(path, make_row(status='died\tof "quotes"\nand lines'))
    rows = utils.read_rows(path)
    assert [(row["size"], row["status"]) for row in rows] == [("16", "x"), ("8", 'died\tof "quotes"\nand lines')]
    assert sorted(path.parent.iterdir()) == [path.parent / ".lock", path]
    with path.open() as file:
        assert next(csv.reader(file, delimiter="\t")) == list(utils.COLUMNS)


def test_a_failed_save_keeps_what_was_there(tmp_path, monkeypatch):
    path = utils.results_path(tmp_path, make_row())
    utils.save_row(path, make_row())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(utils.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        utils.save_row(path, make_row(size=16))
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path.parent / ".lock", path]


DAMAGES = {
    "cut in a row": lambda text: text[:-40],
    "cut in the date": lambda text: text[:-9],
    "cut to nothing": lambda text: b"",
    "another table": lambda text: b"size\tmessages/s\n1\t2\n",
    "a column too many": lambda text: text.replace(b"abc", b"a\tbc"),
    "an open quote": lambda text: text.replace(b"580.1", b'"580.1'),
    "not text": lambda text: text.replace(b"580.1", b"\xff\xfe"),
    "a huge field": lambda text: text.replace(b"580.1", b"5" * 200_000),
    "a column twice": lambda text: text.replace(b"driver", b"torch"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_results_file_nothing_is_lost(tmp_path, capsys, damage):
    """It is refused before anything is measured; in the middle of a run it is moved aside, its whole rows stay."""
    path = utils.results_path(tmp_path, make_row())
    utils.save_row(path, make_row(size=4))
    utils.save_row(path, make_row(driver="580.1", commit="abc", date="2026-11-22T16:25:00Z"))
    damaged = DAMAGES[damage](path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged, or not a results file of this version; move it away"):
        utils.read_rows(path)
    utils.save_row(path, make_row(size=16))
    sizes = [row["size"] for row in utils.read_rows(path)]
    whole = {"cut in the date": ["4", "8"], "cut to nothing": [], "another table": [], "a column twice": []}
    assert sizes == [*whole.get(damage, ["4"]), "16"]
    aside = path.with_name(f"{path.name}.damaged")
    assert aside.read_bytes() == damaged
    assert f"{path} is damaged: {len(sizes) - 1} whole rows stay in it" in capsys.readouterr().err
    path.write_bytes(b"again")
    utils.save_row(path, make_row())
    assert aside.read_bytes() == damaged
    assert path.with_name(f"{path.name}.damaged-2").read_bytes() == b"again"


def test_rows_of_older_files_are_read_and_kept(tmp_path):
    """Without the columns that came later, as a spreadsheet saves them: with a byte order mark and CRLF."""
    path = tmp_path / "older.tsv"
    older = [name for name in utils.COLUMNS if name not in ("load", "throttled")]
    row = make_row(size=4)
    lines = ["\t".join(older), "\t".join(str(row[name]) for name in older), ""]
    path.write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    [read] = utils.read_rows(path)
    assert (read["size"], read["load"], read["throttled"]) == ("4", "", "")
    utils.save_row(path, make_row(size=8, load="0.1"))
    assert [(row["size"], row["load"]) for row in utils.read_rows(path)] == [("4", ""), ("8", "0.1")]


def test_results_that_can_not_be_read_are_one_line(tmp_path):
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        utils.read_rows(tmp_path)


def save_sizes(path: Path, sizes: range) -> None:
    for size in sizes:
        utils.save_row(path, make_row(size=size))


def test_two_sweeps_into_one_file_lose_no_row(tmp_path):
    path = tmp_path / "results.tsv"
    processes = [get_context("spawn").Process(target=save_sizes, args=(path, range(i, 100, 2))) for i in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(int(row["size"]) for row in utils.read_rows(path)) == list(range(100))


def test_a_lock_that_is_never_given_back_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "LOCK_TIMEOUT", 0.1)
    with utils.locked(tmp_path / ".lock"), pytest.raises(TimeoutError, match="another process keeps"):
        utils.save_row(tmp_path / "results.tsv", make_row())
    utils.save_row(tmp_path / "results.tsv", make_row())


def test_a_file_system_without_locks_is_saved_to(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(utils.fcntl, "flock", flock)
    utils.save_row(tmp_path / "results.tsv", make_row())
    assert len(utils.read_rows(tmp_path / "results.tsv")) == 1


def test_a_status_that_is_not_text_is_saved(tmp_path):
    utils.save_row(tmp_path / "results.tsv", make_row(status="no file \udcff"))
    assert utils.read_rows(tmp_path / "results.tsv")[0]["status"] == "no file ?"


def test_useful_flops_of_roberta_base():
    """12 layers of 768 and 3,072: 12 x (8 x 768² + 4 x 768 x 3072) a token, and 12 x 4 x 768 x L at length L."""
    config = SimpleNamespace(model_type="roberta", hidden_size=768, num_hidden_layers=12, intermediate_size=3072)
    a_token = 2 * 84_934_656
    assert utils.useful_flops(config, np.array([1])) == a_token + 36_864
    assert utils.useful_flops(config, np.array([10, 512])) == 522 * a_token + 36_864 * (100 + 512**2)
    distilled = SimpleNamespace(model_type="distilbert", hidden_size=768, num_hidden_layers=6, hidden_dim=3072)
    assert utils.useful_flops(distilled, np.array([1])) == (a_token + 36_864) / 2
    assert np.isnan(utils.useful_flops(SimpleNamespace(model_type="modernbert"), np.array([1])))


def test_the_work_of_the_layers_is_what_torch_counts(tiny_model):
    """torch's own counter over one text: the layers' products, the pooling head and the logits."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.full((1, 20), 7))
    config = model.config
    head = 2 * config.hidden_size * (config.hidden_size + config.num_labels)
    assert counter.get_total_flops() == utils.useful_flops(config, np.array([20])) + head
