"""Variants that are not proven yet -> more texts, until it can be told or the time is spent.

The decisions of a variant are looked at several times while their number grows, see judge: the sweep was look 1. Look 2
comes when there are enough for a proof if none changed, and twice as many as before; each further one after as many
again. How many texts a look has follows from nothing that was seen, so that the 5% hold.
"""

import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.judge import UNPROVEN, WITHIN, alpha_for_look, decisions_needed
from bench.measure.cells import Cell, cell_of
from bench.measure.sweep import Sweep, format_figures, parity_columns
from bench.measure.token_cache import TokenizedTexts
from bench.measure.worker import Worker
from bench.model.reference import CachedReference
from bench.parity import probabilities
from bench.processes import ProcessPool
from bench.report.judged import VERDICTS, changed_of
from runtimes import VARIANTS

BLOCK_TEXTS = 64  # that all variants and the original run in turn, between two looks at the clock


@dataclass
class ParityCounter:
    """What was found of a variant so far, with the texts of the sweep.

    `cell`: the batching that changed most there, of stage check; look, last: see judge.alpha_for_look; texts, seconds,
    tokens, padded_tokens: of the further texts that it ran.
    """

    cell: Cell
    changed: int
    decisions: int
    max_diff: float
    not_finite: int = 0
    look: int = 1
    last: bool = False
    texts: int = 0
    seconds: float = 0.0
    tokens: int = 0
    padded_tokens: int = 0

    def run(self, sweep: Sweep, workers: ProcessPool, texts: list[str], reference: np.ndarray) -> None:
        """Runs the variant over more texts, and counts. `reference`: nan where a text has no token."""
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            json.dump(texts, file)
            file.flush()
            shares = workers.call(Worker.predict_share, Path(file.name), self.cell.batching)
        probs = np.full(reference.shape, np.nan)
        for indices, predictions in shares:
            probs[indices] = probabilities(predictions.logits, sweep.model.problem_type)
            self.tokens += predictions.tokens
            self.padded_tokens += predictions.padded_tokens
        self.seconds += max(share.end for _, share in shares) - min(share.start for _, share in shares)
        full = np.isfinite(reference).all(axis=1)
        if full.any():
            self.not_finite += int((~np.isfinite(probs[full]).all(axis=1)).sum())
            changed, decisions = sweep.model.rule.count_flips(
                probs[full], reference[full], sweep.tokens.reference.std(axis=0)
            )
            self.changed, self.decisions = self.changed + changed, self.decisions + decisions
            self.max_diff = float(np.fmax(self.max_diff, np.abs(probs - reference)[full].max()))
        self.texts += len(texts)

    def columns(self, sweep: Sweep) -> dict[str, str]:
        """Returns the measured columns of its row."""
        speed = self.texts / self.seconds
        figures = {"messages/s": speed, "min": speed, "max": speed, "passes": 1, "tokens/s": self.tokens / self.seconds}
        figures["padding"] = self.padded_tokens / self.tokens if self.tokens else 1.0
        precision = VARIANTS[self.cell.variant].computes_in(sweep.device.gpu)
        alpha = alpha_for_look(self.look, self.last)
        figures |= parity_columns(precision, (self.changed, self.decisions), self.max_diff, alpha)
        figures |= {"within": "no"} if self.not_finite else {}
        return format_figures(figures) | {"status": "ok"}

    def verdict(self, sweep: Sweep) -> str:
        return VERDICTS[self.columns(sweep)["within"]]


def counter_of(rows) -> ParityCounter:
    """Starts the count of a variant with that of the batching that changed most. `rows`: of its cells."""
    worst = rows.sort_values(["flips", "messages/s"]).iloc[-1]
    cell = replace(cell_of(worst), stage="check")
    return ParityCounter(cell, changed_of(worst), int(worst["decisions"]), float(rows["max_diff"].max()))


def check_more(
    sweep: Sweep, workers: dict[Cell, ProcessPool], counters: dict[Cell, ParityCounter]
) -> Iterator[tuple[Cell, dict]]:
    """Runs variants over more texts until it can be told whether each is within tolerance; yields as run_cells.

    `counters`: of the cells whose variants are not proven, the fastest first; `workers`: of each cell. It ends when the
    fastest that is left is proven, when there are no more texts, or when the sweep's check_time is over.
    """
    texts, left, at, deadline = sweep.more_texts, dict(counters), 0, time.monotonic() + sweep.check_time
    done = len(sweep.tokens.sample)
    per_text = max(1, next(iter(counters.values())).decisions // done)
    with CachedReference(sweep.model, sweep.device.gpu) as original:
        for look in range(2, 99):
            enough = math.ceil(decisions_needed(0, 1, alpha=alpha_for_look(look)) / per_text)
            end = max(2 * (done + at), enough) - done
            while at < min(end, len(texts)) and time.monotonic() < deadline:
                block = texts[at : min(at + BLOCK_TEXTS, end)]
                reference = original.probabilities(block)
                for cell, counter in left.items():
                    counter.run(sweep, workers[cell], block, reference)
                at += len(block)
            if not at:
                return
            proven = False
            for cell, counter in [*left.items()]:
                counter.look, counter.last = look, at < end
                verdict = counter.verdict(sweep)
                if verdict != UNPROVEN or proven or at < end:  # what is slower than a proven one need not be proven
                    proven = proven or verdict == WITHIN
                    del left[cell]
                    yield counter.cell, counter.columns(sweep)
            if not left:
                return


def more_texts(all_texts: list[str], tokens: TokenizedTexts) -> list[str]:
    """Returns the texts of a dataset that the sweep did not compare, each once, in an order of chance."""
    own = tokens.texts()
    compared = {own[i] for i in tokens.sample}
    others = [text for text in dict.fromkeys(all_texts) if text not in compared]
    return [others[i] for i in np.random.default_rng(0).permutation(len(others))]
