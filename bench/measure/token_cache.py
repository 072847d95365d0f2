"""Texts -> token ids and the reference, made once and kept in the cache for all cells of a sweep."""

import contextlib
import json
import math
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.files import digest, make_once
from bench.judge import N_SAMPLE
from bench.measure.peak import count_flops
from bench.model.model import Model
from bench.model.reference import N_PADDED_TEXTS, Reference
from bench.processes import run_in_subprocess
from bench.provenance import versions
from bench.tables.datasets import evenly_spaced
from bench.tables.items import digest_items
from utils import CACHE, UserError


@dataclass(frozen=True)
class TokenizedTexts:
    """What the cells of a sweep share; kept in a folder of the cache, from which each worker loads it."""

    folder: Path
    ids: dict[str, np.ndarray]  # of all rows in one run, int32 [tokens]: `input_ids`, perhaps `token_type_ids`
    items: np.ndarray  # the item of each row, ascending
    lengths: np.ndarray  # the token count of each row
    groups: np.ndarray  # see Model.groups
    offsets: np.ndarray  # where each row ends in `ids`
    sample: np.ndarray  # the items that are compared
    reference: np.ndarray  # their answers [sample, labels], see Reference.of_items
    flops: float  # of one pass over the real tokens, nan if torch can't count them
    tokens_speed: float  # messages/s of the tokenizer when these were made
    n_empty: int  # texts without a token, which are left out
    padding_effect: float  # see Reference

    def rows(self, batch: Iterable[int]) -> dict[str, list[np.ndarray]]:
        """Returns the ids of each text of a batch."""
        spans = [slice(self.offsets[i] - self.lengths[i], self.offsets[i]) for i in batch]
        return {name: [values[span] for span in spans] for name, values in self.ids.items()}

    @property
    def n_items(self) -> int:
        return int(self.items[-1]) + 1

    def texts(self) -> list[str]:
        return json.loads((self.folder / "texts.json").read_text(encoding="utf-8"))


def load_tokens(folder: Path) -> TokenizedTexts:
    with np.load(folder / "arrays.npz") as file:
        arrays = dict(file)
    ids = {name: arrays.pop(name) for name in ("input_ids", "token_type_ids") if name in arrays}
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return TokenizedTexts(folder=folder, ids=ids, **arrays, **figures)


def load_or_tokenize(
    model: Model, texts: list[str], gpu: int | None, call: Callable = run_in_subprocess
) -> TokenizedTexts:
    """Loads the texts' token ids and reference from the cache, or makes them in the process that `call` runs.

    Raises UserError where no text gives a token, or the model can't be loaded.
    """
    known = [digest_items(texts), model.weights_id, *versions("torch", "transformers", "tokenizers").values()]
    key = digest(str(part).encode() for part in (*known, N_SAMPLE, N_PADDED_TEXTS, gpu is not None))
    folder = CACHE / "tokens" / key

    def make(temporary: Path) -> None:
        (temporary / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        call(tokenize_into, model, temporary, gpu)

    if folder.exists():
        with contextlib.suppress(OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            tokens = load_tokens(folder)
            tokens.texts()
            return tokens
        shutil.rmtree(folder, ignore_errors=True)  # it is damaged
    make_once(folder, make)
    return load_tokens(folder)


def tokenize_into(model: Model, folder: Path, gpu: int | None) -> None:
    """Writes arrays.npz and figures.json beside `folder`/texts.json."""
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    model.tokenize(texts[:1])  # the first call sets the tokenizer up
    start = time.monotonic()
    rows = model.tokenize(texts)
    del rows["lost"]
    figures = {"tokens_speed": len(texts) / (time.monotonic() - start)}
    full = [i for i, ids in enumerate(rows["input_ids"]) if ids]
    if not full:
        raise UserError("the tokenizer gives no token for any text")
    rows = {name: [values[i] for i in full] for name, values in rows.items()}
    answered, items = np.unique(rows.pop("item"), return_inverse=True)
    figures["n_empty"] = len(texts) - len(answered)
    if figures["n_empty"]:
        texts = [texts[i] for i in answered]
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    if "token_type_ids" in rows and not any(any(types) for types in rows["token_type_ids"]):
        del rows["token_type_ids"]  # pad() gives zeros

    arrays = {name: np.concatenate(values).astype(np.int32) for name, values in rows.items()}
    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    sample, reference = evenly_spaced(len(texts), N_SAMPLE), Reference.load(model, gpu)
    arrays |= {"items": items, "lengths": lengths, "offsets": np.cumsum(lengths), "sample": sample}
    arrays["groups"] = model.groups(rows["input_ids"])
    arrays["reference"] = reference.of_items([texts[i] for i in sample])
    tokens_of = np.bincount(items, lengths)
    by_length = sample[np.argsort(tokens_of[sample], kind="stable")]
    shorter = by_length[: len(by_length) * 2 // 3 + 1]  # the longest would take seconds
    figures["padding_effect"] = reference.padding_effect(
        [texts[shorter[i]] for i in evenly_spaced(len(shorter), N_PADDED_TEXTS)]
    )
    try:
        figures["flops"] = count_flops(model, lengths, max(rows["input_ids"], key=len))
    except Exception:  # torch's counter fails for Perceiver, and CANINE takes no short texts
        figures["flops"] = math.nan
    (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    np.savez(folder / "arrays.npz", **arrays)
