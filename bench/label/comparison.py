"""Rows of the output beside the original: what was written, and what transformers' own call says of the texts."""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.judge import NOT_WITHIN, UNPROVEN, alpha_for_look, is_rounded, judge
from bench.label.output import read_footer
from bench.label.rows import DEAD, OutputSpec
from bench.label.sample import Sample
from bench.model.model import Model
from bench.model.reference import PADDING_TOLERANCE, CachedReference
from bench.model.task import Task
from bench.tables.storage import Location
from utils import RunError

HALF_ROUNDING = 2**-11  # of a score: float16 has 11 bits


@dataclass
class Comparison:
    """Rows of the output beside the original: where they are, and what was found after so many looks.

    precision: of the variant, empty if that is not known; output: what is in the parts of the folder;
    gpu: where the original runs, None for the CPU; no_answer: rows with nulls where the original has an answer.
    """

    model: Model
    precision: str
    output: OutputSpec
    folder: Location
    gpu: int | None
    rows: int = 0
    changed: int = 0
    decisions: int = 0
    largest: float = 0.0
    scale: float = 1.0
    no_answer: int = 0
    looks: int = 0
    seconds: float = 0.0

    @property
    def task(self) -> Task:
        """The task of the columns that are written."""
        if self.output.top_label:
            return self.model.task.top_label()
        return self.model.task.of_labels(self.output.written)

    def look(self, samples: list[Sample]) -> None:
        """Compares what is written in the parts with what the original says of the texts, and counts it.

        The original runs text by text in a process of its own, which ends then.
        """
        start, samples = time.monotonic(), [self.without_dead(sample) for sample in samples if sample.rows]
        texts = [text for sample in samples for text in sample.texts]
        if not texts:
            return
        with CachedReference(self.model, self.gpu, long=self.output.long) as original:
            reference = original.answers(texts)
        written = [read_answers(self.folder, sample, self.output) for sample in samples]
        if self.output.written != self.output.labels:
            reference = reference[:, self.output.places]
        probs = np.concatenate([np.empty(reference[:0].shape), *(of_part for of_part, _ in written)])
        if self.output.min_score is not None:  # a null says that the score is below, no more
            probs = np.where(np.isnan(probs), np.minimum(reference, self.output.min_score), probs)
        labels = np.concatenate([np.empty(0, int), *(best for _, best in written)])
        full = np.isfinite(reference).all(axis=1)
        probs, labels, reference = probs[full], labels[full], reference[full]
        self.looks, self.rows = self.looks + 1, self.rows + len(reference)
        self.seconds += time.monotonic() - start
        if not len(reference):
            return
        if self.output.top_label and len(self.output.labels) > 1:
            changed, decisions = int((labels != reference.argmax(axis=1)).sum()), len(reference)
        else:
            changed, decisions = self.task.count_flips(probs, reference)
        self.changed, self.decisions = self.changed + changed, self.decisions + decisions
        self.no_answer += 0 if self.output.min_score is not None else int((labels < 0).sum())
        differences = np.abs(probs - reference)[np.isfinite(probs)]
        self.largest = max(self.largest, float(differences.max(initial=0.0)))
        self.scale = max(self.scale, float(np.abs(reference).max()))  # above 1 in a regression

    def without_dead(self, sample: Sample) -> Sample:
        """Leaves out the texts on which a worker failed, which are named in BAD_FILE."""
        if not (footer := read_footer(self.folder / sample.part)):
            raise RunError(f"{self.folder / sample.part} was damaged after it was written")
        dead = {place["row"] for place in footer.bad if place["reason"].startswith(DEAD)}
        kept = [(row, text) for row, text in zip(sample.rows, sample.texts, strict=True) if row not in dead]
        return Sample(sample.part, [row for row, _ in kept], [text for _, text in kept])

    def verdict(self) -> tuple[str, str]:
        """Returns WITHIN, UNPROVEN or NOT_WITHIN, and why."""
        if not self.decisions:
            return UNPROVEN, "no row could be compared"
        words = f"{self.changed:,} of {self.decisions:,} decisions changed, largest difference {self.largest:.2g}"
        if self.no_answer:
            return NOT_WITHIN, f"{words}; {self.no_answer} texts have nulls that the original answers"
        half = HALF_ROUNDING * self.scale * self.output.half
        if self.precision == "fp32" and self.largest > PADDING_TOLERANCE * self.scale + half:
            return NOT_WITHIN, f"{words}, where rounding in FP32 gives less than 0.0001"
        of_label_chosen_before = half * self.output.top_label  # while a threshold sees the score as it is written
        rounded = is_rounded(self.precision, self.largest - of_label_chosen_before)
        verdict = judge(self.changed, self.decisions, alpha=alpha_for_look(self.looks), rounded=rounded)
        return verdict, words + ", which is rounding in FP32" * (rounded and not self.changed)


def read_answers(folder: Location, sample: Sample, output: OutputSpec) -> tuple[np.ndarray, np.ndarray]:
    """Reads what a part says of some rows: (float64 [rows, labels], the best label's index [rows], -1 for nulls).

    With `top_label` only the best label has a probability; the others are nan.
    """
    part = folder / sample.part
    with part.open_seekable() as file:
        table = pq.ParquetFile(file).read(columns=output.scored).take(pa.array(sample.rows))
    if output.top_label:
        names, scores = (table[name].to_pylist() for name in output.scored)
        best = np.array([-1 if name is None else output.labels.index(name) for name in names], dtype=int)
        probs = np.full((len(best), len(output.labels)), np.nan)
        probs[np.arange(len(best)), best] = [np.nan if score is None else score for score in scores]
        return probs, best
    probs = np.array([table[name].to_pylist() for name in output.scored], dtype=float).T
    return probs, np.where(np.isfinite(probs).all(axis=1), np.nan_to_num(probs).argmax(axis=1), -1)
