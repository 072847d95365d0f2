"""Rows -> the verdict: each variant judged as a whole, ranked, and what to do next."""

import math
import textwrap
from collections.abc import Callable

import numpy as np

from bench.judge import (
    MAX_FACTOR,
    N_SAMPLE,
    NOT_WITHIN,
    TOLERANCE,
    UNPROVEN,
    VERDICTS,
    WITHIN,
    alpha_for_look,
    decisions_needed,
    is_rounded,
    judge,
    share_words,
)
from bench.machine import BUSY
from bench.report.table import batches, speed
from runtimes import VARIANTS

WIDTH = 80
ONE_PASS_ERROR = 0.05  # assumed relative error of the speed of a single pass, either way
ORDER = list(VERDICTS.values())  # the best first
JUDGED = ["model", "device", "dataset", "texts", "texts_id", "weights_id", "threshold", "variant"]


def changed_of(row) -> int:
    return round(row["flips"] * row["decisions"])


def judge_row(row) -> str:
    """Return WITHIN, UNPROVEN or NOT_WITHIN for a row of results: from its column `within`, else from its counts.

    Rows whose outputs were not compared are UNPROVEN. Older rows without a count of decisions can only be NOT_WITHIN.
    """
    if row["within"]:
        return VERDICTS.get(row["within"], UNPROVEN)
    if not np.isfinite(row["decisions"]):
        return NOT_WITHIN if row["flips"] > TOLERANCE else UNPROVEN
    variant = VARIANTS.get(row["variant"])
    rounded = is_rounded(variant.precision if variant else "", row["max_diff"])
    return judge(changed_of(row), int(row["decisions"]), rounded=rounded)


def judge_variants(rows):
    """Return the rows of cells with their variant's `verdict`, its basis, and decisions `per_text`: a DataFrame.

    `rows`: one for each cell, including checks on more texts. A variant is judged by that check, else by the batching
    that changed most; one batching that is NOT_WITHIN is enough. Rows of other versions or commits than the latest are
    judged separately. `flips` and `decisions` become those of the deciding row.
    """
    import pandas as pd

    judged = []
    for _, group in rows.groupby(JUDGED, sort=False, dropna=False):
        newest = group.loc[group["date"].sort_values(kind="stable").index[-1]]
        current = group[(group["versions"] == newest["versions"]) & (group["commit"] == newest["commit"])]
        verdicts = np.array([ORDER.index(judge_row(row)) for row in current.to_dict("records")])
        checks = (current["stage"] == "check").to_numpy()
        if checks.any():  # a batching that was measured later and changes more is not covered by the check
            last = current[checks].iloc[-1]
            later = (current["date"] > last["date"]) & (current["flips"] > last["flips"])
            checks = checks & (not later.any())
        decides = verdicts == ORDER.index(NOT_WITHIN)
        if not decides.any():
            decides = checks if checks.any() else verdicts == verdicts.max()
        basis = current[decides].sort_values(["flips", "decisions"], na_position="first").iloc[-1]
        verdict = ORDER[verdicts[decides].max()]
        cells = group[group["stage"] != "check"]
        is_older = ~cells.index.isin(current.index)
        older = [max(verdict, judge_row(row), key=ORDER.index) for row in cells.to_dict("records")]
        cells = cells.assign(
            verdict=np.where(is_older, older, verdict),
            flips=basis["flips"],
            decisions=basis["decisions"],
            per_text=current["decisions"].min() / np.minimum(N_SAMPLE, newest["texts"]),
            max_diff=current["max_diff"].max(),
        )
        if len(cells):
            judged.append(cells)
    return pd.concat(judged).sort_index() if judged else rows.assign(verdict="", per_text=np.nan).iloc[:0]


def rank(rows):
    """Rank variants end to end, each at its best: a DataFrame with `rank` and the columns of judge_variants().

    `rows`: completed rows of one model, device and dataset, one for each cell. Variants within tolerance come first,
    then those not proven, then those not within tolerance. A variant whose speed range overlaps that of a rank's
    fastest variant shares its rank; within a rank, token budgets come first, then the smallest difference from the
    original. Variants measured on a busy device, or not timed end to end, rank after the others.
    """
    rows = judge_variants(rows)
    order = rows["verdict"].map(ORDER.index) if len(rows) else rows["verdict"]
    rows = rows.assign(order=order, idle=~(rows["busy"] > BUSY), end_to_end=rows["stage"] == "end-to-end")
    rows = rows.sort_values("messages/s", ascending=False, kind="stable")
    classes = ["order", "idle", "end_to_end"]
    best = rows.sort_values(classes, ascending=[True, False, False], kind="stable").drop_duplicates("variant")
    margin = best["messages/s"].where(~(best["passes"] > 1), 0) * ONE_PASS_ERROR
    best = best.assign(low=best["min"] - margin, high=best["max"] + margin, rank=0)
    leader, ranks = None, []
    for i, row in enumerate(best.itertuples()):
        comparable = leader is not None and all(getattr(row, name) == getattr(leader, name) for name in classes)
        leader = leader if comparable and row.high >= leader.low else row
        ranks.append(ranks[-1] if leader is not row else i + 1)
    best = best.assign(rank=ranks, safe=best["batching"] == "token-budget", rounded_diff=best["max_diff"].round(4))
    best = best.sort_values(["rank", "safe", "rounded_diff"], ascending=[True, False, True], kind="stable")
    return best.drop(columns=["order", "low", "high", "safe", "rounded_diff"])


def verdict(rows, check_command: Callable | None = None, next_command: Callable | None = None) -> list[str]:
    """Return the verdict as lines of at most 80 columns, with commands to copy at the end.

    `rows`: as for rank(); `check_command(variants)`: checks variants that are not proven on more texts;
    `next_command(winner, candidates)`: the next step, given the row of the winner and the names of the variants worth a
    longer run. Without them no command is printed.
    """
    ranked = rank(rows)
    groups = {name: ranked[ranked["verdict"] == name] for name in ORDER}
    within, unproven = groups[WITHIN], groups[UNPROVEN]
    torch = rows[(rows["variant"] == "torch") & (rows["batching"] == "in-order") & (rows["stage"] == "forward")]
    base = torch["messages/s"].max()
    lines = ["", "End to end, each variant at its best (workers x threads, batches):"]
    for row in within.to_dict("records"):
        tied = list(within["rank"]).count(row["rank"]) > 1
        lines += variant_line(row, base, f"{row['rank']}.", " (tie)" if tied else "")
    if len(unproven):
        lines.append(f"Not proven yet to change at most {TOLERANCE:.1%} of the decisions, so not recommended:")
    for row in unproven.to_dict("records"):
        lines += [*variant_line(row, base, "?"), *evidence(row)]
    if len(groups[NOT_WITHIN]):
        lines.append(f"Not within tolerance (more than {TOLERANCE:.1%} of the decisions change):")
    for row in groups[NOT_WITHIN].to_dict("records"):
        lines += variant_line(row, base, "-", f"; {flips_words(row)} changed")
    if len(torch):
        lines.append(f"1.0x is {speed(base)} messages/s: eager FP32 torch, forward passes only, in file order.")
    faster = unproven if within.empty else unproven[unproven["messages/s"] > within["messages/s"].iloc[0]]
    undecided = [row["variant"] for row in faster.to_dict("records") if needed_for(row)]
    checking = []
    if undecided and check_command:
        checking = ["To check more texts:", *fold(check_command(undecided))]
    if within.empty:
        return [*lines, "No variant is proven to be within tolerance.", *checking]
    lines += [*advice(within, faster), *checking]
    if next_command:
        candidates = dict.fromkeys(["torch", *within["variant"][:3], *faster["variant"][:2]])
        lines += ["Next:", *fold(next_command(within.iloc[0].to_dict(), list(candidates)))]
    return lines


def variant_line(row: dict, base: float, mark: str, remark: str = "") -> list[str]:
    """Return the line of a variant, folded. `base`: messages/s that are 1.0x, or nan."""
    factor = "" if math.isnan(base) else f"{row['messages/s'] / base:.1f}x"
    if not row["end_to_end"]:
        remark += " (forward)"
    if not row["idle"]:
        remark += " (busy device)"
    line = f"{mark:<4}{row['variant']:<19}{speed(row['messages/s']):>8} messages/s {factor:>6}  "
    line += f"{row['workers']} x {row['threads']}, {batches(row | {'stage': ''})}{remark}"
    return textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def advice(within, faster) -> list[str]:
    """Return which variant to use, from the ranked rows within tolerance and the `faster` ones not proven."""
    winner = within.iloc[0]
    tied = within[within["rank"] == 1]
    sentences = f"Use {winner['variant']}."
    if len(tied) > 1:
        closest = round(winner["max_diff"], 4) <= round(tied["max_diff"].min(), 4)
        reason = "it is the closest to the original" if closest else "it has a token budget"
        sentences = f"Use {winner['variant']}: {len(tied)} variants tie, and {reason}."
    if len(faster):
        gain = faster["messages/s"].max() / winner["messages/s"]
        sentences += f" The fastest variant that is not proven is {gain:.1f} times as fast."
    if not winner["idle"]:
        sentences += " Other processes kept the device busy: when it is idle, measure again with --resume."
    return textwrap.wrap(sentences, WIDTH)


def evidence(row) -> list[str]:
    """Return what is known of a variant that is not proven, and how many texts would decide it."""
    decisions, needed = row["decisions"], needed_for(row)
    if not np.isfinite(decisions):
        return ["    its outputs were not compared"]
    known = f"{flips_words(row)} changed: {share_words(changed_of(row), int(decisions))}; "
    if needed:
        known += f"about {math.ceil(max(needed - decisions, 1) / row['per_text']):,} more texts would decide it"
    else:
        known += f"even {MAX_FACTOR} times as many texts would probably not decide it"
    return textwrap.wrap(known, WIDTH, initial_indent="    ", subsequent_indent="    ")


def needed_for(row) -> int | None:
    """Return about how many decisions would decide a row's verdict; None if there are too many to suggest."""
    if not np.isfinite(row["decisions"]):
        return N_SAMPLE
    changed, decisions = changed_of(row), int(row["decisions"])
    return decisions_needed(changed, decisions, alpha=alpha_for_look(2))  # as the next run would test them


def flips_words(row) -> str:
    """Return the changed decisions as a count, or as a share if an older row has no count."""
    if np.isfinite(row["decisions"]):
        return f"{changed_of(row):,} of {row['decisions']:,.0f} decisions"
    return f"{row['flips']:.2%} of the decisions"


def fold(command: str) -> list[str]:
    """Fold a command before its options, so that it can be copied from lines of at most 80 columns."""
    first, *options = command.split(" --")
    lines = [f"  {first}"]
    for option in options:
        if len(lines[-1]) + len(option) + 5 > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" --{option}"
    return lines
