"""Dataset file -> texts -> token ids."""

import contextlib
import csv
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import ROOT, UserError, first_line

# name: the published file, and the bundled one that takes its place until it is downloaded
DATASETS = {
    "normal": ("random_sample_10k.csv.gz", "synthetic_10k.csv.gz"),
    "filtered": ("random_sample_10k_filtered.csv.gz", "synthetic_10k_filtered.csv.gz"),
}
NO_LIMIT = 10**9  # and above: the model takes texts of any length
DEFAULT_LIMIT = 512  # tokens, of such a model
LONG_TEXT = 50_000  # characters, see tokenize
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # RoBERTa's, in RoBERTa's order
# model types whose positions start behind the padding index, see token_limit
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod", "mpnet"}
OFFSET_POSITIONS |= {"data2vec-text", "ibert", "longformer", "esm", "luke"}


@dataclass(frozen=True)
class Dataset:
    """The `texts` in the file's order, the `name` that rows carry, and `notes`: what was not as asked."""

    name: str
    texts: list[str]
    notes: list[str]


def load_dataset(name_or_path: str, column: str = "body", limit: int | None = None) -> Dataset:
    """Reads the texts of `normal`, `filtered` or a CSV, CSV.gz or Parquet file, which is named as its file is.

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
        path = Path(name_or_path)
        name = path.name
    bodies = read_column(path, column)
    texts = [body for body in bodies if isinstance(body, str) and body.strip()]
    if len(texts) < len(bodies):
        notes.append(f"dataset {name}: {len(bodies) - len(texts)} of {len(bodies)} rows have no text and are left out")
    if not texts:
        raise UserError(f"{path} has no text in column {column!r}")
    if limit is not None and limit < len(texts):
        texts = [texts[i] for i in evenly_spaced(len(texts), limit)]
    return Dataset(name, texts, notes)


def read_column(path: Path, column: str) -> list:
    """Reads one column of a CSV, CSV.gz or Parquet file, as it stands there."""
    if not os.path.isfile(path):  # unlike Path's, it takes a name that is too long for one that isn't there
        raise UserError(f"no dataset file {path} (names: {', '.join(DATASETS)}; or a .csv, .csv.gz or .parquet file)")
    with reading(path):
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            columns = pyarrow.parquet.read_schema(path).names
            rows = iter(())
        else:
            rows = read_csv(path)
            columns = next(rows, [])
        if columns.count(column) != 1:
            several = f"{columns.count(column)} columns" if column in columns else "no column"
            raise UserError(f"{path} has {several} {column!r}; its columns: {', '.join(columns)}")
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_table(path, columns=[column])[column].to_pylist()
        at = columns.index(column)
        return [row[at] if at < len(row) else None for row in rows]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the errors of reading a file into a UserError."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:  # pyarrow's are among them
        raise UserError(f"{path} can't be read: {first_line(error)}") from error


def read_csv(path: Path) -> Iterator[list[str]]:
    """Yields the header and the rows of a CSV or CSV.gz file in UTF-8, without blank lines.

    Raises ValueError or csv.Error where a comma or a line break stands unquoted in a field, rather than guess.
    """
    csv.field_size_limit(2**31 - 1)
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
        reader, width = csv.reader(file, strict=True), 0
        for row in reader:
            width = width or len(row)
            if len(row) > width:
                raise ValueError(f"line {reader.line_num} has {len(row)} fields, the header has {width}")
            if row:
                yield row


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Returns `count` (or `total`, if fewer) distinct indices below `total`, evenly spaced, ascending."""
    count = min(count, total)
    return np.arange(count) * total // count


def train_tokenizer(texts: list[str]):
    """Trains a byte-level BPE of at most 30,000 tokens: a `tokenizers.ByteLevelBPETokenizer`."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator(
        texts, vocab_size=30_000, min_frequency=2, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    return tokenizer


def load_tokenizer(folder: Path):
    """Loads a model folder's tokenizer; raises UserError where there is none.

    It is the fast one, or the slow one where the folder has no file of a fast one and transformers can't make it fast
    (some SentencePiece models).
    """
    from transformers import AutoTokenizer

    reason = ""
    for fast in (True, False):
        try:
            return AutoTokenizer.from_pretrained(folder, use_fast=fast, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # a bad tokenizer fails in as many ways as there are formats
            reason = first_line(error)
        if (folder / "tokenizer.json").exists():
            break
    if not any(any(folder.glob(name)) for name in ("tokenizer.json", "vocab.*", "*.model")):
        reason = "no tokenizer.json, vocabulary or SentencePiece model"
    raise UserError(f"{folder} has no tokenizer that can be loaded: {reason}")


def token_limit(config, tokenizer) -> int:
    """Returns the most tokens of a text that the model takes; 512 where neither the model nor its tokenizer says.

    RoBERTa and its relatives number positions from padding_idx + 1 (`create_position_ids_from_input_ids` in
    transformers), so that many of their position embeddings are never used. Raises UserError for an impossible limit.
    """
    offset = (config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0
    limits = {"model_max_length": (tokenizer.model_max_length, 0)}
    if getattr(config, "max_position_embeddings", None) not in (None, -1):  # -1: any number (XLNet)
        limits["max_position_embeddings"] = config.max_position_embeddings, offset
    for name, (limit, unused) in limits.items():
        least = tokenizer.num_special_tokens_to_add() + 1 + unused
        if not isinstance(limit, int | float) or limit < least or limit % 1:
            raise UserError(f"{name} is {limit!r}, where a whole number from {least} on is needed")
    limit = int(min(limit - unused for limit, unused in limits.values()))
    return limit if limit < NO_LIMIT else DEFAULT_LIMIT


def tokenize(tokenizer, texts: list[str], limit: int, names: Sequence[str] = ("input_ids",)) -> dict[str, list]:
    """Returns the token ids of each text, and, if they are among the names, its `token_type_ids`.

    Special tokens are included; it is truncated to `limit`, not padded. Asks a fast tokenizer directly: what
    transformers adds for each text can't be shared among cores. Of a text over LONG_TEXT only the beginning is
    tokenized, where that gives at least twice `limit` tokens: then what the cut changes lies behind the tokens that are
    kept. (In whole, a text of 10 MB takes 15 seconds and 2 GB.)
    """

    def truncated(texts: list[str], limit: int) -> dict[str, list]:
        if not tokenizer.is_fast:
            found = tokenizer(texts, truncation=True, max_length=limit)
            return {name: found[name] for name in names}
        fast = tokenizer.backend_tokenizer
        fast.no_padding()
        fast.enable_truncation(limit, direction=tokenizer.truncation_side)
        encodings = fast.encode_batch_fast(texts)
        attributes = {"input_ids": "ids", "token_type_ids": "type_ids"}
        return {name: [getattr(encoding, attributes[name]) for encoding in encodings] for name in names}

    beginnings = [text[:LONG_TEXT] for text in texts]
    for i, text in enumerate(texts):
        if len(text) > LONG_TEXT and len(truncated([beginnings[i]], 2 * limit)["input_ids"][0]) < 2 * limit:
            beginnings[i] = text
    return truncated(beginnings, limit)


def check_vocabulary(token_ids: list[list[int]], config) -> None:
    """Raises UserError for a token that the model has no embedding of: a GPU would read one out of bounds."""
    highest, size = max(max(ids) for ids in token_ids), getattr(config, "vocab_size", None)
    if size and highest >= size:
        raise UserError(f"the tokenizer gives token {highest}, the model has {size}: they don't belong together")
