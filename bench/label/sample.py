"""Which rows of a run are compared with the original."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from bench.label.output import Footer, parts_there
from bench.label.rows import OutputSpec
from bench.label.splits import InputSplit
from bench.model.model import Model
from bench.tables.datasets import evenly_spaced
from bench.tables.items import has_text

FIRST_ROWS = 64  # of the first part that a run makes
LATER_ROWS = 8  # of each part behind it
MOST_ROWS = 256  # in all


@dataclass(frozen=True)
class Sample:
    """Rows of a `part`: which `rows` of it, and their `texts`. The first of them stand for all."""

    part: str
    rows: list[int]
    texts: list[str]

    def first(self, count: int) -> "Sample":
        return Sample(self.part, self.rows[:count], self.texts[:count])


def pick_sample(part: str, table: pa.Table, column: str, model: Model) -> Sample:
    """Picks at most FIRST_ROWS rows of a part: the longest texts, the shortest, some with special tokens, and others.

    These take turns, so that the first LATER_ROWS hold some of each. The others are evenly spaced.
    """
    values = table[column].to_pylist()
    full = [i for i, value in enumerate(values) if has_text(value)]
    by_length = sorted(full, key=lambda i: len(values[i]))
    special = [i for i in full if any(token in values[i] for token in model.special_tokens)]
    kinds = [by_length[::-1][: FIRST_ROWS // 8], by_length[: FIRST_ROWS // 8], special[: FIRST_ROWS // 8]]
    others = evenly_spaced(len(full), FIRST_ROWS)
    even = [full[others[i]] for i in np.random.default_rng(0).permutation(len(others))]
    rows = list(dict.fromkeys(in_turn(*kinds, even[::2], even[1::2])))[:FIRST_ROWS]
    return Sample(part, rows, [values[i] for i in rows])


def in_turn(*lists: Sequence[int]) -> list[int]:
    """Takes one from each list after another until all are empty."""
    longest = max(map(len, lists))
    return [own[i] for i in range(longest) for own in lists if i < len(own)]


def add_sample(samples: list[Sample], sample: Sample) -> list[Sample]:
    """Adds the rows of a later part; where that makes too many rows, every other part is left out."""
    samples = [*samples, sample.first(LATER_ROWS)]
    return samples[::2] if len(samples) * LATER_ROWS > MOST_ROWS - FIRST_ROWS else samples


def read_samples(
    splits: list[InputSplit], footers: dict[str, Footer], output: OutputSpec, model: Model
) -> list[Sample]:
    """Picks rows of some parts, evenly spaced over all, and reads them again from the input."""
    names, samples = sorted(footers), []
    chosen = {names[i] for i in evenly_spaced(len(names), 1 + (MOST_ROWS - FIRST_ROWS) // LATER_ROWS)}
    for split in splits:
        wanted = chosen & {*parts_there(split, footers)[0]}
        for part in islice(split.read(output, there=footers.keys() - wanted), len(wanted)):
            sample = pick_sample(part.name, part.table, output.text_column, model)
            samples.append(sample.first(LATER_ROWS) if samples else sample)
    return samples
