"""The receipt of a labelling run: what was labelled and how, and some rows of it beside the original."""

from dataclasses import dataclass

from bench.judge import NOT_WITHIN, UNPROVEN
from bench.label.comparison import Comparison
from bench.label.job import read_object, write_object
from bench.label.output import (
    BAD_FILE,
    RECEIPT_FILE,
    Footer,
    check_complete,
    check_nothing_else,
    first_bad,
    parts_of,
    read_footers,
    with_shard,
    write_bad_rows,
)
from bench.label.rows import Counts
from bench.label.sample import Sample, add_sample
from bench.label.splits import InputSplit
from bench.tables.storage import Location
from utils import RunError, say

TOLERATED_BAD_ROWS = 3  # bad rows of a part, which stop no run even where the part has hardly any others


@dataclass
class Checker:
    """Sees to it that the parts of `splits` are right: none has many bad rows, and some rows are as the original's.

    about: what the receipt says of the run; stops: whether rows that are wrong end the run; strict: whether any bad row
    does; shard: what the name of the receipt ends in, if it is of a shard; later: rows of the parts behind the first
    that had texts, None until there was one.
    """

    comparison: Comparison
    about: dict
    splits: list[InputSplit]
    stops: bool = True
    strict: bool = False
    shard: str = ""
    later: list[Sample] | None = None

    def own_parts(self) -> dict[str, Footer]:
        """Reads what the parts of the splits say of themselves, as far as they are there without a gap."""
        found = self.comparison
        return parts_of(self.splits, read_footers(found.folder, found.output.job, self.splits))

    def check_complete(self) -> dict[str, Footer]:
        """Returns the parts of the splits; raises UserError if they are not all there, or not alone."""
        folder, own = self.comparison.folder, self.own_parts()
        check_complete(folder, self.splits, own)
        if not self.shard:
            check_nothing_else(folder, own)
        return own

    def stop_at_bad_rows(self, parts: list[Counts]) -> None:
        """Raises RunError, with the first bad row, where one of the parts has too many.

        That is any if `strict`, else more than half of the rows and more than TOLERATED_BAD_ROWS.
        """
        if not any(map(self.has_too_many, parts)):
            return
        why, own = "--strict" if self.strict else "so is more than half of a part", self.own_parts()
        write_bad_rows(self.comparison.folder, own, self.shard)
        guilty = {name: footer.bad for name, footer in own.items() if self.has_too_many(footer.counts)}
        raise RunError(f"{first_bad(guilty)} ({why}); {with_shard(BAD_FILE, self.shard)} names all")

    def has_too_many(self, part: Counts) -> bool:
        """Says whether a part has more bad rows than a run goes on with."""
        return part.bad > (0 if self.strict else max(TOLERATED_BAD_ROWS, part.rows / 2))

    def add(self, counts: Counts, sample: Sample) -> None:
        """Compares rows of the first part that has texts at once, and keeps those of others for the end.

        Raises RunError if rows are wrong, with the receipt written, or if too many are bad.
        """
        self.stop_at_bad_rows([counts])
        if self.later is not None:
            self.later = add_sample(self.later, sample)
        if self.later is not None or not sample.rows:
            return
        self.later = []
        self.comparison.look([sample])
        if self.comparison.verdict()[0] == NOT_WITHIN:
            self.write(self.own_parts())
            self.stop()

    def finish(self, samples: list[Sample] | None, own: dict[str, Footer]) -> None:
        """Compares what is left, writes the receipt of the parts, and says it. Raises RunError if rows are wrong."""
        self.comparison.look(samples or [])
        receipt = self.write(own)
        say_receipt(receipt, first_bad({name: footer.bad for name, footer in own.items()}), self.shard)
        if receipt["verdict"] == NOT_WITHIN:
            self.stop()

    def write(self, own: dict[str, Footer]) -> dict:
        """Writes the receipt of the checker's own parts, and what is known of bad rows; returns it."""
        found = self.comparison
        write_bad_rows(found.folder, own, self.shard)
        verdict, reason = found.verdict()
        compared = {
            "max_length": found.model.max_length,
            "decisions_are": found.task.decision_words,
            "rows_compared": found.rows,
            "decisions": found.decisions,
            "flips": found.changed,
            "largest_difference": found.largest,
            "seconds_comparing": round(found.seconds, 1),
            "verdict": verdict,
            "reason": reason,
        }
        receipt = count_parts(own) | self.about | compared
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


def say_receipt(receipt: dict, bad: str, shard: str) -> None:
    """Prints what a receipt says of the rows, and of the comparison. `bad`: what the first bad row is."""
    removed = f" ({receipt['rows_removed']:,} removed or deleted)" if receipt["rows_removed"] else ""
    say(f"rows       {receipt['rows']:,}, {receipt['rows_without_text']:,} of them without text{removed}")
    if receipt.get("texts_without_answer"):
        say(f"nulls      {receipt['texts_without_answer']:,} texts give no token, or the model no finite number")
    if receipt.get("bad_rows"):
        say(f"bad rows   {receipt['bad_rows']:,} could not be read or answered, see {with_shard(BAD_FILE, shard)}")
        say(f"           the first: {bad}")
    if receipt.get("texts_truncated"):
        long = f"{receipt['texts_truncated']:,} texts are longer than {receipt['max_length']} tokens"
        lost = f"{receipt['tokens_lost']:,} tokens lost"
        say(f"truncated  {long}: {lost if receipt['tokens_lost'] else 'in windows'}")
    seconds = f"{receipt['rows_compared']} rows with the original, {receipt['seconds_comparing']:.0f} s"
    say(f"compared   {seconds}: {receipt['reason']}")
    closing = {UNPROVEN: "nothing wrong seen, but too few rows to prove that it is within tolerance"}
    say(f"receipt    {closing.get(receipt['verdict'], receipt['verdict'])}; {with_shard(RECEIPT_FILE, shard)}")
