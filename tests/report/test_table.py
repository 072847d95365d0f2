"""The printed table."""

from bench.report.rows import COLUMNS
from bench.report.table import HEADER, table_line


def make_row(**columns) -> dict:
    row = dict.fromkeys(COLUMNS, "") | {
        "variant": "onnx",
        "workers": 1,
        "threads": 2,
        "batch_size": 8,
        "batching": "sorted",
    }
    row |= {"stage": "forward", "messages/s": "12.345", "min": "11.96", "max": "13.1", "passes": "3"}
    row |= {"padding": "1.02", "mfu": "0.514", "max_diff": "0.001", "flips": "0.0025", "status": "ok"}
    return row | columns


def test_a_row_is_a_line_under_the_header():
    line = table_line(make_row())
    assert line.split() == ["onnx", "1x2", "8", "sorted", "12.3", "(12-13.1)", "1.02", "51%", "1.0e-03", "0.25%", "ok"]
    for name in ("messages/s", "padding", "peak", "max_diff", "flips"):
        assert line[HEADER.index(name) + len(name)] == " " != line[HEADER.index(name) + len(name) - 1]
    end_to_end = table_line(make_row(passes="1", stage="end-to-end", mfu="")).split()
    assert end_to_end[2:4] == ["8", "sorted"] and end_to_end[5:7] == ["12.3", "1.02"], "between them is the stage"
    assert "heat (hardware)" in table_line(make_row(throttled="heat (hardware)"))
    assert table_line(make_row(throttled="no")) == line


def test_lines_have_at_most_100_columns():
    widest = {"variant": "torch-compile-bf16", "workers": 64, "threads": 64, "batch_size": 1024, "batching": "in-order"}
    widest |= {"messages/s": "12345", "min": "12001", "max": "13001", "padding": "123.45", "mfu": "1", "flips": "1"}
    assert len(table_line(make_row(**widest, stage="end-to-end"))) <= 100
    failed = table_line(make_row(**widest | {"messages/s": ""}, status="worker 1 of 2 died, and " * 9))
    assert max(map(len, failed.splitlines())) <= 100
    assert " ".join(failed.split()[4:]) == ("worker 1 of 2 died, and " * 9).strip()
