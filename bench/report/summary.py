"""All rows -> one row for each variant at its best: what the figures and the READMEs show."""

from dataclasses import dataclass

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.model.embedding import Embedding
from bench.model.random_model import RANDOM_MODEL
from bench.report.evidence import EvidenceFile
from bench.report.table import BASELINES, is_cpu
from bench.report.verdict import rank
from runtimes import VARIANTS
from utils import say

COMPARED = ["model", "device", "dataset"]  # rows that agree in these are compared with each other
SET = ["texts", "texts_id", "weights_id", "threshold"]  # one set per combination of these is shown
# a variant's `state`: FASTEST is the one to use, which may tie with a faster one; the usual baselines are never it
FASTEST, PROVEN, OPEN, REFUSED, BASELINE = "recommended", "proven", "not proven", "refused", "baseline"
USUAL = "pipeline", "sentence-transformers"  # what most people run
STATES = {WITHIN: PROVEN, UNPROVEN: OPEN, NOT_WITHIN: REFUSED}


def keep_fullest(rows):
    """Keep, for each model, device and dataset, the rows of the texts and weights with the most cells."""
    cells = rows.groupby([*COMPARED, *SET]).size().reset_index(name="cells")
    chosen = cells.sort_values(["cells", "texts"]).drop_duplicates(COMPARED, keep="last")
    for _, row in cells.drop(chosen.index).iterrows():
        texts = f"{row['texts']} texts {row['texts_id']}".strip()
        say(f"{', '.join(row[COMPARED])}: skipped {row['cells']} cell(s) on {texts}; other texts have more")
    return rows.merge(chosen[[*COMPARED, *SET]])


def summarize(cells, evidence: EvidenceFile):
    """Return a row for each variant of each model, device and dataset, see verdict.rank; the fastest machine first.

    Added are the `state`, and the speed and the share of the peak of the fastest `forward` passes.
    """
    import pandas as pd

    bests = pd.concat([rank(group, evidence) for _, group in cells.groupby(COMPARED)], ignore_index=True)
    key = [*COMPARED, "variant"]
    forward = cells[cells["stage"] == "forward"].sort_values("messages/s", ascending=False, kind="stable")
    forward = forward.drop_duplicates(key).set_index(key)[["messages/s", "mfu"]]
    bests = bests.join(forward.set_axis(["forward", "peak"], axis="columns"), on=key)
    is_baseline = bests["variant"].isin(BASELINES)
    winners = bests[(bests["verdict"] == WITHIN) & bests["end_to_end"] & ~is_baseline].drop_duplicates(COMPARED)
    state = bests["verdict"].map(STATES).mask(is_baseline, BASELINE).mask(bests.index.isin(winners.index), FASTEST)
    top = bests.groupby(COMPARED)["messages/s"].transform("max")
    bests = bests.assign(state=state, top=top).sort_values(["top", "messages/s"], ascending=False, kind="stable")
    return bests.drop(columns="top").reset_index(drop=True).reset_index()


@dataclass(frozen=True)
class Headline:
    """The fastest proven variant of a model on a machine, and all others that were timed there end to end."""

    winner: dict
    variants: dict[str, dict]  # variant -> its row, the fastest first

    @property
    def kind(self) -> str:
        if any(name in VARIANTS and VARIANTS[name].library in Embedding.libraries for name in self.variants):
            return "embedding"
        if not is_cpu(self.winner["device"]):
            return "GPU"
        return "CPU with BF16" if any("bf16" in variant for variant in self.variants) else "CPU"

    @property
    def order(self) -> tuple:
        """The largest is the best measured: a trained classifier, many baselines, variants and texts."""
        row, baselines = self.winner, sum(row["state"] == BASELINE for row in self.variants.values())
        task = row["model"] != RANDOM_MODEL, self.kind != "embedding", row["dataset"].endswith("normal")
        return *task, baselines, len(self.variants), row["texts"], row["messages/s"]

    @property
    def base(self) -> list[dict]:
        """The baseline that is 1.0x, if it is one."""
        return [row for row in self.variants.values() if row["state"] == BASELINE and row["factor"] == 1]

    @property
    def refused(self) -> dict | None:
        """The fastest refused variant, if it is faster than the winner."""
        refused = (row for row in self.variants.values() if row["state"] == REFUSED)
        return next((row for row in refused if row["messages/s"] > self.winner["messages/s"]), None)

    def steps(self) -> list[dict]:
        """Return rows from the usual baseline to the winner, each faster than the one before, different in one thing.

        The usual baseline is the first of USUAL that was measured; if none was, it is the fastest.
        """
        runtime, _, precision = self.winner["variant"].partition("-")
        rows = [self.variants[name] for name in USUAL if name in self.variants][:1] or self.base[:1]
        for name in ("torch", f"torch-{precision}", runtime, self.winner["variant"]):
            row = self.variants.get(name, {"messages/s": 0})
            before = rows[-1]["messages/s"] if rows else 0
            if before < row["messages/s"] <= self.winner["messages/s"] and row["state"] in (PROVEN, FASTEST):
                rows.append(row)
        return rows


def headlines(bests) -> list[Headline]:
    """Return one for each model and machine, the best measured first."""
    found = []
    for _, group in bests[bests["end_to_end"] & bests["base"].notna()].groupby(COMPARED):
        rows = {row["variant"]: row for row in group.to_dict("records")}
        found += [Headline(row, rows) for row in rows.values() if row["state"] == FASTEST and len(rows) > 1]
    chosen = {}
    for headline in sorted(found, key=lambda headline: headline.order, reverse=True):
        chosen.setdefault((headline.winner["model"], headline.winner["device"]), headline)
    return list(chosen.values())
