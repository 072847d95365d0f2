"""data/sample_reddit.py with small generated dumps."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from math import inf
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sample_reddit
import zstandard
from conftest import ROOT

from bench.tables import blocks
from bench.tables.datasets import load_dataset
from bench.tables.readers import UnreadableFile
from utils import RunError


def rules(**changes) -> Namespace:
    """Return rules that exclude nothing, except for these changes."""
    every = {"count": 1000, "seed": 0, "subreddit": frozenset(), "after": -inf, "before": inf, "skip_bad": False}
    return Namespace(**every | {"min_chars": 0, "max_chars": inf} | changes)


NOON = 1577880000  # 2020-01-01 12:00:00 UTC


def line(number: int, **fields) -> bytes:
    """Return a comment as in a dump, with some unused fields."""
    comment = {"all_awardings": [{"id": "award", "body": "[deleted]"}], "body": f"the body of {number}"}
    comment |= {"created_utc": NOON, "id": np.base_repr(number, 36).lower(), "score": 1, "subreddit": "AskReddit"}
    return json.dumps(comment | fields).encode()


def write_dump(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(b"\n".join(lines) + b"\n"))
    return path


def sample(path: Path, **changes) -> tuple[dict, list[str]]:
    """Return (non-zero counts, ids drawn)."""
    counts, drawn = sample_reddit.sample_dump(path, rules(**changes))
    return dict(counts), sorted(comment[1] for comment in drawn)


@pytest.fixture(scope="module")
def dumps(tmp_path_factory) -> list[Path]:
    """Three dumps of different lengths; the second and third overlap."""
    folder = tmp_path_factory.mktemp("dumps")
    ranges = (range(30, 430), range(1000, 1900), range(1800, 2400))
    return [
        write_dump(folder / f"RC_2005-{month}.zst", [line(i) for i in ids]) for month, ids in enumerate(ranges, start=1)
    ]


def test_every_comment_is_equally_likely(tmp_path):
    comments, drawn, seeds = 150, 30, 800
    path = write_dump(tmp_path / "dump.zst", [line(i) for i in range(comments)])
    times = dict.fromkeys((np.base_repr(i, 36).lower() for i in range(comments)), 0)
    for seed in range(seeds):
        _, ids = sample(path, count=drawn, seed=seed)
        assert len(set(ids)) == drawn
        for id in ids:
            times[id] += 1
    share = drawn / comments
    # chi-square with comments - 1 degrees of freedom: the variance of a draw without replacement is share (1 - share)
    squares = (np.array(list(times.values())) - seeds * share) ** 2 / (seeds * share * (1 - share))
    degrees = comments - 1
    assert abs(squares.sum() * degrees / comments - degrees) < 3 * np.sqrt(2 * degrees)


def test_pruning_keeps_the_lowest_priorities(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "ZSTD_BLOCK_BYTES", 16)  # many small blocks, lines that span pieces
    path = write_dump(tmp_path / "dump.zst", [line(i) for i in range(5000)])
    counts, everything = sample_reddit.sample_dump(path, rules(count=5000))
    assert counts == {"eligible": 5000}
    for count in (1, 10, 300):
        assert sample_reddit.sample_dump(path, rules(count=count))[1] == everything[:count]


def test_a_seed_gives_the_same_file_for_any_workers_and_any_order(dumps, tmp_path, call):
    files = []
    for workers, order in ((1, dumps), (3, dumps[::-1])):
        files.append(tmp_path / f"{workers}.csv.gz")
        code, _, err = call(
            sample_reddit, *order, "--count", 200, "--seed", 7, "--workers", workers, "--output", files[-1]
        )
        assert code == 0, err
        assert re.search(r"lines +1,900 ", err) and re.search(r"eligible +1,900 ", err)
        assert re.search(r"drawn +200 ", err) and f"{files[-1]}: 200 " in err
    assert files[0].read_bytes() == files[1].read_bytes()
    table = pd.read_csv(files[0], dtype=str)
    assert list(table.columns) == ["id", "subreddit", "body"]
    numbers = table.id.map(lambda id: int(id, 36))
    assert numbers.is_monotonic_increasing and numbers.is_unique and len(numbers) == 200
    assert (table.body == "the body of " + numbers.astype(str)).all()
    _, other = sample(dumps[0], count=200, seed=8)
    assert set(other) != set(sample(dumps[0], count=200, seed=7)[1])


def test_of_repeated_comments_the_same_one_is_always_drawn():
    first, second = (1, "a", "s", "earlier"), (1, "a", "s", "later")
    other = (2, "b", "s", "other")
    assert sample_reddit.lowest([other, second, first], 2) == sample_reddit.lowest([first, other, second], 2)
    assert sample_reddit.lowest([second, other, first], 2) == [first, other]


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"body": ""}, "empty"),
        ({"body": " \n\t\u200a"}, "empty"),
        ({"body": "[deleted]"}, "deleted"),
        ({"body": "[removed]\n"}, "removed"),
        ({"body": "[deleted] it"}, "eligible"),
        ({"body": "null"}, "eligible"),
        ({"body": None}, "other"),
        ({"id": [7]}, "other"),
        ({"created_utc": "1134365188"}, "eligible"),
        ({"created_utc": None}, "eligible"),
        ({"created_utc": []}, "other"),
        ({"body": "\ud83d half an emoji"}, "eligible"),
    ],
)
def test_excluded_comments(tmp_path, fields, verdict):
    counts, ids = sample(write_dump(tmp_path / "dump.zst", [line(1, **fields)]))
    assert counts == {verdict: 1}
    assert ids == (["1"] if verdict == "eligible" else [])


@pytest.mark.parametrize(
    ("changes", "verdict", "kept"),
    [
        ({"subreddit": frozenset({"askreddit"})}, "subreddit", "1235"),
        ({"subreddit": frozenset({"nba", "askreddit"})}, "", "12345"),
        ({"after": NOON}, "date", "145"),
        ({"before": NOON}, "date", "3"),
        ({"min_chars": 5}, "length", "1245"),
        ({"max_chars": 5}, "length", "345"),
    ],
)
def test_filters(tmp_path, changes, verdict, kept):
    lines = [
        line(1, body="123456"),
        line(2, body="123456", created_utc=None),
        line(3, body="1234", created_utc=NOON - 1),
        line(4, body="12345", subreddit="NBA"),
        line(5, body="1234\U0001f602", subreddit="askReddit", created_utc=f"{NOON}"),
    ]
    counts, ids = sample(write_dump(tmp_path / "dump.zst", lines), **changes)
    assert "".join(ids) == kept
    assert counts == {name: n for name, n in (("eligible", len(kept)), (verdict, 5 - len(kept))) if n}


def test_options_become_rules(dumps, tmp_path, monkeypatch, call):
    seen = []

    def sample_all(rules):
        seen.append(vars(rules))
        raise RunError("enough")

    monkeypatch.setattr(sample_reddit, "sample_all", sample_all)
    options = "--count 5 --seed 3 --subreddit r/NBA,/r/Pics --after 2020-01-01 --min-chars 201 --max-chars 300"
    output = ("--output", tmp_path / "sample.csv.gz")
    assert call(sample_reddit, dumps[0], *options.split(), "--skip-bad", *output)[2] == "sample_reddit.py: enough\n"
    call(sample_reddit, dumps[0], "--before", "1970-01-01", "--workers", 3, *output)
    expected = rules(count=5, seed=3, after=NOON - 43200, min_chars=201, max_chars=300, skip_bad=True)
    expected.subreddit = frozenset({"nba", "pics"})
    assert vars(expected).items() <= seen[0].items()
    assert vars(rules(count=10_000, before=0)).items() <= seen[1].items() and seen[1]["workers"] == 3


def test_lines_that_are_not_comments_are_counted_and_skipped(tmp_path):
    broken = [b"{", line(1)[:-1], b"\xff", b"\x00", line(1) + b"}", b"[" * 100_000]
    other = [b"{}", b"7", b"null", b'"text"', b"[]", b"NaN", line(1, subreddit=[]), b'{"id":"1","subreddit":"a"}']
    blank = [b"", b"  ", b"\r"]
    windows = [line(3) + b"\r"]
    mixed = [*broken, *blank, line(2), *other, *windows]
    counts, ids = sample(write_dump(tmp_path / "dump.zst", mixed))
    assert counts == {"broken": len(broken), "other": len(other), "eligible": 2}
    assert ids == ["2", "3"]


def test_bodies_are_verbatim(tmp_path, call):
    bodies = [
        'a "quoted", text',
        "two\nlines\r\nand\rmore",
        "\r",
        "nul\0in",
        "NA",
        " edges ",
        "\u2028\x0b",
        "=1+1",
        "\\",
    ]
    bodies += ["\U0001f602 é", "'", "#", "\ufeff", "&gt; as it stands", '"']
    bodies = [body for body in bodies if body.strip()]
    lines = [line(i, body=body) for i, body in enumerate(bodies, start=30)]  # "u" ... "z", "10", ...
    lines.append(line(100, body="half \ud83d of \U0001f602"))
    output = tmp_path / "new" / "sample.csv.gz"
    code, _, err = call(sample_reddit, write_dump(tmp_path / "dump.zst", lines), "--output", output)
    assert code == 0 and "--count 10000" in err
    assert load_dataset(str(output)).texts == [*bodies, "half \ufffd of \U0001f602"]
    assert os.listdir(output.parent) == ["sample.csv.gz"]


def test_windows_of_up_to_2_gib_are_read(tmp_path):
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    frame = bytearray(compressor.compress(line(1)) + compressor.flush())
    path = tmp_path / "dump.zst"
    frame[5] = (31 - 10) << 3  # the header's window descriptor, RFC 8878, 3.1.1.1.2
    assert zstandard.get_frame_parameters(bytes(frame)).window_size == 2**31
    path.write_bytes(frame)
    assert sample(path) == ({"eligible": 1}, ["1"])
    frame[5] = (32 - 10) << 3
    path.write_bytes(frame)
    with pytest.raises(UnreadableFile, match=r"dump\.zst"):
        sample(path)


def test_several_frames_and_a_missing_last_line_break(tmp_path):
    text = b"\n".join(line(i) for i in range(20))
    cuts = [text[:5], text[5:5], text[5:900], text[900:]]
    frames = [zstandard.ZstdCompressor().compress(cut) for cut in cuts]
    skippable = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    path = tmp_path / "dump.zst"
    path.write_bytes(skippable.join(frames))
    assert sample(path)[0] == {"eligible": 20}


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[:-1],
        lambda good: good[:5],
        lambda good: good + good[:-9],
        lambda good: good[:300] + bytes([good[300] ^ 255]) + good[301:],
        lambda good: good + b"something",
        lambda good: b"id,subreddit,body",
        lambda good: b"",
    ],
    ids=["truncated", "only a header", "truncated later", "changed", "followed by something", "no zstandard", "empty"],
)
def test_a_bad_dump_is_named(dumps, tmp_path, damage):
    path = tmp_path / "bad.zst"
    path.write_bytes(damage(dumps[0].read_bytes()))
    with pytest.raises(UnreadableFile, match=r"bad\.zst"):
        sample(path)


def test_a_bad_dump_stops_the_run_or_is_skipped(dumps, tmp_path, call):
    bad = tmp_path / "bad.zst"
    bad.write_bytes(dumps[1].read_bytes()[:-3])
    with_bad, without = tmp_path / "with.csv.gz", tmp_path / "without.csv.gz"
    code, _, err = call(sample_reddit, bad, dumps[0], "--output", with_bad)
    assert code == 1 and str(bad) in err.splitlines()[-1]
    assert not with_bad.exists()
    code, _, err = call(sample_reddit, bad, dumps[0], "--output", with_bad, "--skip-bad", "--count", 50)
    assert code == 0 and str(bad) in err and re.search(r"dumps +1 .*1\n", err)
    assert call(sample_reddit, dumps[0], "--output", without, "--count", 50)[0] == 0
    assert with_bad.read_bytes() == without.read_bytes()


def test_an_endless_line_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_LINE", 2**20)
    path = tmp_path / "dump.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(b"x" * 2**21))
    with pytest.raises(UnreadableFile, match=r"dump\.zst.* 1 MiB"):
        sample(path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--count 0", "argument --count, '0'"),
        ("--count ten", "argument --count, 'ten'"),
        ("--seed -1", "argument --seed, '-1', 18446744073709551615"),
        (f"--seed {2**64}", f"argument --seed, '{2**64}', {2**64 - 1}"),
        ("--after 2020-13-01", "argument --after, '2020-13-01'"),
        ("--after 2020-01-02 --before 2020-01-02", "--after, --before"),
        ("--min-chars 9 --max-chars 8", "--min-chars, --max-chars"),
        ("--subreddit a,,b", "argument --subreddit, 'a,,b'"),
        ("--output x.csv", "argument --output, 'x.csv', .csv.gz"),
        ("--output synthetic_10k.csv.gz", "argument --output, 'synthetic_10k.csv.gz'"),
        ("/nowhere/RC_2020-01.zst", "argument DUMPS, '/nowhere/RC_2020-01.zst'"),
        ("--out x.csv.gz", "--out"),
        ("SAME", "dump"),
        ("--output SAME", "--output SAME"),
        ("--output XXX.csv.gz", "argument --output, XXX.csv.gz'"),
        ("XXX", "argument DUMPS, XXX'"),
    ],
)
def test_wrong_usage_is_one_line(dumps, call, options, named, tmp_path):
    dump = shutil.copy(dumps[0], tmp_path / "dump.csv.gz")
    options, named = (text.replace("SAME", str(dump)).replace("XXX", 300 * "X") for text in (options, named))
    code, _, err = call(sample_reddit, dump, *options.split())
    assert code == 2 and Path(dump).read_bytes() == dumps[0].read_bytes()
    assert err.startswith("sample_reddit.py: ") and err.count("\n") == 1
    assert all(part in err for part in named.split(", ")), err


def test_an_unwritable_output_is_one_line(dumps, tmp_path, call):
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv.gz").mkdir()
    for output in ("file/sample.csv.gz", "folder.csv.gz"):
        code, _, err = call(sample_reddit, dumps[0], "--output", tmp_path / output)
        assert code == 2 and err.count("\n") == 1 and output.split("/")[0] in err


def test_nothing_is_written_when_nothing_is_eligible(dumps, tmp_path, call):
    output = tmp_path / "sample.csv.gz"
    code, _, err = call(sample_reddit, dumps[0], "--subreddit", "nba", "--output", output)
    assert code == 1 and err.splitlines()[-1].startswith("sample_reddit.py: ")
    assert re.search(r"subreddit +400 ", err) and not output.exists()


def test_ctrl_c_leaves_nothing(tmp_path):
    dump = write_dump(tmp_path / "dump.zst", [line(1)] * 3_000_000)
    command = [sys.executable, ROOT / "data/sample_reddit.py", dump, "--output", tmp_path / "out/sample.csv.gz"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "out").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("sample_reddit.py: ") and "Traceback" not in err
    assert os.listdir(tmp_path / "out") == []
