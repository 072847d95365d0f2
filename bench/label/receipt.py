"""The receipt of a run: what was labelled and how, and some rows compared with the original model."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice, zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.judge import NOT_WITHIN, ROUNDING, UNPROVEN
from bench.label import folder, record
from bench.label.rows import WORKER_FAILED, Counts
from bench.label.splits import InputPart, LabelJob
from bench.model.model import Model
from bench.model.parity import ParityCounter
from bench.model.reference import PADDING_TOLERANCE, CachedReference
from bench.naming import counted
from bench.tables.datasets import evenly_spaced
from bench.tables.items import Item, count_characters, items_of, parts_of
from bench.tables.readers import reading
from utils import RunError, say

LATER_ROWS = 8  # rows compared from each part after the first, see Task.compared_rows
MAX_LATER_ROWS = 192  # rows compared from all of these
TOLERATED_BAD_ROWS = 3  # per part, however few other rows it has
HALF_ROUNDING = 2**-11  # relative error of a float16


@dataclass(frozen=True)
class Sample:
    """Some rows of a part; the first ones represent it best."""

    part: str
    rows: list[int]
    items: list[Item]

    def first(self, count: int) -> "Sample":
        return Sample(self.part, self.rows[:count], self.items[:count])


def pick_sample(part: InputPart, items: list[Item | None], model: Model) -> Sample:
    """Pick a part's rows: the longest and the shortest texts, some with special tokens, and evenly spaced ones.

    These kinds alternate, so that the first LATER_ROWS have some of each.
    """
    count = model.task.compared_rows
    rows = [i for i, item in enumerate(items) if item is not None]
    by_length = sorted(rows, key=lambda i: count_characters(items[i]))
    special = [i for i in rows if any(token in text for text in parts_of(items[i]) for token in model.special_tokens)]
    kinds = [candidates[: count // 8] for candidates in (by_length[::-1], by_length, special)]
    spaced = evenly_spaced(len(rows), count)
    spaced = [rows[spaced[i]] for i in np.random.default_rng(0).permutation(len(spaced))]
    alternating = zip_longest(*kinds, spaced[::2], spaced[1::2])
    chosen = list(dict.fromkeys(i for rows in alternating for i in rows if i is not None))[:count]
    return Sample(part.name, chosen, [items[i] for i in chosen])


def add_sample(samples: list[Sample], sample: Sample) -> list[Sample]:
    """Add rows of a later part; if that makes too many rows, drop every other part."""
    samples = [*samples, sample.first(LATER_ROWS)]
    return samples[::2] if len(samples) * LATER_ROWS > MAX_LATER_ROWS else samples


def read_samples(job: LabelJob, footers: dict[str, folder.Footer]) -> list[Sample]:
    """Read rows to compare from evenly spaced parts of the whole job's input."""
    names, samples = sorted(footers), []
    chosen = {names[i] for i in evenly_spaced(len(names), 1 + MAX_LATER_ROWS // LATER_ROWS)}
    for split in job.splits:
        wanted = chosen.intersection(folder.find_parts(split, footers)[0])
        for part in islice(split.read(job.output, existing=footers.keys() - wanted), len(wanted)):
            sample = pick_sample(part, items_of(part.table, job.output.text_columns), job.model)
            samples.append(sample.first(LATER_ROWS) if samples else sample)
    return samples


@dataclass
class Checker:
    """Compares rows of the output with the original model, and stops a run that is wrong."""

    job: LabelJob
    precision: str  # of the variant that labelled, empty if unknown
    gpu: int | None  # for the original model
    fields: dict  # of the receipt: how the job was labelled
    later_samples: list[Sample] | None = None  # of parts after the first one with texts; None before that
    record: Callable[[ParityCounter], object] = lambda parity: None  # adds what was compared to the evidence
    seconds: float = field(default=0.0, init=False)  # spent on comparing

    def __post_init__(self) -> None:
        self.parity = ParityCounter(self.job.output.decisions(self.job.model.task), self.precision)

    def stop_at_bad_rows(self, parts: list[Counts]) -> None:
        """Raise RunError if a part has too many bad rows: any if strict, else over half and TOLERATED_BAD_ROWS."""
        if not any(map(self.has_too_many_bad_rows, parts)):
            return
        footers = folder.own_parts(self.job)
        folder.write_bad_rows(self.job, footers)
        bad_parts = {name: footer.bad for name, footer in footers.items() if self.has_too_many_bad_rows(footer.counts)}
        reason = "--strict stops at bad rows" if self.job.strict else "more than half of the rows in a part are bad"
        listed = f"{self.job.own_file(folder.BAD_FILE).name} lists all. Check --column, --delimiter and --encoding"
        raise RunError(f"{reason}: {folder.first_bad(bad_parts)}. {listed}")

    def has_too_many_bad_rows(self, part: Counts) -> bool:
        return part.bad_rows > (0 if self.job.strict else max(TOLERATED_BAD_ROWS, part.rows / 2))

    def add(self, counts: Counts, sample: Sample) -> None:
        """Compare rows of the first part with texts now; keep those of later parts. Raises RunError, see finish()."""
        self.stop_at_bad_rows([counts])
        if self.later_samples is not None:
            self.later_samples = add_sample(self.later_samples, sample)
        elif sample.rows:
            self.later_samples = []
            self.compare([sample])
            if self.verdict()[0] == NOT_WITHIN:
                self.write(folder.own_parts(self.job))
                self.stop_at_wrong_rows()

    def finish(self, samples: list[Sample] | None, footers: dict[str, folder.Footer]) -> None:
        """Compare these rows, then write and print the receipt. Raises RunError if rows are wrong."""
        self.compare(samples or [])
        receipt = self.write(footers)
        bad = {name: footer.bad for name, footer in footers.items()}
        print_receipt(self.job, receipt, folder.first_bad(bad))
        if receipt["verdict"] == NOT_WITHIN:
            self.stop_at_wrong_rows()

    def stop_at_wrong_rows(self) -> None:
        """Raise RunError, or with --no-check only report it."""
        message = f"{self.job.folder}: rows are {NOT_WITHIN}: {self.verdict()[1]}"
        if not self.job.no_check:
            raise RunError(f"{message}. To continue anyway, add --no-check")
        say(message)

    def compare(self, samples: list[Sample]) -> None:
        """Compare rows of parts with the original model, which runs text by text in its own process."""
        start = time.monotonic()
        output = self.job.output
        samples = [sample for sample in map(self.without_failed, samples) if sample.rows]
        if not samples or not self.job.model.can_be_compared:
            return
        with CachedReference(self.job.model, self.gpu, long=output.long) as original:
            items = [item for sample in samples for item in sample.items]
            reference = original.answers(items)[:, output.indices]
        table = pa.concat_tables([read_rows(self.job, sample) for sample in samples])
        self.parity.add(output.to_answers(table, reference), reference, items)
        is_exact = not output.float16 and output.min_score is None  # scores are neither rounded nor left out
        if is_exact and self.parity.task == self.job.model.task:
            self.record(self.parity)
        self.seconds += time.monotonic() - start

    def without_failed(self, sample: Sample) -> Sample:
        """Leave out the texts on which workers failed, which BAD_FILE lists."""
        bad_rows = self.job.footers[sample.part].bad
        failed = {bad["row"] for bad in bad_rows if bad["reason"].startswith(WORKER_FAILED)}
        kept = [i for i, row in enumerate(sample.rows) if row not in failed]
        return Sample(sample.part, [sample.rows[i] for i in kept], [sample.items[i] for i in kept])

    def verdict(self) -> tuple[str, str]:
        """Return (WITHIN, UNPROVEN or NOT_WITHIN, the reason)."""
        parity, output = self.parity, self.job.output
        if not self.job.model.can_be_compared:
            return UNPROVEN, f"nothing, since {self.job.model.id} holds only ONNX; --original MODEL compares"
        if not parity.decisions:
            return UNPROVEN, "no row could be compared"
        reason = f"{parity.changed:,} of {parity.decisions:,} decisions changed"
        reason += f", largest difference {parity.max_diff:.2g}"
        if parity.non_finite:
            nulls = f"{counted(parity.non_finite, 'text')} with nulls although the original answers"
            return NOT_WITHIN, f"{reason}; {nulls}"
        rounding = HALF_ROUNDING * parity.scale if output.float16 else 0.0
        if self.precision == "fp32" and parity.max_diff > PADDING_TOLERANCE * parity.scale + rounding:
            return NOT_WITHIN, f"{reason}; FP32 rounding stays below {ROUNDING:.4f}"
        if output.tolerates_rounding:  # thresholds see rounded scores
            parity.stored_rounding = rounding
        if parity.is_rounding and not parity.changed:
            reason += ", which is FP32 rounding"
        return parity.verdict(), reason

    def write(self, footers: dict[str, folder.Footer]) -> dict:
        """Write the receipt and the list of bad rows for these parts; return the receipt."""
        folder.write_bad_rows(self.job, footers)
        verdict, reason = self.verdict()
        counts = sum((footer.counts for footer in footers.values()), Counts())
        receipt = asdict(counts) | {"rows_without_text": counts.rows - counts.texts} | self.fields
        receipt |= {
            "max_length": self.job.model.max_length,
            "decisions_are": self.parity.task.decision_words,
            "rows_compared": self.parity.items,
            "decisions": self.parity.decisions,
            "flips": self.parity.changed,
            "largest_difference": self.parity.max_diff,
            "seconds_comparing": round(self.seconds, 1),
            "verdict": verdict,
            "reason": reason,
        }
        record.write_object(self.job.own_file(folder.RECEIPT_FILE), receipt)
        return receipt


def read_rows(job: LabelJob, sample: Sample) -> pa.Table:
    part = job.folder / sample.part
    with reading(part), part.open_seekable() as file:
        return pq.ParquetFile(file).read(columns=job.output.answer_columns).take(pa.array(sample.rows))


def read_receipt(job: LabelJob) -> dict:
    """Return the receipt of a shard or of the whole job; empty if there is none or it is damaged."""
    return record.read_object(job.own_file(folder.RECEIPT_FILE), record.RECEIPT_TYPES)


def print_receipt(job: LabelJob, receipt: dict, bad: str) -> None:
    """Print a receipt's counts and verdict, and the first `bad` row."""
    line = f"rows       {receipt['rows']:,}, {receipt['rows_without_text']:,} without text"
    if receipt["rows_removed"]:
        line += f" ({receipt['rows_removed']:,} removed or deleted)"
    say(line)
    if receipt["bad_rows"]:
        listed = job.own_file(folder.BAD_FILE).name
        say(f"bad rows   {receipt['bad_rows']:,} cannot be parsed or answered; see {listed}")
        say(f"           first: {bad}")
    if receipt["texts_truncated"]:
        lost = f"{receipt['tokens_lost']:,} tokens lost" if receipt["tokens_lost"] else "read in windows"
        say(f"long       {counted(receipt['texts_truncated'], 'text')} above {receipt['max_length']} tokens: {lost}")
    seconds = receipt["seconds_comparing"]
    compared = f"{counted(receipt['rows_compared'], 'row')} with the original, {seconds:.0f} s: {receipt['reason']}"
    verdict = receipt["verdict"]
    if not job.model.can_be_compared:
        compared, verdict = receipt["reason"], f"of {receipt.get('export') or receipt['model']}"
    elif verdict == UNPROVEN:
        verdict = "no error found in these rows, but they are too few to prove that the answers are within tolerance"
    else:
        verdict = f"these rows are {verdict}"
    say(f"compared   {compared}")
    say(f"receipt    {verdict}; {job.own_file(folder.RECEIPT_FILE).name}")
