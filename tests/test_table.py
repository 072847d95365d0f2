"""The printed table and the summary."""

from bench.results import COLUMNS
from bench.table import summary, table_header, table_line


def make_row(**columns) -> dict:
    row = dict.fromkeys(COLUMNS, "") | {"variant": "onnx", "workers": 1, "threads": 2, "size": 8, "order": "length"}
    row |= {"timed": "forward", "messages/s": "12.345", "max_diff": "0.001", "flips": "0.0025", "status": "ok"}
    return row | columns


def test_a_row_is_a_line_under_the_header():
    header, line = table_header(), table_line(make_row())
    at = header.index("messages/s") + len("messages/s")
    assert line[:at].split() == ["onnx", "1", "2", "8", "length", "forward", "12.3"]
    assert line.endswith("0.001  0.250%  ok")
    failed = table_line(make_row(**{"messages/s": "", "max_diff": "", "flips": ""}, status="out of memory"))
    assert failed.split()[6] == "-" and failed.endswith("  out of memory")
    assert table_line(make_row(throttled="heat (hardware)")).endswith("  ok (throttled: heat (hardware))")
    assert table_line(make_row(throttled="no")).endswith("  ok")


def test_the_summary_has_each_variants_best_row():
    rows = [make_row(), make_row(**{"messages/s": "24.69", "size": 16}), make_row(variant="torch", status="broken")]
    rows += [make_row(**{"messages/s": "99", "timed": "texts"})]
    onnx, torch = summary(rows, ["onnx", "torch"])
    assert onnx.split()[:4] == ["onnx", "24.7", "messages/s", "1.00x"] and "size 16, order length" in onnx
    assert torch.endswith("- no cell was measured")
