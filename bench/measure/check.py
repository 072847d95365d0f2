"""Checks variants that are not proven yet on more texts, until each is decided or the time runs out.

The decisions of a variant are tested several times while their number grows, see bench/judge.py. The sweep was look 1.
Look 2 comes when there are enough decisions for a proof if none changed, and at least twice as many as before; every
further look when their number has doubled again. It never depends on what was observed, so the 5% hold.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bench.judge import UNPROVEN, WITHIN, alpha_for_look, decisions_needed
from bench.measure.cells import Cell, cell_of
from bench.measure.sweep import Sweep, format_figures, new_counter
from bench.measure.worker import Worker
from bench.model.parity import ParityCounter
from bench.model.reference import CachedReference
from bench.processes import ProcessPool
from bench.report.verdict import changed_of
from bench.tables.items import Item

BLOCK_TEXTS = 64  # texts that all variants and the original run, alternating, before the time is checked again


@dataclass
class FurtherCheck:
    """A variant that is checked on more texts."""

    cell: Cell  # of stage check, with the batching that changed most in the sweep
    parity: ParityCounter  # includes the counts of the sweep
    texts: int = 0  # number of further texts; the following fields are about these
    seconds: float = 0.0
    tokens: int = 0
    padded_tokens: int = 0

    def run(self, workers: ProcessPool, texts: list[Item], reference: np.ndarray) -> None:
        """Run the variant over more texts. `reference`: [texts, labels], nan for texts without a token."""
        shares = workers.call(Worker.predict_share, texts, self.cell.batching)
        answers = np.full(reference.shape, np.nan)
        for indices, predictions in shares:
            answers[indices] = predictions.answers
            self.tokens += predictions.tokens
            self.padded_tokens += predictions.padded_tokens
        self.seconds += max(share.end for _, share in shares) - min(share.start for _, share in shares)
        self.parity.add(answers, reference)
        self.texts += len(texts)

    def columns(self, alpha: float) -> dict[str, str]:
        """Return the measured columns of its row. `alpha`: of the look that decided, see judge.alpha_for_look."""
        speed = self.texts / self.seconds
        figures = {"messages/s": speed, "min": speed, "max": speed, "passes": 1, "tokens/s": self.tokens / self.seconds}
        figures["padding"] = self.padded_tokens / self.tokens if self.tokens else 1.0
        return format_figures(figures | self.parity.columns(alpha)) | {"status": "ok"}


def continue_check(sweep: Sweep, rows) -> FurtherCheck:
    """Start from the counts of the batching that changed most. `rows`: a DataFrame of a variant's cells."""
    worst = rows.sort_values(["flips", "messages/s"]).iloc[-1]
    parity = new_counter(sweep, worst["variant"])
    parity.changed, parity.decisions = changed_of(worst), int(worst["decisions"])
    parity.max_diff = float(rows["max_diff"].max())
    return FurtherCheck(replace(cell_of(worst), stage="check"), parity)


def check_more(
    sweep: Sweep, workers: dict[Cell, ProcessPool], checks: dict[Cell, FurtherCheck]
) -> Iterator[tuple[Cell, dict]]:
    """Check variants on more texts, until the fastest remaining one is proven, or the texts or the time run out.

    `checks`: one for each cell whose variant is not proven, the fastest first. Yields as run_cells.
    """
    texts, swept = sweep.more_texts, len(sweep.tokens.sample)
    deadline = time.monotonic() + sweep.check_time
    remaining = dict(checks)
    checked = 0
    per_text = max(1, next(iter(checks.values())).parity.decisions // swept)
    with CachedReference(sweep.model, sweep.device.gpu) as original:
        for look in range(2, 99):
            enough = math.ceil(decisions_needed(0, 1, alpha=alpha_for_look(look)) / per_text)
            end = max(2 * (swept + checked), enough) - swept
            while checked < min(end, len(texts)) and time.monotonic() < deadline:
                block = texts[checked : min(checked + BLOCK_TEXTS, end)]
                reference = original.answers(block)
                for cell, check in remaining.items():
                    check.run(workers[cell], block, reference)
                checked += len(block)
            if not checked:
                return
            is_last = checked < end  # the texts or the time ran out
            alpha = alpha_for_look(look, is_last)
            proven = False
            for cell, check in list(remaining.items()):
                verdict = check.parity.verdict(alpha)
                if verdict != UNPROVEN or proven or is_last:  # a variant slower than a proven one needs no proof
                    proven = proven or verdict == WITHIN
                    del remaining[cell]
                    yield check.cell, check.columns(alpha)
            if not remaining:
                return


def more_texts(all_texts: list[Item], compared: list[Item]) -> list[Item]:
    """Return the texts that the sweep did not compare, without duplicates, in random order."""
    known = set(compared)
    others = [text for text in dict.fromkeys(all_texts) if text not in known]
    return [others[i] for i in np.random.default_rng(0).permutation(len(others))]
