"""Rows -> the printed table: what decides between them, in at most 100 columns; the rest is in the TSV."""

import math
import textwrap

from bench.machine import BUSY
from bench.model.batches import Batching

WIDTH = 100
HEADER = f"{'variant':<18} {'w x t':>5} {'batches':<16} {'messages/s':>20} {'padding':>7} {'peak':>5} {'max_diff':>8} "
HEADER += f"{'flips':>7} status"


def table_line(row: dict) -> str:
    """Returns a row as a line under HEADER; one that failed as its status, in several lines if need be.

    messages/s has the slowest and the fastest pass beside it, where there are several.
    """
    line = f"{row['variant']:<18} {row['workers']:>2}x{row['threads']:<2} {batches(row):<16} "
    if not row["messages/s"]:
        indent = " " * len(line)
        return textwrap.fill(row["status"], WIDTH, initial_indent=line, subsequent_indent=indent)
    spread = f" ({speed(row['min'])}-{speed(row['max'])})" if int(row["passes"]) > 1 else ""
    peak = f"{float(row['mfu']):.0%}" if row["mfu"] else "-"
    line += f"{speed(row['messages/s']) + spread:>20} {float(row['padding']):>7.2f} {peak:>5} "
    line += f"{float(row['max_diff']):>8.1e} {float(row['flips']):>7.2%} "
    line += "busy" if float(row["busy"] or 0) > BUSY else row["status"]
    return line + f" ({row['throttled']})" * (row["throttled"] not in ("", "no"))


def batches(row) -> str:
    """Says how a row's batches were made: `8 sorted`, `512 tokens`; `e2e` is end to end, `check` on more texts."""
    batching = Batching(row["batching"], row["batch_size"], row["batch_tokens"])
    return f"{batching}" + {"end-to-end": " e2e", "check": " check"}.get(row["stage"], "")


def speed(value) -> str:
    """Returns messages/s in three digits, or as a whole number."""
    return shown(float(value), "{:,.0f}" if float(value) >= 100 else "{:.3g}")


def shown(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)
