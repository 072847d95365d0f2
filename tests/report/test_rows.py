"""Result files: rows are appended and read even if the file is damaged; the latest run of a cell counts."""

import errno
import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.processes import ProcessPool
from bench.report import rows as rows_module
from bench.report.rows import (
    COLUMNS,
    HEADER,
    add_slowdowns,
    append_row,
    completed_rows,
    latest_per_cell,
    line_of,
    read_results,
    read_rows,
    results_path,
)
from utils import clean


def make_row(batch_size: int = 8, speed: float = 100.0, **columns) -> dict:
    """A valid row; `columns` replace its defaults."""
    row = dict.fromkeys(COLUMNS, "") | {
        "workers": 1,
        "threads": 1,
        "batch_size": batch_size,
        "batching": "sorted",
        "texts": 60,
    }
    row |= {"messages/s": speed, "min": speed, "max": speed, "max_diff": 0.001, "flips": 0.25, "passes": 1}
    row |= {"stage": "forward", "status": "ok", "variant": "onnx", "model": "org/name", "device": "NVIDIA-H200"}
    return row | {"dataset": "normal", "date": "2026-11-22T10:00:00Z"} | columns


def sizes(path: Path) -> list[int]:
    rows, _, _ = read_results([path])
    return rows["batch_size"].tolist()


def test_rows_of_a_model_are_in_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [results_path(Path("results"), make_row(model=model)) for model in ("ann/tiny", "./tiny/", ".")]
    names = ("tiny", "tiny", tmp_path.name)
    assert paths == [Path(f"results/{name}/NVIDIA-H200_onnx_normal.tsv") for name in names]


TEXT = st.text(max_size=20) | st.sampled_from(["", '"', "\t", "a\tb", 'a"\n"b', "\r", "\0", "\ufeff", "NA", " x "])


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, TEXT)), min_size=1, max_size=4))
def test_rows_come_back_as_appended_except_for_line_breaks(tmp_path, rows):
    path = tmp_path / "rows.tsv"
    path.unlink(missing_ok=True)
    for row in rows:
        append_row(path, row)
    expected = [{name: clean(value) for name, value in row.items()} for row in rows]
    assert read_rows(path) == (expected, 0)
    assert path.read_text().count(HEADER) == 1


def test_appending_keeps_the_content_of_the_file(tmp_path):
    path = tmp_path / "rows.tsv"
    before = b""
    for damage in ("", "a line that is cut", "\n", "batching\tmessages/s\n1\t2\n", "\xff\n"):
        with path.open("ab") as file:
            file.write(damage.encode("latin-1"))
        before = path.read_bytes()
        append_row(path, make_row())
        assert path.read_bytes().startswith(before)
        assert path.read_text(errors="replace").endswith("\n" + line_of(make_row()))


def test_a_full_disk_in_the_middle_of_a_line_is_an_error_and_loses_no_other_row(tmp_path, monkeypatch):
    path = tmp_path / "rows.tsv"
    append_row(path, make_row(batch_size=1))

    class Full(io.FileIO):
        def write(self, data):
            return super().write(data[:20])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, **_: Full(path, mode))
        with pytest.raises(OSError) as caught:
            append_row(path, make_row(batch_size=2))
    assert caught.value.errno == errno.ENOSPC
    append_row(path, make_row(batch_size=3))
    assert sizes(path) == [1, 3]
    assert read_rows(path)[1] == 0, "the incomplete line is removed"


class Writer:
    def __init__(self, path: Path, numbers: range):
        self.path, self.numbers = path, numbers

    def write(self) -> None:
        for size in self.numbers:
            append_row(self.path, make_row(batch_size=size))


def test_two_runs_into_one_file_lose_no_row(tmp_path):
    path = tmp_path / "rows.tsv"
    with ProcessPool(Writer, [(path, range(i, 201, 2)) for i in (1, 2)]) as pool:
        pool.call(Writer.write)
    assert sorted(sizes(path)) == list(range(1, 201))
    assert read_rows(path)[1] == 0


def test_files_of_several_versions_can_be_joined(tmp_path):
    """As a spreadsheet saves them, with a byte order mark and CRLF; columns are missing, added and reordered."""
    path = tmp_path / "rows.tsv"
    older = [name for name in COLUMNS if name not in ("busy", "throttled")] + ["kelvin"]
    row = make_row(batch_size=4, kelvin="300")
    lines = ["\t".join(older), "\t".join(str(row[name]) for name in older), ""]
    path.write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    append_row(path, make_row(batch_size=8, busy="0.1"))
    rows, skipped = read_rows(path)
    assert [(row["batch_size"], row["busy"], row.get("kelvin")) for row in rows] == [
        ("4", "", "300"),
        ("8", "0.1", None),
    ]
    assert skipped == 0


@pytest.mark.parametrize(
    "columns",
    [
        {"batch_size": "8.5"},
        {"workers": "0"},
        {"workers": "1000000"},
        {"threads": "-1"},
        {"threads": "2e9"},
        {"threads": ""},
        {"texts": "many"},
        {"messages/s": "-1"},
        {"messages/s": "0"},
        {"messages/s": "nan"},
        {"messages/s": "inf"},
        {"messages/s": "fast"},
        {"min": "101"},
        {"max": "99"},
        {"max": "1e300", "messages/s": "1e299"},
        {"min": "0"},
        {"flips": "1.5"},
        {"max_diff": "inf"},
        {"batching": "random"},
        {"stage": "twice"},
        {"texts": "-5"},
        {"texts": "0"},
        {"decisions": "1e12"},
        {"decisions": "inf"},
        {"decisions": "-5"},
        {"decisions": "0.5"},
        {"decisions": "2e9", "flips": "1"},
        {"tokens/s": "inf"},
        {"mfu": "-1"},
        {"date": "2026-11"},
    ],
)
def test_an_invalid_row_is_counted_and_left_out(columns, tmp_path):
    path = tmp_path / "rows.tsv"
    append_row(path, make_row(batch_size=1))
    append_row(path, make_row(batch_size=2) | columns)
    append_row(path, make_row(batch_size=3, status="out of memory") | dict.fromkeys(rows_module.SPEEDS, ""))
    rows, failed, skipped = read_results([path, tmp_path / "missing.tsv"])
    assert rows["batch_size"].tolist() == [1]
    assert (failed, skipped) == (1, {path: 1, tmp_path / "missing.tsv": 1})


def test_the_latest_completed_run_of_a_cell_counts_with_its_repeats_combined(tmp_path):
    path = tmp_path / "rows.tsv"
    append_row(path, make_row(speed=500, date="2026-11-20T10:00:00Z"))
    for speed, flips in ((100, 0.2), (90, 0.1), (140, 0.0)):
        append_row(path, make_row(speed=speed, flips=flips, passes=2, min=speed - 10, max=speed + 10))
        append_row(path, make_row(batch_size=16, speed=speed))
    append_row(path, make_row(date="2026-11-23T10:00:00Z", status="out of memory", speed=""))
    append_row(path, make_row(stage="end-to-end", speed=80))
    rows, failed, _ = read_results([path])
    assert failed == 0, "the cell has good rows"
    shown = latest_per_cell(rows)[["batch_size", "stage", "messages/s", "min", "max", "passes", "flips"]]
    assert shown.values.tolist() == [
        [8, "forward", 100, 80, 150, 6, 0.2],
        [16, "forward", 100, 90, 140, 3, 0.25],
        [8, "end-to-end", 80, 80, 80, 1, 0.25],
    ]


def test_the_latest_run_is_the_one_of_the_latest_date(tmp_path):
    """Whatever the order of its rows in the files."""
    append_row(tmp_path / "a.tsv", make_row(speed=9, date="2026-11-20T10:00:00.5Z"))
    append_row(tmp_path / "b.tsv", make_row(speed=99, date="2020-11-20T10:00:00Z"))
    rows, _, _ = read_results([tmp_path / "a.tsv", tmp_path / "b.tsv"])
    assert latest_per_cell(rows)["messages/s"].tolist() == [9]


PIECES = [b"\t", b"\n", b"\r", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", b"1", b"ok", b"nan", b"1e999", HEADER.encode()]
PIECES += [
    b"batching\tmessages/s\n",
    b"workers\torder\tsize\tmessages/s\n",
    b"9" * 5000,
    "²".encode(),
    b"-1",
    b"x" * 200_000,
]
NOISE = st.binary(max_size=300) | st.lists(st.sampled_from(PIECES), max_size=80).map(b"".join)
NOISE |= NOISE.map(HEADER.encode().__add__) | st.lists(st.sampled_from(PIECES), min_size=29).map(b"\t".join)


@given(NOISE)
@example(b"")
@example(HEADER.encode() + b"\t".join([b"1"] * len(COLUMNS)) + b"\n")
def test_any_content_of_a_file_is_read_or_counted(tmp_path, content):
    path = tmp_path / "device_variant_dataset.tsv"
    path.write_bytes(content)
    rows, _, _ = read_results([path])
    assert (
        (rows["messages/s"] > 0) & (rows["batch_size"] + rows["batch_tokens"] >= 1) & (rows["status"] == "ok")
    ).all()
    append_row(path, make_row(batch_size=77))
    assert sizes(path)[-1] == 77


EDITS = st.binary(max_size=5) | st.sampled_from([b'"', b'""', b"\t", b"\n", b"\r\n", b"\xff", b"9" * 400, b"\0"])


@given(st.integers(1, 8), st.data())
def test_an_edit_or_a_cut_within_a_line_loses_no_other_row(tmp_path, count, data):
    path = tmp_path / "device_variant_dataset.tsv"
    lines = [line_of(make_row(batch_size=size)).encode() for size in range(1, count + 1)]
    edited = data.draw(st.integers(0, count - 1))
    line = lines[edited]
    at = data.draw(st.integers(0, len(line) - 1))
    end = min(at + data.draw(st.integers(0, 10)), len(line) - 1)  # its line break stays
    changed = [*lines[:edited], line[:at] + data.draw(EDITS) + line[end:], *lines[edited + 1 :]]
    path.write_bytes(HEADER.encode() + b"".join(changed))
    assert set(range(1, count + 1)) - {edited + 1} <= set(sizes(path))

    path.write_bytes(HEADER.encode() + b"".join(lines[:edited]) + line[:at])
    assert sizes(path)[:edited] == list(range(1, edited + 1))


def test_a_busy_run_that_was_faster_than_an_idle_one_counts_with_its_speed():
    idle = [make_row(8, 100.0, busy="0.0"), make_row(4, 50.0, busy="0.0")]
    busy = {"busy": "0.9", "date": "2026-11-23T10:00:00Z"}
    for factor, expected in ((2.0, 1.0), (0.5, 2.0)):
        rows = [*idle, make_row(8, 100.0 * factor, **busy), make_row(2, 9.0, **busy)]
        found = add_slowdowns(completed_rows(rows)[0])
        assert found["slowdown"].round(1).tolist() == [1.0, 1.0, expected, expected]
