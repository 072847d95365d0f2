"""Rows -> the verdict: which variant to take, what is not proven, and what to do next."""

import math
import textwrap

import numpy as np

from bench.judge import (
    MAX_FACTOR,
    N_SAMPLE,
    NOT_WITHIN,
    TOLERANCE,
    UNPROVEN,
    WITHIN,
    alpha_for_look,
    decisions_needed,
    share_words,
)
from bench.machine import BUSY
from bench.report.judged import ORDER, changed_of, judge_variants
from bench.report.table import batches, speed

WIDTH = 80
ONE_PASS_ERROR = 0.05  # how far the speed of one pass is taken to be off, either way


def rank(rows):
    """Ranks variants end to end, each at its best: a DataFrame, with `rank` and what judge_variants() adds.

    `rows`: completed rows of one model, device and dataset, one for each cell. First come variants within tolerance,
    then those that are not proven, then those that are not within it. Variants whose spreads overlap that of the
    fastest of a rank share the rank: first of them is one with a token budget, then the closest to the original. One
    that was measured while others kept the device busy, or was not timed end to end, stands behind those that were not.
    """
    rows = judge_variants(rows)
    order = rows["verdict"].map(ORDER.index) if len(rows) else rows["verdict"]
    rows = rows.assign(order=order, idle=~(rows["busy"] > BUSY), end_to_end=rows["stage"] == "end-to-end")
    rows = rows.sort_values("messages/s", ascending=False, kind="stable")
    alike = ["order", "idle", "end_to_end"]
    best = rows.sort_values(alike, ascending=[True, False, False], kind="stable").drop_duplicates("variant")
    margin = best["messages/s"].where(~(best["passes"] > 1), 0) * ONE_PASS_ERROR
    best = best.assign(low=best["min"] - margin, high=best["max"] + margin, rank=0)
    leader, ranks = None, []
    for i, row in enumerate(best.itertuples()):
        tied = leader is not None and all(getattr(row, name) == getattr(leader, name) for name in alike)
        leader = leader if tied and row.high >= leader.low else row
        ranks.append(ranks[-1] if leader is not row else i + 1)
    best = best.assign(rank=ranks, safe=best["batching"] == "token-budget", off=best["max_diff"].round(4))
    best = best.sort_values(["rank", "safe", "off"], ascending=[True, False, True], kind="stable")
    return best.drop(columns=["order", "low", "high", "safe", "off"])


def verdict(rows, settle: str, following: str) -> list[str]:
    """Returns the verdict as lines of at most 80 columns, with commands to copy at the end.

    `rows`: as for rank(); `settle`: the command that checks more texts, with {variants} for a comma list of those that
    are not proven and {seconds} for how long; `following`: what to do next, with {variant} for the winner and
    {candidates} for a comma list of it and those behind it.
    """
    ranked = rank(rows)
    groups = {name: ranked[ranked["verdict"] == name] for name in ORDER}
    torch = rows[(rows["variant"] == "torch") & (rows["batching"] == "in-order") & (rows["stage"] == "forward")]
    base = torch["messages/s"].max()

    def line(row, before: str, after: str) -> list[str]:
        factor = f"{row['messages/s'] / base:.1f}x" if len(torch) else ""
        after += ("" if row["end_to_end"] else " (forward)") + ("" if row["idle"] else " (busy device)")
        words = f"{before:<4}{row['variant']:<19}{speed(row['messages/s']):>8} messages/s {factor:>6}  "
        words += f"{row['workers']} x {row['threads']}, {batches(row | {'stage': ''})}{after}"
        return textwrap.wrap(words, WIDTH, subsequent_indent="    ", break_on_hyphens=False)

    lines = ["", "End to end, each variant at its best (workers x threads, batches):"]
    within, unproven = groups[WITHIN], groups[UNPROVEN]
    for row in within.to_dict("records"):
        tied = list(within["rank"]).count(row["rank"]) > 1
        lines += line(row, f"{row['rank']}.", " (tie)" * tied)
    if len(unproven):
        lines.append(f"Not proven yet to change at most {TOLERANCE:.1%} of the decisions, so not recommended:")
    for row in unproven.to_dict("records"):
        lines += [*line(row, "?", ""), *missing(row)]
    if len(groups[NOT_WITHIN]):
        lines.append(f"Not within tolerance, since they change more than {TOLERANCE:.1%} of the decisions:")
    for row in groups[NOT_WITHIN].to_dict("records"):
        lines += line(row, "-", f"; {flips_words(row)}")
    if len(torch):
        lines.append(f"1.0x is eager FP32 torch in the file's order, its forward passes: {speed(base)} messages/s.")
    faster = unproven if within.empty else unproven[unproven["messages/s"] > within["messages/s"].iloc[0]]
    open_ones = [row["variant"] for row in faster.to_dict("records") if needed_for(row)]
    command = settle.format(variants=",".join(open_ones), seconds=600)
    settling = ["To check more texts:", *fold(command)] if open_ones else []
    if within.empty:
        return [*lines, "None of them is proven to be within tolerance.", *settling]
    winner, first = within.iloc[0], within[within["rank"] == 1]
    words = f"Take {winner['variant']}"
    words += f", the closest to the original of {len(first)} that tie." if len(first) > 1 else "."
    if len(faster):
        price = faster["messages/s"].max() / winner["messages/s"]
        words += f" What is not proven would be {price:.1f} times as fast."
    if not winner["idle"]:
        words += " Others kept the device busy: measure again when it is idle, with --resume."
    lines += textwrap.wrap(words, WIDTH) + settling
    candidates = ",".join(dict.fromkeys(["torch", *within["variant"][:3], *faster["variant"][:2]]))
    batch = {"batches": int(winner["batch_size"]) or 8, "tokens": int(winner["batch_tokens"]) or 512}
    return [*lines, "Next:", *fold(following.format(variant=winner["variant"], candidates=candidates, **batch))]


def missing(row) -> list[str]:
    """Says what is known of a variant that is not proven, and how many texts would tell."""
    decisions, needed = row["decisions"], needed_for(row)
    if not np.isfinite(decisions):
        return ["    its outputs were not compared"]
    words = f"{flips_words(row)} changed: {share_words(changed_of(row), int(decisions))}; "
    if not needed:
        words += f"{MAX_FACTOR} times as many texts would hardly tell"
    else:
        words += f"about {math.ceil(max(needed - decisions, 1) / row['per_text']):,} more texts would tell"
    return textwrap.wrap(words, WIDTH, initial_indent="    ", subsequent_indent="    ")


def needed_for(row) -> int | None:
    """Returns about how many decisions would tell; None if so many that nobody would check them."""
    if not np.isfinite(row["decisions"]):
        return N_SAMPLE
    changed, decisions = changed_of(row), int(row["decisions"])
    return decisions_needed(changed, decisions, alpha=alpha_for_look(2))  # as the next run would look at them


def flips_words(row) -> str:
    """Returns the changed decisions as a count; as a share where older rows have no count."""
    if np.isfinite(row["decisions"]):
        return f"{changed_of(row):,} of {row['decisions']:,.0f}"
    return f"{row['flips']:.2%}"


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
