"""Dataset file -> texts -> token ids."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import ROOT, UserError, first_line, slug

# name: the published file, and the bundled one that takes its place until it is downloaded
DATASETS = {
    "normal": ("random_sample_10k.csv.gz", "synthetic_10k.csv.gz"),
    "filtered": ("random_sample_10k_filtered.csv.gz", "synthetic_10k_filtered.csv.gz"),
}
MAX_TOKENS = 512
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
    """Reads the texts of `normal`, `filtered` or a CSV, CSV.gz or Parquet file.

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
        name = slug(re.sub(r"(\.csv|\.gz|\.parquet)+$", "", path.name))
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
    import pandas as pd

    if not os.path.isfile(path):  # unlike Path's, it takes a name that is too long for one that isn't there
        raise UserError(f"no dataset file {path} (names: {', '.join(DATASETS)}; or a .csv, .csv.gz or .parquet file)")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            columns = pyarrow.parquet.read_schema(path).names
            table = pd.read_parquet(path, columns=[column]) if column in columns else None
        else:
            # "null" and "NA" are words that people write, not missing values
            options = {"dtype": str, "keep_default_na": False}
            columns = list(pd.read_csv(path, nrows=0, **options).columns)
            # all columns: with usecols, what follows a comma that should have been quoted is lost without a word
            table = pd.read_csv(path, **options) if column in columns else None
            if table is not None and not isinstance(table.index, pd.RangeIndex):
                raise ValueError("its rows have more fields than its header")
        bodies = None if table is None else table[column].tolist()
    except Exception as error:  # pandas, pyarrow and each compression have errors of their own
        raise UserError(f"{path} can't be read: {first_line(error)}") from error
    if bodies is None:
        raise UserError(f"{path} has no column {column!r}; its columns: {', '.join(map(str, columns))}")
    return bodies


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
    """Returns the most tokens of a text that the model takes, at most 512.

    RoBERTa and its relatives number positions from padding_idx + 1 (`create_position_ids_from_input_ids` in
    transformers), so that many of their position embeddings are never used.
    """
    positions = getattr(config, "max_position_embeddings", MAX_TOKENS)
    if config.model_type in OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    return min(MAX_TOKENS, positions if positions > 0 else MAX_TOKENS, tokenizer.model_max_length)


def tokenize(tokenizer, texts: list[str], limit: int) -> list[list[int]]:
    """Returns the token ids of each text, special tokens included, truncated to `limit`, not padded.

    Asks a fast tokenizer directly: what transformers adds for each text can't be shared among cores. Of a text over
    LONG_TEXT only the beginning is tokenized, where that gives at least twice `limit` tokens: then what the cut changes
    lies behind the tokens that are kept. (In whole, a text of 10 MB takes 15 seconds and 2 GB.)
    """

    def truncated(texts: list[str], limit: int) -> list[list[int]]:
        if not tokenizer.is_fast:
            return tokenizer(texts, truncation=True, max_length=limit, return_attention_mask=False)["input_ids"]
        fast = tokenizer.backend_tokenizer
        fast.no_padding()
        fast.enable_truncation(limit, direction=tokenizer.truncation_side)
        return [encoding.ids for encoding in fast.encode_batch_fast(texts)]

    beginnings = [text[:LONG_TEXT] for text in texts]
    for i, text in enumerate(texts):
        if len(text) > LONG_TEXT and len(truncated([beginnings[i]], 2 * limit)[0]) < 2 * limit:
            beginnings[i] = text
    return truncated(beginnings, limit)


def check_vocabulary(token_ids: list[list[int]], config) -> None:
    """Raises UserError for a token that the model has no embedding of: a GPU would read one out of bounds."""
    highest = max(max(ids) for ids in token_ids)
    if highest >= config.vocab_size:
        raise UserError(
            f"the tokenizer gives token {highest}, the model has {config.vocab_size}: they don't belong together"
        )
