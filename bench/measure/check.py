"""Checks variants that are not proven yet on more texts, until each is decided, or the texts or the time run out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.judge import NOT_WITHIN, UNPROVEN
from bench.measure.cells import Cell
from bench.measure.sweep import Sweep, compare, format_figures
from bench.measure.worker import Worker
from bench.model.parity import parity_columns
from bench.model.reference import CachedReference
from bench.processes import ProcessPool
from bench.tables.items import Item, hash_item

BLOCK_TEXTS = 64  # texts that all variants and the original run, alternating, before the time is checked again


@dataclass
class FurtherCheck:
    """A variant that is checked on more texts. What it finds is added to the evidence of the sweep."""

    sweep: Sweep
    cell: Cell  # of stage check, with the batching that changed most in the sweep
    texts: int = 0  # number of texts compared; the following fields are about these
    seconds: float = 0.0
    tokens: int = 0
    padded_tokens: int = 0

    @property
    def verdict(self) -> str:
        return self.sweep.verdict(self.cell.variant)

    def missing(self, texts: Sequence[Item]) -> list[int]:
        """Return the indices of the texts that were never compared for this variant."""
        known = self.sweep.evidence.of_key(self.sweep.keys[self.cell.variant]).changes
        return [i for i, text in enumerate(texts) if hash_item(text) not in known]

    def run(self, workers: ProcessPool, texts: list[Item], reference: np.ndarray) -> None:
        """Run the variant over more texts. `reference`: [texts, labels], nan for texts without a token."""
        shares = workers.call(Worker.predict_share, texts, self.cell.batching)
        answers = np.full(reference.shape, np.nan)
        for indices, predictions in shares:
            answers[indices] = predictions.answers
            self.tokens += predictions.tokens
            self.padded_tokens += predictions.padded_tokens
        self.seconds += max(share.end for _, share in shares) - min(share.start for _, share in shares)
        self.texts += len(texts)
        compare(self.sweep, self.cell.variant, texts, answers, reference)

    def columns(self) -> dict[str, str]:
        """Return the measured columns of its row; the changed decisions are those of all evidence."""
        speed = self.texts / self.seconds
        figures = {"messages/s": speed, "min": speed, "max": speed, "passes": 1, "tokens/s": self.tokens / self.seconds}
        figures["padding"] = self.padded_tokens / self.tokens if self.tokens else 1.0
        evidence = self.sweep.evidence.of_key(self.sweep.keys[self.cell.variant])
        verdict = evidence.verdict(self.cell.variant, self.sweep.device.gpu is not None)
        return format_figures(figures | parity_columns(evidence, verdict)) | {"status": "ok"}


def check_more(sweep: Sweep, workers: dict[Cell, ProcessPool], checks: dict[Cell, FurtherCheck]) -> None:
    """Compare more texts, until the fastest remaining variant is proven, or the texts or the time run out.

    `checks`: one for each cell whose variant is not proven, the fastest first. Each text runs only for the variants
    that have not been compared on it. A variant slower than a proven one needs no proof.
    """
    end = min(time.monotonic() + sweep.check_time, sweep.deadline)
    with CachedReference(sweep.model, sweep.device.gpu) as original:
        for start in range(0, len(sweep.more_texts), BLOCK_TEXTS):
            block = sweep.more_texts[start : start + BLOCK_TEXTS]
            missing = {cell: check.missing(block) for cell, check in undecided(checks).items()}
            if not missing or time.monotonic() > end:
                return
            if not any(missing.values()):
                continue
            reference = original.answers(block)
            for cell, indices in missing.items():
                if indices:
                    checks[cell].run(workers[cell], [block[i] for i in indices], reference[indices])


def undecided(checks: dict[Cell, FurtherCheck]) -> dict[Cell, FurtherCheck]:
    """Return the checks that are still worth making, see check_more."""
    remaining = {}
    for cell, check in checks.items():
        if check.verdict == UNPROVEN:
            remaining[cell] = check
        elif check.verdict != NOT_WITHIN:
            break
    return remaining


def in_random_order(texts: Sequence[Item]) -> list[Item]:
    """Return the texts without duplicates, in an order that is the same in each run."""
    texts = list(dict.fromkeys(texts))
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
