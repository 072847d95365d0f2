"""Rows -> the verdict: each variant judged as a whole, ranked, and what to do next."""

import math
import textwrap
from collections.abc import Callable

import numpy as np

from bench.judge import (
    N_SAMPLE,
    NOT_WITHIN,
    TOLERANCE,
    UNPROVEN,
    VERDICTS,
    WITHIN,
    decisions_needed,
    is_rounded,
    judge,
    share_words,
)
from bench.machine import BUSY
from bench.report.evidence import EvidenceFile
from bench.report.table import BASELINES, base_name, batches, is_cpu, speed
from runtimes import VARIANTS

WIDTH = 80
ONE_PASS_ERROR = 0.05  # assumed relative error of the speed of a single pass, either way
ORDER = list(VERDICTS.values())  # the best first
JUDGED = ["model", "device", "dataset", "texts", "texts_id", "weights_id", "threshold", "variant"]


def changed_of(row) -> int:
    return round(row["flips"] * row["decisions"])


def judge_row(row, tolerance: float = TOLERANCE) -> str:
    """Return WITHIN, UNPROVEN or NOT_WITHIN for a row of results: from its column `within`, else from its counts.

    Rows whose outputs were not compared are UNPROVEN. Older rows without a count of decisions can only be NOT_WITHIN.
    """
    if row["within"] and tolerance == TOLERANCE:
        return VERDICTS.get(row["within"], UNPROVEN)
    if not np.isfinite(row["decisions"]):
        return NOT_WITHIN if row["flips"] > tolerance else UNPROVEN
    variant = VARIANTS.get(row["variant"])
    rounded = is_rounded(variant.precision if variant else "", row["max_diff"])
    return judge(changed_of(row), int(row["decisions"]), tolerance, rounded)


def judge_variants(rows, evidence: EvidenceFile | None = None, tolerance: float = TOLERANCE):
    """Return the rows of cells with their variant's `verdict`, its basis, and decisions `per_text`: a DataFrame.

    `rows`: one for each cell, including checks on more texts. A variant is judged by its evidence. If there is none, it
    is judged by the latest check, else by the batching that changed most; one batching that is NOT_WITHIN is enough.
    Rows of other versions than the latest are left out, and without evidence those of other commits. `flips` and
    `decisions` become those of the evidence or the deciding row.
    """
    import pandas as pd

    judged = []
    for _, group in rows.groupby(JUDGED, sort=False, dropna=False):
        newest = group.loc[group["date"].sort_values(kind="stable").index[-1]]
        current = group[group["versions"] == newest["versions"]]
        known = evidence.of_row(newest) if evidence else None
        if not known:
            current = current[current["commit"] == newest["commit"]]
        verdicts = np.array([ORDER.index(judge_row(row, tolerance)) for row in current.to_dict("records")])
        checks = (current["stage"] == "check").to_numpy()
        if checks.any():  # the latest has all evidence, but of a batching that was measured later and changes more
            last = current[checks].sort_values("date", kind="stable").iloc[-1]
            later = (current["date"] > last["date"]) & (current["flips"] > last["flips"])
            checks = (current.index == last.name) & (not later.any())
        decides = verdicts == ORDER.index(NOT_WITHIN)
        if not decides.any():
            decides = checks if checks.any() else verdicts == verdicts.max()
        basis = current[decides].sort_values(["flips", "decisions"], na_position="first").iloc[-1]
        flips, decisions, verdict = basis["flips"], basis["decisions"], ORDER[verdicts[decides].max()]
        per_text = current["decisions"].min() / np.minimum(N_SAMPLE, newest["texts"])
        if known:
            flips, decisions, per_text = known.changed / known.decisions, known.decisions, known.per_text
            verdict = known.verdict(newest["variant"], not is_cpu(newest["device"]), tolerance)
        cells = current[current["stage"] != "check"].assign(
            verdict=verdict,
            flips=flips,
            decisions=decisions,
            per_text=per_text,
            max_diff=current["max_diff"].max(),
        )
        if len(cells):
            judged.append(cells)
    return pd.concat(judged).sort_index() if judged else rows.assign(verdict="", per_text=np.nan).iloc[:0]


def rank(rows, evidence: EvidenceFile | None = None, tolerance: float = TOLERANCE):
    """Rank variants end to end, each at its best: a DataFrame with `rank` and the columns of judge_variants().

    `factor` is the speed relative to `base`, the speed of `base_name`, see baseline(); nan if there is none.
    `rows`: completed rows of one model, device and dataset, one for each cell. Variants within tolerance come first,
    then those not proven, then those not within tolerance. A variant whose speed range overlaps that of a rank's
    fastest variant shares its rank; within a rank, token budgets come first, then the smallest difference from the
    original. Variants not timed end to end rank after the others. The column `speed`, by which they are ranked, is
    comparable between runs, see add_slowdowns.
    """
    rows = judge_variants(rows, evidence, tolerance)
    base, name = baseline(rows)
    order = rows["verdict"].map(ORDER.index) if len(rows) else rows["verdict"]
    rows = rows.assign(order=order, idle=~(rows["busy"] > BUSY), end_to_end=rows["stage"] == "end-to-end")
    scale = rows.get("slowdown", 1.0)
    rows = rows.assign(speed=rows["messages/s"] * scale, low=rows["min"] * scale, high=rows["max"] * scale)
    rows = rows.sort_values("speed", ascending=False, kind="stable")
    classes = ["order", "end_to_end"]
    best = rows.sort_values(classes, ascending=[True, False], kind="stable").drop_duplicates("variant")
    margin = best["speed"].where(~(best["passes"] > 1), 0) * ONE_PASS_ERROR
    best = best.assign(low=best["low"] - margin, high=best["high"] + margin, rank=0)
    leader, ranks = None, []
    for i, row in enumerate(best.itertuples()):
        comparable = leader is not None and all(getattr(row, name) == getattr(leader, name) for name in classes)
        leader = leader if comparable and row.high >= leader.low else row
        ranks.append(ranks[-1] if leader is not row else i + 1)
    best = best.assign(base=base, base_name=name, factor=best["messages/s"] / base)
    best = best.assign(rank=ranks, safe=best["batching"] == "token-budget", rounded_diff=best["max_diff"].round(4))
    best = best.sort_values(["rank", "safe", "rounded_diff"], ascending=[True, False, True], kind="stable")
    return best.drop(columns=["order", "low", "high", "safe", "rounded_diff"])


def verdict(
    rows,
    evidence: EvidenceFile | None = None,
    tolerance: float = TOLERANCE,
    label_command: Callable | None = None,
    check_advice: Callable | None = None,
) -> list[str]:
    """Return the verdict as lines of at most 80 columns, with commands to copy at the end.

    `rows`: as for rank(); `label_command(winner)`: labels texts, given the row of the winner or None;
    `check_advice(row, texts)`: lines on how to decide a fast variant that is not proven, given its row and the number
    of texts that would probably decide it, or None if no number would. Without them no command is printed.
    """
    ranked = rank(rows, evidence, tolerance)
    timed = ranked[ranked["end_to_end"]]
    groups = {name: timed[timed["verdict"] == name] for name in ORDER}
    within, unproven = groups[WITHIN], groups[UNPROVEN]
    limit = f"{100 * tolerance:g}%"
    lines = ["", "End to end, each variant at its best (workers x threads, batches):"]
    for row in within.to_dict("records"):
        tied = list(within["rank"]).count(row["rank"]) > 1
        lines += variant_line(row, f"{row['rank']}.", " (tie)" if tied else "")
    if len(unproven):
        lines.append(f"Not proven yet to change at most {limit} of the decisions:")
    for row in unproven.to_dict("records"):
        lines += variant_line(row, "?", f"; {changed_words(row)}")
    if len(groups[NOT_WITHIN]):
        lines.append(f"Not within tolerance (more than {limit} of the decisions change):")
    for row in groups[NOT_WITHIN].to_dict("records"):
        lines += variant_line(row, "-", f"; {changed_words(row)}")
    if len(timed) < len(ranked):
        names = ", ".join(ranked["variant"][~ranked["end_to_end"]])
        lines += textwrap.wrap(f"Not timed end to end, so not listed: {names}.", WIDTH, break_on_hyphens=False)
    if ranked["base_name"].any():
        base = ranked.iloc[0]
        lines += textwrap.wrap(f"1.0x is {speed(base['base'])} messages/s: {base['base_name']}.", WIDTH)
    else:
        lines.append("No factors: neither a baseline nor FP32 PyTorch was timed on an idle device.")
    winner = within.iloc[0].to_dict() if len(within) else None
    faster = unproven.sort_values("speed", ascending=False)
    if winner:
        faster = faster[faster["speed"] > winner["speed"]]
    open_row = faster.iloc[0].to_dict() if len(faster) else None
    lines += advice(within, open_row, tolerance)
    if label_command:
        lines += ["To label:", *fold(label_command(winner))]
    if check_advice and open_row and np.isfinite(open_row["decisions"]):
        needed = decisions_needed(changed_of(open_row), int(open_row["decisions"]), tolerance)
        texts = needed and math.ceil(max(needed - open_row["decisions"], 1) / open_row["per_text"])
        lines += check_advice(open_row, texts)
    return lines


def baseline(rows) -> tuple[float, str]:
    """Return the messages/s that are 1.0x, and the name of what reached them; nan if no idle device measured any.

    `rows`: of judge_variants(). These are the fastest baseline end to end that is within tolerance, else the fastest
    baseline. If there is none: FP32 torch end to end, else its forward passes.
    """
    idle = rows[~(rows["busy"] > BUSY)]
    for variants, stage in ((BASELINES, "end-to-end"), (["torch"], "end-to-end"), (["torch"], "forward")):
        found = idle[idle["variant"].isin(variants) & (idle["stage"] == stage)]
        found = found[found["verdict"] == WITHIN] if WITHIN in set(found["verdict"]) else found
        if len(found):
            best = found.loc[found["messages/s"].idxmax()]
            return best["messages/s"], base_name(best)
    return math.nan, ""


def variant_line(row: dict, mark: str, remark: str = "") -> list[str]:
    factor = "" if math.isnan(row["factor"]) else f"{row['factor']:.1f}x"
    if not row["idle"]:
        remark = f" (busy device){remark}"
    line = f"{mark:<4}{row['variant']:<19}{speed(row['messages/s']):>8} messages/s {factor:>6}  "
    line += f"{row['workers']} x {row['threads']}, {batches(row)}{remark}"
    return textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def advice(within, open_row: dict | None, tolerance: float) -> list[str]:
    """Return which variant to use, from the ranked rows within tolerance, and the fastest one not proven."""
    sentences = "No variant is proven to be within tolerance; labelling uses FP32 PyTorch."
    if len(within):
        winner = within.iloc[0]
        tied = within[within["rank"] == 1]
        sentences = f"Use {winner['variant']} now."
        if len(tied) > 1:
            closest = round(winner["max_diff"], 4) <= round(tied["max_diff"].min(), 4)
            reason = "it is the closest to the original" if closest else "it has a token budget"
            sentences = f"Use {winner['variant']} now: {len(tied)} variants tie, and {reason}."
        if not winner["idle"]:
            sentences += " Other processes kept the device busy, so it may be faster than this."
    if open_row:
        sentences += f" {open_row['variant']} is "
        if len(within):
            sentences += f"{open_row['speed'] / winner['speed']:.1f} times as fast and "
        words = "its outputs were not compared"
        if np.isfinite(open_row["decisions"]):
            words = share_words(changed_of(open_row), int(open_row["decisions"]), tolerance)
        sentences += f"still open: {words}."
    return textwrap.wrap(sentences, WIDTH, break_on_hyphens=False)


def changed_words(row) -> str:
    return f"{flips_words(row)} changed" if np.isfinite(row["flips"]) else "outputs not compared"


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
