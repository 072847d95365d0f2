"""Rows -> each variant judged as a whole: by its worst batching, or by the texts that were checked behind the sweep."""

import numpy as np

from bench.judge import N_SAMPLE, NOT_WITHIN, TOLERANCE, UNPROVEN, VERDICTS, is_rounded, judge
from runtimes import VARIANTS

ORDER = list(VERDICTS.values())  # the best first
JUDGED = ["model", "device", "dataset", "texts", "texts_id", "weights_id", "threshold", "variant"]


def judge_row(row) -> str:
    """Returns WITHIN, UNPROVEN or NOT_WITHIN for a row of results: what it says, or one without `within` by its counts.

    Rows whose outputs nobody compared are UNPROVEN; older ones, which count no decisions, can be NOT_WITHIN.
    """
    if row["within"]:
        return VERDICTS.get(row["within"], UNPROVEN)
    if not np.isfinite(row["decisions"]):
        return NOT_WITHIN if row["flips"] > TOLERANCE else UNPROVEN
    variant = VARIANTS.get(row["variant"])
    rounded = is_rounded(variant.precision if variant else "", row["max_diff"])
    return judge(changed_of(row), int(row["decisions"]), rounded=rounded)


def changed_of(row) -> int:
    return round(row["flips"] * row["decisions"])


def judge_variants(rows):
    """Returns the rows of cells, each with its variant's `verdict` and what that rests on: a DataFrame.

    `rows`: one for each cell, of the stages forward and end-to-end, and of the stage check where more texts were
    checked behind the sweep. A variant is judged by that check, else by the batching that changed most; one batching
    that is NOT_WITHIN is enough. Rows of other versions or commits than the latest count for themselves alone.
    `flips`, `decisions`, `max_diff`: of what decided; `per_text`: decisions of a text.
    """
    import pandas as pd

    found = []
    for _, group in rows.groupby(JUDGED, sort=False, dropna=False):
        newest = group.loc[group["date"].sort_values(kind="stable").index[-1]]
        current = group[(group["versions"] == newest["versions"]) & (group["commit"] == newest["commit"])]
        verdicts = np.array([ORDER.index(judge_row(row)) for row in current.to_dict("records")])
        checks, cells = (current["stage"] == "check").to_numpy(), group[group["stage"] != "check"]
        if checks.any():  # a batching that was measured later, and changes more, is not what was checked
            last = current[checks].iloc[-1]
            later = (current["date"] > last["date"]) & (current["flips"] > last["flips"])
            checks = checks & (not later.any())
        decides = verdicts == ORDER.index(NOT_WITHIN)
        decides = decides if decides.any() else checks if checks.any() else verdicts == verdicts.max()
        basis = current[decides].sort_values(["flips", "decisions"], na_position="first").iloc[-1]
        verdict = ORDER[verdicts[decides].max()]
        per_text = current["decisions"].min() / np.minimum(N_SAMPLE, newest["texts"])
        shown = {"verdict": verdict, "flips": basis["flips"], "decisions": basis["decisions"], "per_text": per_text}
        own = cells.assign(**shown, max_diff=current["max_diff"].max())
        older = ~own.index.isin(current.index)
        of_rows = [judge_row(row) for row in group.loc[own.index].to_dict("records")]
        worse = [max(verdict, of_row, key=ORDER.index) for of_row in of_rows]
        found.append(own.assign(verdict=np.where(older, worse, verdict)))
    empty = rows.assign(verdict="", per_text=np.nan).iloc[:0]
    return pd.concat([own for own in found if len(own)]).sort_index() if any(map(len, found)) else empty
