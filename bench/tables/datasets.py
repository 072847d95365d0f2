"""A dataset's name or file -> its texts."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bench.files import digest
from bench.tables.folders import common_schema
from bench.tables.format_csv import Csv
from bench.tables.readers import DEFAULT_CSV, FORMAT_WORDS, open_table, read_all, reading
from bench.tables.storage import locate
from utils import ROOT, UserError

# name -> (published file, bundled file used until it is downloaded)
DATASETS = {
    "normal": ("random_sample_10k.csv.gz", "synthetic_10k.csv.gz"),
    "filtered": ("random_sample_10k_filtered.csv.gz", "synthetic_10k_filtered.csv.gz"),
}
# placeholders of Reddit and its archives for comments that are gone
REMOVALS = {
    "deleted": re.compile(r"\[ ?(deleted( by user)?|unavailable) ?\]", re.IGNORECASE),
    "removed": re.compile(r"\[ ?removed( by (reddit|moderator)[^\[\]\n]*)? ?\]", re.IGNORECASE),
}


@dataclass(frozen=True)
class Dataset:
    """Texts in file order."""

    name: str  # as results show it
    texts: list[str]  # up to the limit
    notes: list[str]  # deviations from what was asked, to be printed
    all_texts: list[str]  # without the limit
    gold: list = field(default_factory=list)  # labels of `texts`; empty without a label column

    def limited(self, limit: int | None) -> "Dataset":
        """Return the dataset with at most `limit` texts, evenly spaced."""
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
    csv: Csv = DEFAULT_CSV,
) -> Dataset:
    """Read the texts of `normal`, `filtered` or a file, at most `limit` of them, evenly spaced.

    Rows without text are dropped and counted in the notes. Raises UserError if the file, the column or all text is
    missing.
    """
    notes = []
    if name_or_path in DATASETS:
        published, bundled = (ROOT / "data" / file for file in DATASETS[name_or_path])
        path, name = (published, name_or_path) if published.exists() else (bundled, f"synthetic-{name_or_path}")
        if path is bundled:
            notes.append(
                f"dataset {name_or_path}: data/{published.name} is missing, using the bundled data/{bundled.name} "
                "(random words with Reddit's lengths); run `python data/download.py` to get the real texts"
            )
    else:
        path, name = name_or_path, locate(name_or_path).name
    bodies, *labels = read_columns(path, [column, *([label_column] if label_column else [])], csv)
    kept = [i for i, body in enumerate(bodies) if has_text(body)]
    texts = [bodies[i] for i in kept]
    if len(texts) < len(bodies):
        notes.append(f"dataset {name}: dropped {len(bodies) - len(texts)} of {len(bodies)} rows, which have no text")
    if not texts:
        raise UserError(f"{path} has no text in column {column!r}; choose another one with --column")
    return Dataset(name, texts, notes, texts, [values[i] for values in labels for i in kept]).limited(limit)


def read_columns(path: str | Path, columns: list[str], csv: Csv = DEFAULT_CSV) -> list[list]:
    """Return the values of these columns, the first of which must be text. Raises UserError."""
    file = locate(path)
    with reading(file):
        if not file.is_file():
            raise UserError(f"dataset not found: {path}. Use {', '.join(DATASETS)}, or a file of {FORMAT_WORDS}")
    table = open_table(file, csv)
    chunks = list(read_all([table], common_schema([table], list(dict.fromkeys(columns)), columns[0])))
    return [[value for chunk in chunks for value in chunk[name].to_pylist()] for name in columns]


def bundled_texts(name: str) -> list[str]:
    """Return the texts of a bundled file, which are the same on every machine."""
    [texts] = read_columns(ROOT / "data" / DATASETS[name][1], ["body"])
    return texts


def has_text(value: str | None) -> bool:
    """True for more than white space, unless it is a placeholder for a removed comment."""
    return value is not None and bool(value.strip()) and removal(value) is None


def removal(text: str) -> str | None:
    """Return `deleted` or `removed` for a placeholder in REMOVALS; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    return next((kind for kind, pattern in REMOVALS.items() if pattern.fullmatch(text.strip())), None)


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Return `count` (or `total`, if fewer) distinct indices below `total`, evenly spaced, ascending."""
    count = min(count, total)
    return np.arange(count) * total // count


def digest_texts(texts: list[str]) -> str:
    """Return 16 hexadecimal digits that identify these texts and their order."""
    return digest(text.encode() for text in texts)
