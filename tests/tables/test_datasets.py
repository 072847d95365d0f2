"""Datasets: their texts, and files that are refused."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st
from tiny import STRANGE

from bench.tables import datasets
from bench.tables.datasets import DATASETS, Dataset, evenly_spaced, load_dataset


def test_a_dataset_is_named_after_the_file_used(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    for file in DATASETS["normal"]:
        pd.DataFrame({"body": [file]}).to_csv(tmp_path / "data" / file)
    assert load_dataset("normal") == Dataset("normal", ["random_sample_10k.csv.gz"], [], ["random_sample_10k.csv.gz"])
    (tmp_path / "data" / "random_sample_10k.csv.gz").unlink()
    synthetic = load_dataset("normal")
    assert (synthetic.name, synthetic.texts) == ("synthetic-normal", ["synthetic_10k.csv.gz"])
    assert "data/random_sample_10k.csv.gz" in synthetic.notes[0]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_texts_are_read_verbatim(tmp_path, suffix):
    texts = ['with "quotes", and\na line', "😀 emoji", "NA", "null", " spaces "]
    path = tmp_path / f"my_sample{suffix}"
    table = pd.DataFrame({"body": [*texts, "", "  "]})
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path)
    dataset = load_dataset(str(path))
    assert dataset.texts == texts
    assert dataset.name == f"my_sample{suffix}"
    assert "2 of 7 rows" in dataset.notes[0]
    assert dataset.limited(2).texts == [texts[0], texts[2]]


def test_several_columns_make_an_item_and_another_has_its_group(tmp_path):
    lines = [{"a": f"a{i}", "b": f"b{i}", "c": "" if i == 2 else "c", "n": None if i == 1 else i} for i in range(4)]
    path = tmp_path / "my.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    dataset = load_dataset(str(path), ["a", "b", "c"])
    assert dataset.texts == [(f"a{i}", f"b{i}", "c") for i in (0, 1, 3)] and not dataset.groups
    grouped = load_dataset(str(path), ["a", "b"], group_column="n", label_column="c")
    assert grouped.texts == [("a0", "b0"), ("a2", "b2"), ("a3", "b3")]
    assert (grouped.groups, grouped.gold) == (["0", "2", "3"], ["c", "", "c"])
    assert "'n'" in refused(load_dataset, str(path), ["a", "b", "n"]), "a third column that is not text"


PACKED = gzip.compress(b"id,body\n" + b"".join(b"%d,word %d\n" % (i, i * 7919) for i in range(9999)), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.csv", b"", ""),
        ("a.csv", b"id,body", "'body'"),
        ("a.csv", b'id,body\n1," \t"\n2,"\n\n"\n3,\xc2\xa0\n', "'body'"),
        ("a.csv", b"id;body\n1;x\n", "--column, id;body, --delimiter ';'"),
        ("a.csv", b"id,Body \n1,x\n", "'body', --column, 'Body '"),
        ("a.csv", b"body\ncaf\xe9\n", "line 2, 0xe9, UTF-8, --encoding"),
        ("a.csv", b"body\n\xed\xa0\xbd half a pair\n", "line 2, 0xed"),
        ("a.csv", "body\nx\n".encode("utf-16-le"), "'body'"),
        ("a.csv", b'body\n"never closed\nx\n', "line 3, quote"),
        ("a.csv", b"id,body\n1,fine\n2,a comma, not quoted\n", "line 3, 3 fields"),
        ("a.csv", b"id,body\n1,always,one\n2,field,more\n", "line 2, 3 fields"),
        ("a.csv", PACKED, ""),
        ("a.csv.gz", b"body\nnot packed\n", ""),
        ("a.csv.gz", PACKED[:5], ""),
        ("a.csv.gz", PACKED[: len(PACKED) // 2], ""),
        ("a.csv.gz", PACKED[:3000] + b"\0\1\2\3" + PACKED[3004:], ""),
        ("a.csv.gz", PACKED[:-8] + bytes(4) + PACKED[-4:], ""),
        ("a.csv.gz", PACKED + b"something", ""),
        ("a.csv.xz", PACKED, ".csv, .jsonl, .parquet"),
        ("a.csv", b"body,id,body\nx,1,y\n", "2 columns, 'body'"),
        ("a.csv", b"body\none\rtwo\n", "line 2, carriage return"),
        ("a.csv", b"body\rone\rtwo", "line 1, carriage return"),
        ("a.csv", b'body\n"one"two\n', "line 2"),
        ("A.CSV.GZ", b"body\nnot packed\n", ""),
        ("a.PARQUET", b"body\none\n", ""),
        ("a.parquet", b"", ""),
        ("a.parquet", b"PAR1" + bytes(20) + b"PAR1", ""),
    ],
)
def test_a_bad_file_is_refused_in_one_line(name, content, named, tmp_path):
    (tmp_path / name).write_bytes(content)
    message = refused(load_dataset, str(tmp_path / name))
    assert all(part in message for part in [name, *named.split(", ")]), message


def test_parquet_without_valid_text_is_refused_in_one_line(tmp_path):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    for values in ([1, 2], [b"a"], [["a"]], [None]):
        pd.DataFrame({"body": values}).to_parquet(file)
        assert "column 'body'" in (message := refused(load_dataset, str(file))) and "--column" in message
    offsets, content = pyarrow.py_buffer(struct.pack("<iii", 0, 2, 6)), pyarrow.py_buffer(b"ab\xff\xfecd")
    parquet.write_table(pyarrow.table({"body": pyarrow.StringArray.from_buffers(2, offsets, content)}), file)
    assert "a.parquet" in (message := refused(load_dataset, str(file))) and "line 2" in message


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> Path:
    """A dataset of strange texts and of rows without text."""
    file = tmp_path_factory.mktemp("strange") / "strange.csv.gz"
    pd.DataFrame({"body": [*STRANGE, None, "", " \n\t "]}).to_csv(file, index=False, quoting=1)
    return file


def test_strange_texts_are_read_verbatim(strange):
    dataset = load_dataset(str(strange))
    assert dataset.texts == STRANGE
    assert len(dataset.notes) == 1 and "strange.csv.gz" in dataset.notes[0] and "3 of 11 rows" in dataset.notes[0]


@given(st.integers(1, 10**6), st.integers(1, 2000))
def test_evenly_spaced_indices_are_distinct_and_evenly_spaced(total, count):
    indices = evenly_spaced(total, count)
    gaps = np.diff([*indices, total])
    assert len(indices) == min(count, total) and indices[0] == 0
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
