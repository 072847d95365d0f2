"""data/download.py with small generated files and a local server, and statistics of the bundled texts."""

import gzip
import hashlib
import os
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import download
import numpy as np
import pytest
from conftest import ROOT

from bench.model.batches import Batching, make_batches, padded_tokens
from bench.model.random_model import train_tokenizer
from bench.tables.datasets import DATASETS, bundled_texts


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    """A folder with two small files instead of the published ones; their SHA-256 sums are expected."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, (file, _) in DATASETS.items():
        (folder / file).write_bytes(gzip.compress(f"id,subreddit,body\na,b,{name}\n".encode()))
        monkeypatch.setitem(download.SHA256, name, hashlib.sha256((folder / file).read_bytes()).hexdigest())
    return folder


@pytest.fixture
def server(mirror):
    """(Address of the mirror, list of the requested paths)."""
    requested = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=mirror)

        def log_request(self, *_):
            requested.append(self.path)

        def log_error(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", requested
        http.shutdown()
        thread.join()


def test_every_dataset_has_a_sha256():
    assert download.SHA256.keys() == DATASETS.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in download.SHA256.values())
    assert download.locate("random_sample_10k.csv.gz", download.PUBLISHED).endswith("/data/random_sample_10k.csv.gz")


def test_files_are_downloaded_only_once(server, mirror, tmp_path, call):
    address, requested = server
    target = tmp_path / "data"
    for _ in range(2):
        code, _, err = call(download, "--from", address + "/", "--output-dir", target)
        assert code == 0, err
    assert requested == [f"/{file}" for file, _ in DATASETS.values()]
    for file, _ in DATASETS.values():
        assert (target / file).read_bytes() == (mirror / file).read_bytes()
        assert (target / file).stat().st_mode & 0o777 == 0o644
    assert len(os.listdir(target)) == 2


def test_a_damaged_file_is_replaced(mirror, tmp_path, call):
    target = tmp_path / "random_sample_10k.csv.gz"
    target.write_bytes(b"half a file")
    source = mirror / target.name
    assert call(download, "normal", "--from", source.rename(mirror / "copy.gz"), "--output-dir", tmp_path)[0] == 0
    assert target.read_bytes() == (mirror / "copy.gz").read_bytes()


@pytest.mark.parametrize("origin", ["PATH", "URL"])
def test_a_file_that_is_not_the_published_one_is_refused(server, mirror, tmp_path, call, origin):
    (mirror / "random_sample_10k.csv.gz").write_bytes(b"<html>")
    target = tmp_path / "data" / "random_sample_10k.csv.gz"
    target.parent.mkdir()
    target.write_bytes(b"mine")
    code, _, err = call(download, "--from", {"PATH": mirror, "URL": server[0]}[origin], "--output-dir", target.parent)
    assert code == 1 and target.name in err.splitlines()[-1]
    assert os.listdir(target.parent) == [target.name] and target.read_bytes() == b"mine"


@pytest.mark.parametrize("origin", ["http://127.0.0.1:1", "http://[", "https://", "MISSING"])
def test_an_unreachable_address_is_one_line(server, tmp_path, call, origin):
    origin = origin.replace("MISSING", f"{server[0]}/missing")
    code, _, err = call(download, "--from", origin, "--output-dir", tmp_path / "data")
    assert code == 1 and err.splitlines()[-1].startswith("download.py: http") and "Traceback" not in err
    assert os.listdir(tmp_path / "data") == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--from", "/nowhere"], ["--from", "/nowhere"]),
        (["--from", __file__], ["--from", "normal", "filtered"]),
        (["other"], ["argument dataset", "'other'", "normal", "filtered", "all"]),
    ],
)
def test_wrong_usage_of_download_is_one_line(tmp_path, call, arguments, named):
    code, _, err = call(download, *arguments, "--output-dir", tmp_path)
    assert code == 2 and err.startswith("download.py: ") and err.count("\n") == 1
    assert all(part in err for part in named)


TABLE = [line.strip("| \n").split(" | ") for line in (ROOT / "data" / "README.md").open() if line.startswith("|")]
PERCENTILES = (5, 25, 50, 75, 95, 99)


@pytest.fixture(scope="module")
def token_counts() -> list[np.ndarray]:
    """Tokens of each bundled text, truncated to 512, with the tokenizer described in data/README.md."""
    columns = [bundled_texts(name) for name in DATASETS]
    tokenizer = train_tokenizer([text for column in columns for text in column])
    # a token of this tokenizer never spans a space, so every word has to be encoded only once
    words = list({word for column in columns for text in column for word in text.split(" ")})
    tokens = {word: len(encoding.ids) for word, encoding in zip(words, tokenizer.encode_batch(words), strict=True)}
    assert [len(column) for column in columns] == [10_000, 10_000]
    return [np.minimum([sum(map(tokens.get, text.split(" "))) + 2 for text in column], 512) for column in columns]


@pytest.mark.parametrize("row", ["tokens", "padded / real tokens, `in-order`", "the same, `sorted`"])
def test_bundled_texts_have_the_published_lengths_and_padding(row, token_counts):
    """As stated in data/README.md."""
    [cells] = [cells[1:] for cells in TABLE if cells[0].startswith(row)]
    figures = [[float(figure) for figure in cell.split(",")] for cell in cells]
    for published, written, tokens in zip(figures[::2], figures[1::2], token_counts, strict=True):
        name = "sorted" if "sorted" in row else "in-order"
        batches = [make_batches(tokens, Batching(name, size)) for size in (8, 16, 32, 64, 128)]
        measured = [padded_tokens(tokens, batch).sum() / tokens.sum() for batch in batches]
        measured = [tokens.mean(), *np.percentile(tokens, PERCENTILES)] if row == "tokens" else measured
        assert written == pytest.approx(measured, rel=0.005, abs=0.005)
        assert written == pytest.approx(published, rel=0.05)
