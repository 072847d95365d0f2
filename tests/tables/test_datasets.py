"""Datasets: what comes back, and what is refused."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st
from tiny import STRANGE

from bench.tables import datasets as room
from bench.tables.datasets import DATASETS, Dataset, evenly_spaced, load_dataset


def test_dataset_says_what_it_really_is(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    for file in DATASETS["normal"]:
        pd.DataFrame({"body": [file]}).to_csv(tmp_path / "data" / file)
    assert load_dataset("normal") == Dataset("normal", ["random_sample_10k.csv.gz"], [], ["random_sample_10k.csv.gz"])
    (tmp_path / "data" / "random_sample_10k.csv.gz").unlink()
    synthetic = load_dataset("normal")
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
    dataset = load_dataset(str(path))
    assert dataset.texts == texts
    assert dataset.name == f"my_sample{suffix}"
    assert "2 of 7 rows have no text" in dataset.notes[0]
    assert load_dataset(str(path), limit=2).texts == [texts[0], texts[2]]


PACKED = gzip.compress(b"id,body\n" + b"".join(b"%d,word %d\n" % (i, i * 7919) for i in range(9999)), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty: it has no columns"),
        ("a.csv", b"id,body", "has no text in column 'body'"),
        ("a.csv", b'id,body\n1," \t"\n2,"\n\n"\n3,\xc2\xa0\n', "has no text in column 'body'"),
        ("a.csv", b"id;body\n1;x\n", "its columns: id;body. --delimiter ';' may tell them apart"),
        (
            "a.csv",
            b"id,Body \n1,x\n",
            "has no column 'body' (--column names another); its columns: id, Body . Did you mean",
        ),
        ("a.csv", b"body\ncaf\xe9\n", "can't be read: line 2: the byte 0xe9, which is no UTF-8"),
        ("a.csv", b"body\n\xed\xa0\xbd half a pair\n", "can't be read: line 2: the byte 0xed"),
        ("a.csv", "body\nx\n".encode("utf-16"), "can't be read: line 1: the byte 0xff"),
        ("a.csv", b'body\n"never closed\nx\n', "can't be read"),
        ("a.csv", b"id,body\n1,fine\n2,a comma, not quoted\n", "can't be read: line 3: 3 fields, the header has 2"),
        ("a.csv", b"id,body\n1,always,one\n2,field,more\n", "can't be read: line 2: 3 fields, the header has 2"),
        ("a.csv", PACKED, "can't be read"),
        ("a.csv.gz", b"body\nnot packed\n", "can't be read"),
        ("a.csv.gz", PACKED[:5], "can't be read"),
        ("a.csv.gz", PACKED[: len(PACKED) // 2], "can't be read"),
        ("a.csv.gz", PACKED[:3000] + b"\0\1\2\3" + PACKED[3004:], "can't be read"),
        ("a.csv.gz", PACKED[:-8] + bytes(4) + PACKED[-4:], "can't be read"),
        ("a.csv.gz", PACKED + b"something", "can't be read"),
        ("a.csv.xz", PACKED, "can't be read: what can is CSV or TSV (.csv, .tsv), JSON Lines"),
        ("a.csv", b"body,id,body\nx,1,y\n", "has 2 columns 'body'; its columns: body, id, body"),
        ("a.csv", b"body\none\rtwo\n", "can't be read: line 2: a carriage return alone, outside quotes"),
        ("a.csv", b"body\rone\rtwo", "can't be read: line 1: a carriage return alone, outside quotes"),
        ("a.csv", b'body\n"one"two\n', "can't be read: line 2: ',' expected after '\"'"),
        ("A.CSV.GZ", b"body\nnot packed\n", "can't be read"),
        ("a.PARQUET", b"body\none\n", "can't be read"),
        ("a.parquet", b"", "is empty: it has no columns"),
        ("a.parquet", b"PAR1" + bytes(20) + b"PAR1", "can't be read"),
    ],
)
def test_a_bad_file_is_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert message in refused(load_dataset, str(tmp_path / name))


def test_a_parquet_file_without_text_or_with_broken_text_is_one_line(tmp_path):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    for values, message in (([1, 2], "not text"), ([b"a"], "not text"), ([["a"]], "not text"), ([None], "no text")):
        pd.DataFrame({"body": values}).to_parquet(file)
        assert message in refused(load_dataset, str(file))
    offsets, content = pyarrow.py_buffer(struct.pack("<iii", 0, 2, 6)), pyarrow.py_buffer(b"ab\xff\xfecd")
    parquet.write_table(pyarrow.table({"body": pyarrow.StringArray.from_buffers(2, offsets, content)}), file)
    assert "can't be read" in refused(load_dataset, str(file))


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> Path:
    """A dataset of strange texts, and of rows that have none."""
    file = tmp_path_factory.mktemp("strange") / "strange.csv.gz"
    pd.DataFrame({"body": [*STRANGE, None, "", " \n\t "]}).to_csv(file, index=False, quoting=1)
    return file


def test_strange_texts_come_back_as_they_were_written(strange):
    dataset = load_dataset(str(strange))
    assert dataset.texts == STRANGE
    assert dataset.notes == ["dataset strange.csv.gz: 3 of 11 rows have no text and are left out"]


@given(st.integers(1, 10**6), st.integers(1, 2000))
def test_evenly_spaced_indices_are_distinct_and_evenly_spaced(total, count):
    indices = evenly_spaced(total, count)
    gaps = np.diff([*indices, total])
    assert len(indices) == min(count, total) and indices[0] == 0
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
