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
from bench.measure.sweep import Sweep, format_figures, new_counter
from bench.measure.token_cache import TokenizedTexts
from bench.measure.worker import Worker
from bench.model.parity import ParityCounter
from bench.model.reference import CachedReference
from bench.processes import ProcessPool
from bench.report.judged import changed_of
from bench.tables.items import Item

BLOCK_TEXTS = 64  # that all variants and the original run in turn, between two looks at the clock


@dataclass
class FurtherCheck:
    """A variant that is checked on more texts: its parity so far, those of the sweep included."""

    cell: Cell  # the batching that changed most in the sweep, of stage check
    parity: ParityCounter
    look: int = 1  # see judge.alpha_for_look
    last: bool = False
    texts: int = 0  # of the further texts, as are all that follow
    seconds: float = 0.0
    tokens: int = 0
    padded_tokens: int = 0

    def run(self, workers: ProcessPool, texts: list[Item], reference: np.ndarray) -> None:
        """Run the variant over more texts, and count. `reference`: [texts, labels], nan for texts without a token."""
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            json.dump(texts, file)
            file.flush()
            shares = workers.call(Worker.predict_share, Path(file.name), self.cell.batching)
        answers = np.full(reference.shape, np.nan)
        for indices, predictions in shares:
            answers[indices] = predictions.answers
            self.tokens += predictions.tokens
            self.padded_tokens += predictions.padded_tokens
        self.seconds += max(share.end for _, share in shares) - min(share.start for _, share in shares)
        self.parity.add(answers, reference)
        self.texts += len(texts)

    def columns(self) -> dict[str, str]:
        """Return the measured columns of its row."""
        speed = self.texts / self.seconds
        figures = {"messages/s": speed, "min": speed, "max": speed, "passes": 1, "tokens/s": self.tokens / self.seconds}
        figures["padding"] = self.padded_tokens / self.tokens if self.tokens else 1.0
        return format_figures(figures | self.parity.columns(self.alpha)) | {"status": "ok"}

    @property
    def alpha(self) -> float:
        return alpha_for_look(self.look, self.last)


def continue_check(sweep: Sweep, rows) -> FurtherCheck:
    """Begin with the counts of the batching that changed most. `rows`: a DataFrame of a variant's cells."""
    worst = rows.sort_values(["flips", "messages/s"]).iloc[-1]
    parity = new_counter(sweep, worst["variant"])
    parity.changed, parity.decisions = changed_of(worst), int(worst["decisions"])
    parity.max_diff = float(rows["max_diff"].max())
    return FurtherCheck(replace(cell_of(worst), stage="check"), parity)


def check_more(
    sweep: Sweep, workers: dict[Cell, ProcessPool], checks: dict[Cell, FurtherCheck]
) -> Iterator[tuple[Cell, dict]]:
    """Runs variants over more texts until it can be told whether each is within tolerance; yields as run_cells.

    `checks`: of the cells whose variants are not proven, the fastest first; `workers`: of each cell. It ends when the
    fastest that is left is proven, when there are no more texts, or when the sweep's check_time is over.
    """
    texts, left, at, deadline = sweep.more_texts, dict(checks), 0, time.monotonic() + sweep.check_time
    done = len(sweep.tokens.sample)
    per_text = max(1, next(iter(checks.values())).parity.decisions // done)
    with CachedReference(sweep.model, sweep.device.gpu) as original:
        for look in range(2, 99):
            enough = math.ceil(decisions_needed(0, 1, alpha=alpha_for_look(look)) / per_text)
            end = max(2 * (done + at), enough) - done
            while at < min(end, len(texts)) and time.monotonic() < deadline:
                block = texts[at : min(at + BLOCK_TEXTS, end)]
                reference = original.answers(block)
                for cell, check in left.items():
                    check.run(workers[cell], block, reference)
                at += len(block)
            if not at:
                return
            proven = False
            for cell, check in [*left.items()]:
                check.look, check.last = look, at < end
                verdict = check.parity.verdict(check.alpha)
                if verdict != UNPROVEN or proven or at < end:  # what is slower than a proven one need not be proven
                    proven = proven or verdict == WITHIN
                    del left[cell]
                    yield check.cell, check.columns()
            if not left:
                return


def more_texts(all_texts: list[str], tokens: TokenizedTexts) -> list[str]:
    """Returns the texts of a dataset that the sweep did not compare, each once, in an order of chance."""
    own = tokens.texts()
    compared = {own[i] for i in tokens.sample}
    others = [text for text in dict.fromkeys(all_texts) if text not in compared]
    return [others[i] for i in np.random.default_rng(0).permutation(len(others))]
