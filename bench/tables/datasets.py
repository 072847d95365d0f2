"""A dataset's name or file -> its texts."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bench.tables.folders import common_schema
from bench.tables.format_csv import Csv
from bench.tables.readers import COMMAS, FORMAT_WORDS, open_table, read_all, reading
from bench.tables.storage import locate
from utils import ROOT, UserError

# name: the published file, and the bundled one that takes its place until it is downloaded
DATASETS = {
    "normal": ("random_sample_10k.csv.gz", "synthetic_10k.csv.gz"),
    "filtered": ("random_sample_10k_filtered.csv.gz", "synthetic_10k_filtered.csv.gz"),
}
# what Reddit and its archives put in the place of a comment that is gone
REMOVALS = {
    "deleted": re.compile(r"\[ ?(deleted( by user)?|unavailable) ?\]", re.IGNORECASE),
    "removed": re.compile(r"\[ ?removed( by (reddit|moderator)[^\[\]\n]*)? ?\]", re.IGNORECASE),
}


@dataclass(frozen=True)
class Dataset:
    """The `texts` in the file's order, the `name` that rows carry, and `notes`: what was not as asked.

    all_texts: also those beyond the limit; gold: what the label column says of each of the `texts`; empty without one.
    """

    name: str
    texts: list[str]
    notes: list[str]
    all_texts: list[str]
    gold: list = field(default_factory=list)

    def limited(self, limit: int | None) -> "Dataset":
        """Returns the dataset with so many of all its texts, evenly spaced."""
        if limit is None or limit >= len(self.texts):
            return self
        chosen = evenly_spaced(len(self.texts), limit)
        gold = [self.gold[i] for i in chosen] if self.gold else []
        return replace(self, texts=[self.texts[i] for i in chosen], gold=gold)


def load_dataset(
    name_or_path: str,
    column: str = "body",
    limit: int | None = None,
    label_column: str | None = None,
    csv: Csv = COMMAS,
) -> Dataset:
    """Reads the texts of `normal`, `filtered` or a file, which is named as its file is.

    Rows without text (missing, empty, only white space) are left out and counted in the notes. `limit` keeps that many
    texts, evenly spaced through the file. Raises UserError where the file, the column or every text is missing.
    """
    notes = []
    if name_or_path in DATASETS:
        real, synthetic = (ROOT / "data" / file for file in DATASETS[name_or_path])
        path, name = (real, name_or_path) if real.exists() else (synthetic, f"synthetic-{name_or_path}")
        if path is synthetic:
            notes.append(
                f"dataset {name_or_path}: data/{real.name} is not there, so the bundled data/{synthetic.name} is used "
                "(random words with Reddit's lengths); `python data/download.py` fetches the real one"
            )
    else:
        path, name = name_or_path, locate(name_or_path).name
    bodies, *labels = read_columns(path, [column, *([label_column] if label_column else [])], csv)
    full = [i for i, body in enumerate(bodies) if has_text(body)]
    texts = [bodies[i] for i in full]
    if len(texts) < len(bodies):
        notes.append(f"dataset {name}: {len(bodies) - len(texts)} of {len(bodies)} rows have no text and are left out")
    if not texts:
        raise UserError(f"{path} has no text in column {column!r}")
    return Dataset(name, texts, notes, texts, [column[i] for column in labels for i in full]).limited(limit)


def read_columns(path: str | Path, columns: list[str], csv: Csv = COMMAS) -> list[list]:
    """Reads a file's column of texts, the first, and others, as they stand there.

    Raises UserError if one can't be read, or if the texts are not text.
    """
    file = locate(path)
    with reading(file):
        there = file.is_file()
    if not there:
        names = f"names: {', '.join(DATASETS)}; or a file: {FORMAT_WORDS}"
        raise UserError(f"no dataset file {path} ({names})")
    table = open_table(file, csv)
    rows = list(read_all([table], common_schema([table], list(dict.fromkeys(columns)), columns[0])))
    return [[value for some in rows for value in some[name].to_pylist()] for name in columns]


def bundled_texts(name: str) -> list[str]:
    """Returns the texts of a bundled file: the same on every machine."""
    [texts] = read_columns(ROOT / "data" / DATASETS[name][1], ["body"])
    return texts


def has_text(value: str | None) -> bool:
    """Says whether a row has a text: more than white space, and not what says that a comment is gone."""
    return value is not None and bool(value.strip()) and removal(value) is None


def removal(text: str) -> str | None:
    """Returns `deleted` or `removed` if a text only says that a comment is gone, see REMOVALS."""
    if not text.lstrip().startswith("["):
        return None
    return next((kind for kind, words in REMOVALS.items() if words.fullmatch(text.strip())), None)


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Returns `count` (or `total`, if fewer) distinct indices below `total`, evenly spaced, ascending."""
    count = min(count, total)
    return np.arange(count) * total // count
