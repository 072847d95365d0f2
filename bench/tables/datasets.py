"""A dataset's name or file -> its texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.tables.folders import common_schema
from bench.tables.format_csv import Csv
from bench.tables.items import items_of
from bench.tables.readers import DEFAULT_CSV, FORMAT_WORDS, open_table, read_all, reading
from bench.tables.storage import locate
from utils import ROOT, UserError

# name -> (published file, bundled file used until it is downloaded)
DATASETS = {
    "normal": ("random_sample_10k.csv.gz", "synthetic_10k.csv.gz"),
    "filtered": ("random_sample_10k_filtered.csv.gz", "synthetic_10k_filtered.csv.gz"),
}


@dataclass(frozen=True)
class Dataset:
    """Texts in file order."""

    name: str  # as results show it
    texts: list[str]  # up to the limit
    notes: list[str]  # deviations from what was asked, to be printed
    all_texts: list[str]  # without the limit
    gold: list = field(default_factory=list)  # labels of `texts`; empty without a label column
    groups: list = field(default_factory=list)  # such as the query of each pair; empty without a group column

    def limited(self, limit: int | None) -> "Dataset":
        """Return the dataset with at most `limit` texts, evenly spaced, or with about as many in whole groups."""
        if limit is None or limit >= len(self.texts):
            return self
        chosen = evenly_spaced(len(self.texts), limit)
        if self.groups:
            names = list(dict.fromkeys(self.groups))
            count = max(1, len(names) * limit // len(self.texts))
            kept = {names[i] for i in evenly_spaced(len(names), count)}
            chosen = [i for i, name in enumerate(self.groups) if name in kept]
        lists = {"texts": self.texts, "gold": self.gold, "groups": self.groups}
        return replace(self, **{name: [values[i] for i in chosen] for name, values in lists.items() if values})


def load_dataset(
    name_or_path: str,
    columns: Sequence[str] = ("body",),
    csv: Csv = DEFAULT_CSV,
    label_column: str | None = None,
    group_column: str | None = None,
) -> Dataset:
    """Read the texts of `normal`, `filtered` or a file.

    Several columns make items of several texts. The `group_column` may have any type. Rows without text or group are
    dropped and counted in the notes. Raises UserError if the file, the column or all text is missing.
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
    table = read_columns(path, columns, [name for name in (group_column, label_column) if name], csv)
    items = items_of(table, [*columns, group_column] if group_column else columns)
    kept = [i for i, item in enumerate(items) if item is not None]
    texts = [items[i] for i in kept]
    if len(texts) < len(items):
        notes.append(f"dataset {name}: dropped {len(items) - len(texts)} of {len(items)} rows, which have no text")
    if not texts:
        names = " and ".join(map(repr, columns))
        raise UserError(f"{path} has no text in column {names}; choose another one with --column")
    labels = table[label_column].to_pylist() if label_column else []
    groups = [item[-1] for item in texts] if group_column else []
    texts = [item[:-1] for item in texts] if groups else texts
    return Dataset(name, texts, notes, texts, [labels[i] for i in kept] if labels else [], groups)


def read_columns(
    path: str | Path, text_columns: Sequence[str], others: Sequence[str] = (), csv: Csv = DEFAULT_CSV
) -> pa.Table:
    """Return these columns of a file. Raises UserError, also if the `text_columns` are not text."""
    file = locate(path)
    with reading(file):
        if not file.is_file():
            raise UserError(f"dataset not found: {path}. Use {', '.join(DATASETS)}, or a file of {FORMAT_WORDS}")
    table = open_table(file, csv)
    schema = common_schema([table], list(dict.fromkeys([*text_columns, *others])), text_columns)
    return pa.concat_tables([schema.empty_table(), *read_all([table], schema)])


def bundled_texts(name: str) -> list[str]:
    """Return the texts of a bundled file, which are the same on every machine."""
    return read_columns(ROOT / "data" / DATASETS[name][1], ["body"])["body"].to_pylist()


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Return `count` (or `total`, if fewer) distinct indices below `total`, evenly spaced, ascending."""
    count = min(count, total)
    return np.arange(count) * total // count
