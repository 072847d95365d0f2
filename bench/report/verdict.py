"""Rows -> the verdict: which variant to take, and what to do next."""

import textwrap

import numpy as np

from bench.judge import TOLERANCE, decisions_needed, judge_row
from bench.report.table import batches, speed

WIDTH = 80
NEAR = 1e-3  # of the probabilities: a change of decisions would be chance
ONE_PASS_ERROR = 0.05  # how far the speed of one pass is taken to be off, either way


def rank(rows):
    """Ranks variants end to end, each at its best: a DataFrame with the columns `rank` and `within` besides.

    `rows`: completed rows of one model, device and dataset, one for each cell. `within` are those that are not known to
    change more than TOLERANCE of the decisions; they come first. Variants whose spread overlaps that of the fastest of
    a rank share the rank, the closest to the original first. One that was not timed end to end counts by its forward
    passes, behind those that were.
    """
    within = [judge_row(row) is not False for row in rows.to_dict("records")]
    rows = rows.assign(within=np.array(within, dtype=bool), end_to_end=rows["stage"] == "end-to-end")
    keys = ["within", "end_to_end", "messages/s"]
    best = rows.sort_values(keys, ascending=False, kind="stable").drop_duplicates("variant")
    margin = best["messages/s"].where(~(best["passes"] > 1), 0) * ONE_PASS_ERROR
    best = best.assign(low=best["min"] - margin, high=best["max"] + margin, rank=0)
    leader, ranks = None, []
    for i, row in enumerate(best.itertuples()):
        tied = leader is not None and (row.within, row.end_to_end) == (leader.within, leader.end_to_end)
        leader = leader if tied and row.high >= leader.low else row
        ranks.append(ranks[-1] if leader is not row else i + 1)
    best = best.assign(rank=ranks, off=best["max_diff"].round(4))  # what is closer than that is rounding
    return best.sort_values(["rank", "off"], kind="stable").drop(columns=["low", "high", "off"])


def verdict(rows, command: str) -> list[str]:
    """Returns the verdict as lines of at most 80 columns, the command to copy at the end.

    `rows`: as for rank(); `command`: what to do next, with {variant} for the winner and {candidates} for a comma list
    of it and those behind it.
    """
    ranked = rank(rows)
    within, others = ranked[ranked["within"]], ranked[~ranked["within"]]
    torch = rows[(rows["variant"] == "torch") & (rows["batching"] == "in-order") & (rows["stage"] == "forward")]
    base = torch["messages/s"].max()

    def line(row, before: str, after: str) -> str:
        factor = f"{row['messages/s'] / base:.1f}x" if len(torch) else ""
        how = batches(row | {"stage": ""})
        words = f"{before:<4}{row['variant']:<19}{speed(row['messages/s']):>8} messages/s {factor:>6}  "
        return f"{words}{row['workers']} x {row['threads']}, {how}{after}".rstrip()

    lines = ["", "End to end, each variant at its best (workers x threads, batches):"]
    for row in within.to_dict("records"):
        tied = " (tie)" if list(within["rank"]).count(row["rank"]) > 1 else ""
        lines.append(line(row, f"{row['rank']}.", ("" if row["end_to_end"] else " (forward)") + tied))
    if len(others):
        lines.append(f"Not within tolerance, since they change more than {TOLERANCE:.1%} of the decisions:")
    lines += [line(row, "-", f"; {flips_words(row)}") for row in others.to_dict("records")]
    lines += unproven(within)
    if len(torch):
        lines.append(f"1.0x is eager FP32 torch in the file's order, its forward passes: {speed(base)} messages/s.")
    if within.empty:
        return [*lines, "None of them is within tolerance."]
    winner, first = within.iloc[0], within[within["rank"] == 1]
    words = f"Take {winner['variant']}"
    words += f", the closest to the original of {len(first)} that tie." if len(first) > 1 else "."
    words += "" if (within["passes"] > 1).all() else f" (Measured once, a speed counts as +-{ONE_PASS_ERROR:.0%}.)"
    candidates = ",".join(dict.fromkeys(["torch", *within["variant"][:3]]))
    command = command.format(variant=winner["variant"], candidates=candidates)
    return [*lines, f"{words} Next:", *fold(command)]


def flips_words(row) -> str:
    """Returns the changed decisions as a count; as a share where older rows have no count."""
    if np.isfinite(row["decisions"]):
        return f"{round(row['flips'] * row['decisions'])} of {row['decisions']:,.0f}"
    return f"{row['flips']:.2%}"


def unproven(rows) -> list[str]:
    """Names the variants of which too few texts were checked; none within NEAR of the original."""
    few = [row for row in rows[rows["max_diff"] > NEAR].to_dict("records") if judge_row(row) is None]
    if not few:
        return []
    checked = [(round(row["flips"] * row["decisions"]), int(row["decisions"])) for row in few]
    needed = [(decisions_needed(changed, decisions) or 0) / decisions for changed, decisions in checked]
    enough = f"about {max(needed):.1f} times as many would do" if all(needed) else "more would hardly tell"
    names = ", ".join(f"{row['variant']} ({flips_words(row)})" for row in few)
    words = f"Too few texts to tell whether they change more than {TOLERANCE:.1%}: {names}; {enough}"
    return textwrap.wrap(f"{words} (export_onnx.py checks more).", WIDTH)


def fold(command: str) -> list[str]:
    """Folds a command before its options, so that it can be copied from lines of at most 80 columns."""
    first, *options = command.split(" --")
    lines = [f"  {first}"]
    for option in options:
        if len(lines[-1]) + len(option) + 5 > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" --{option}"
    return lines
