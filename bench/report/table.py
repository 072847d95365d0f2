"""Rows -> the table on standard output: the deciding columns in at most 100 characters; the rest is in the TSV."""

import math
import textwrap

from bench.machine import BUSY
from bench.model.batches import Batching
from utils import clean

WIDTH = 100
HEADER = f"{'variant':<18} {'w x t':>5} {'batches':<16} {'messages/s':>20} {'padding':>7} {'peak':>5} {'max_diff':>8} "
HEADER += f"{'flips':>7} status"
STAGE_MARKS = {"end-to-end": " e2e", "check": " check"}


def table_line(row: dict) -> str:
    """Return a row as a line under HEADER. A failed row shows its status, in several lines if needed.

    If there are several passes, messages/s is followed by the slowest and the fastest.
    """
    line = f"{row['variant']:<18} {row['workers']:>2}x{row['threads']:<2} {batches(row):<16} "
    if not row["messages/s"]:
        indent = " " * len(line)
        return textwrap.fill(clean(row["status"]), WIDTH, initial_indent=line, subsequent_indent=indent)
    spread = f" ({speed(row['min'])}-{speed(row['max'])})" if int(row["passes"]) > 1 else ""
    peak = f"{float(row['mfu']):.0%}" if row["mfu"] else "-"
    line += f"{speed(row['messages/s']) + spread:>20} {float(row['padding']):>7.2f} {peak:>5} "
    compared = [shown(float(row[name] or "nan"), form) for name, form in (("max_diff", "{:.1e}"), ("flips", "{:.2%}"))]
    line += "{:>8} {:>7} ".format(*compared)
    line += "busy" if float(row["busy"] or 0) > BUSY else row["status"]
    return line if row["throttled"] in ("", "no") else f"{line} ({row['throttled']})"


def batches(row) -> str:
    """Return how a row's batches were made: `8 sorted`, `512 tokens`, with a mark for stages other than forward."""
    batching = Batching(row["batching"], row["batch_size"], row["batch_tokens"])
    return f"{batching}{STAGE_MARKS.get(row['stage'], '')}"


def speed(value) -> str:
    """Format messages/s with three digits, or as a whole number."""
    return shown(float(value), "{:,.0f}" if float(value) >= 100 else "{:.3g}")


def shown(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)
