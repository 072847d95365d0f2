"""The receipt of a labelling run: what was labelled and how, and some rows of it beside the original."""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.inputs.model import Model
from bench.inputs.reference import PADDING_TOLERANCE, Original
from bench.judge import NOT_WITHIN, UNPROVEN, alpha_of, is_rounded, judge
from bench.label.output import (
    BAD_FILE,
    RECEIPT_FILE,
    Footer,
    read_footer,
    read_footers,
    read_object,
    with_shard,
    write_bad_rows,
    write_object,
)
from bench.label.rows import DEAD, Counts, OutputSpec
from bench.label.sample import Sample, add_sample
from bench.parity import DecisionRule
from bench.storage import Location
from utils import RunError, say

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

    def look(self, samples: list[Sample]) -> None:
        """Compares what is written in the parts with what the original says of the texts, and counts it.

        The original runs text by text in a process of its own, which ends then.
        """
        start, samples = time.monotonic(), [self.without_dead(sample) for sample in samples if sample.rows]
        texts = [text for sample in samples for text in sample.texts]
        if not texts:
            return
        with Original(self.model, self.gpu, long=self.output.long) as original:
            reference = original.probabilities(texts)
        written = [read_answers(self.folder, sample, self.output) for sample in samples]
        rule = self.model.rule
        if self.output.written != self.output.labels:
            places, kind = self.output.places, rule.problem_type
            if kind == "single_label_classification":
                kind = "multi_label_classification"  # the best of all labels is not known
            reference, rule = reference[:, places], DecisionRule(kind, tuple(rule.thresholds[i] for i in places))
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
            changed, decisions = rule.count_flips(probs, reference)
        self.changed, self.decisions = self.changed + changed, self.decisions + decisions
        self.no_answer += 0 if self.output.min_score is not None else int((labels < 0).sum())
        differences = np.abs(probs - reference)[np.isfinite(probs)]
        self.largest = max(self.largest, float(differences.max(initial=0.0)))
        self.scale = max(self.scale, float(np.abs(reference).max()))  # above 1 in a regression

    def without_dead(self, sample: Sample) -> Sample:
        """Leaves out the texts on which a worker failed, which are named in BAD_FILE."""
        footer = read_footer(self.folder / sample.part)
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
        verdict = judge(self.changed, self.decisions, alpha=alpha_of(self.looks), rounded=rounded)
        return verdict, words


def read_answers(folder: Location, sample: Sample, output: OutputSpec) -> tuple[np.ndarray, np.ndarray]:
    """Reads what a part says of some rows: (float64 [rows, labels], the best label's index [rows], -1 for nulls).

    With `top_label` only the best label has a probability; the others are nan.
    """
    part = folder / sample.part
    with part.open_anywhere() as file:
        table = pq.ParquetFile(file).read(columns=output.scored).take(pa.array(sample.rows))
    if output.top_label:
        names, scores = (table[name].to_pylist() for name in output.scored)
        best = np.array([-1 if name is None else output.labels.index(name) for name in names], dtype=int)
        probs = np.full((len(best), len(output.labels)), np.nan)
        probs[np.arange(len(best)), best] = [np.nan if score is None else score for score in scores]
        return probs, best
    probs = np.array([table[name].to_pylist() for name in output.scored], dtype=float).T
    return probs, np.where(np.isfinite(probs).all(axis=1), np.nan_to_num(probs).argmax(axis=1), -1)


# ---------------------------------------------------------------------------------------------------- the receipt


class Checker:
    """Compares rows of the parts with the original, after the first part and at the end, and writes the receipt.

    `about`: what the receipt says of the run; `stops`: whether rows that are wrong end the run; `shard`: what the name
    of the receipt ends in, if it is of a shard.
    """

    def __init__(self, comparison: Comparison, about: dict, stops: bool = True, shard: str = ""):
        self.comparison, self.about, self.stops, self.shard = comparison, about, stops, shard
        self.later: list[Sample] | None = None  # rows of the parts behind the first

    def add(self, sample: Sample) -> None:
        """Compares rows of the first part that has texts at once, and keeps those of others for the end.

        Raises RunError if rows are wrong, with the receipt written.
        """
        if self.later is not None:
            self.later = add_sample(self.later, sample)
        if self.later is not None or not sample.rows:
            return
        self.later = []
        self.comparison.look([sample])
        if self.comparison.verdict()[0] == NOT_WITHIN:
            self.write(read_footers(self.comparison.folder))
            self.stop()

    def finish(self, samples: list[Sample] | None, footers: dict[str, Footer]) -> None:
        """Compares what is left, writes the receipt of some parts, and says it. Raises RunError if rows are wrong."""
        self.comparison.look(samples or [])
        receipt = self.write(footers)
        say_receipt(receipt, self.comparison.model.max_length, self.shard)
        if receipt["verdict"] == NOT_WITHIN:
            self.stop()

    def write(self, footers: dict[str, Footer]) -> dict:
        """Writes the receipt of some parts into the output folder, and what is known of bad rows; returns it."""
        write_bad_rows(self.comparison.folder, footers, self.shard)
        found = self.comparison
        verdict, reason = found.verdict()
        compared = {
            "rows_compared": found.rows,
            "decisions": found.decisions,
            "flips": found.changed,
            "largest_difference": found.largest,
            "seconds_comparing": round(found.seconds, 1),
            "verdict": verdict,
            "reason": reason,
        }
        receipt = count_parts(footers) | self.about | compared
        write_object(found.folder / with_shard(RECEIPT_FILE, self.shard), receipt)
        return receipt

    def stop(self) -> None:
        words = f"{self.comparison.folder}: the rows are {NOT_WITHIN}: {self.comparison.verdict()[1]}"
        if self.stops:
            raise RunError(f"{words}; --no-check goes on")
        say(words)


def count_parts(footers: dict[str, Footer]) -> dict[str, int]:
    """Returns what is counted of parts together."""
    whole = sum((footer.counts for footer in footers.values()), Counts())
    counted = {"rows": whole.rows, "texts": whole.texts, "rows_without_text": whole.rows - whole.texts}
    counted |= {"rows_removed": whole.removed, "texts_without_answer": whole.no_answer, "tokens": whole.tokens}
    return counted | {"texts_truncated": whole.truncated, "tokens_lost": whole.lost, "bad_rows": whole.bad}


def read_receipt(folder: Location, shard: str = "") -> dict:
    """Returns the receipt in a folder, or a shard's; nothing where there is none, or a damaged one."""
    return read_object(folder / with_shard(RECEIPT_FILE, shard))


def say_receipt(receipt: dict, max_length: int, shard: str) -> None:
    """Prints what a receipt says of the rows, and of the comparison."""
    removed = f" ({receipt['rows_removed']:,} removed or deleted)" if receipt["rows_removed"] else ""
    say(f"rows       {receipt['rows']:,}, {receipt['rows_without_text']:,} of them without text{removed}")
    if receipt.get("texts_without_answer"):
        say(f"nulls      {receipt['texts_without_answer']:,} texts give no token, or the model no finite number")
    if receipt.get("bad_rows"):
        words = f"bad rows   {receipt['bad_rows']:,} could not be read or answered"
        say(f"{words}: {with_shard(BAD_FILE, shard)} says which, and why")
    if receipt.get("texts_truncated"):
        long = f"{receipt['texts_truncated']:,} texts are longer than {max_length} tokens"
        lost = f"{receipt['tokens_lost']:,} tokens lost"
        say(f"truncated  {long}: {lost if receipt['tokens_lost'] else 'in windows'}")
    seconds = f"{receipt['rows_compared']} rows with the original, {receipt['seconds_comparing']:.0f} s"
    say(f"compared   {seconds}: {receipt['reason']}")
    closing = {UNPROVEN: "nothing wrong seen, but too few rows to prove that it is within tolerance"}
    say(f"receipt    {closing.get(receipt['verdict'], receipt['verdict'])}; {with_shard(RECEIPT_FILE, shard)}")
