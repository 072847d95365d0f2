"""Texts -> what every cell of a sweep gets: token ids and the reference, made once and kept in the cache."""

import hashlib
import json
import shutil
import time
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.batches import pad
from bench.files import make_once
from bench.machine import count_flops, versions
from bench.models import load_config
from bench.parity import probabilities, problem_type
from bench.texts import check_vocabulary, evenly_spaced, load_tokenizer, token_limit, tokenize
from bench.workers import in_fresh_process
from runtimes import VARIANTS
from runtimes.runner import Place
from utils import CACHE, cpu_cores

CHECK_TEXTS = 256


@dataclass(frozen=True)
class Inputs:
    """What the cells of a sweep share; kept in a folder of the cache, from which each worker loads it.

    token_ids: of all texts in one run, int32; lengths: the token count of each text; checked: indices of the texts that
    are compared; reference: their probabilities [checked, labels] from the original model in eager FP32 torch, computed
    text by text, without padding (empty if it was not asked for); flops: of one pass over the real tokens; about:
    `model` and `tokenizer` (lines to print), `problem`, `labels` (names), `pad_id`, `limit` (most tokens of a text).
    """

    folder: Path
    token_ids: np.ndarray
    lengths: np.ndarray
    checked: np.ndarray
    reference: np.ndarray
    flops: float
    about: dict

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each text ends in `token_ids`."""
        return np.cumsum(self.lengths)

    def rows(self, batch: np.ndarray) -> list[np.ndarray]:
        """Returns the token ids of each text of a batch."""
        return [self.token_ids[self.ends[i] - self.lengths[i] : self.ends[i]] for i in batch]

    def texts(self) -> list[str]:
        return json.loads((self.folder / "texts.json").read_text(encoding="utf-8"))


def load_inputs(folder: Path) -> Inputs:
    with np.load(folder / "arrays.npz") as arrays:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return Inputs(folder, **arrays, flops=about.pop("flops"), about=about)


def prepare_inputs(model: Path, texts: list[str], gpu: int | None, with_reference: bool = True) -> Inputs:
    """Returns the inputs that these texts are for the model in a folder, from the cache or made now.

    With a reference some of the texts are checked, evenly spaced; without one, all of them.
    """
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(model.iterdir())]
    what = [str(model.resolve()), files, texts, versions("torch", "transformers"), CHECK_TEXTS, gpu is not None]
    key = hashlib.sha256(json.dumps([*what, with_reference]).encode()).hexdigest()[:32]
    folder = CACHE / "inputs" / key

    def make(temporary: Path) -> None:
        (temporary / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        in_fresh_process(make_inputs, model, temporary, Place(gpu, cpu_cores()), with_reference)

    for _ in range(2):
        make_once(folder, make)
        try:
            return load_inputs(folder)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            shutil.rmtree(folder)  # damaged, so it is made anew
    return load_inputs(folder)


def make_inputs(model: Path, folder: Path, place: Place, with_reference: bool) -> None:
    """Writes the inputs of the texts in `folder`/texts.json beside it."""
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    config, tokenizer = load_config(model), load_tokenizer(model)
    limit = token_limit(config, tokenizer)
    tokenize(tokenizer, texts[:1], limit)  # the first call sets the tokenizer up
    start = time.monotonic()
    token_ids = tokenize(tokenizer, texts, limit)
    speed = len(texts) / (time.monotonic() - start)
    check_vocabulary(token_ids, config)

    lengths = np.array([len(ids) for ids in token_ids])
    problem, pad_id = problem_type(config), tokenizer.pad_token_id or 0
    checked, reference, flops = np.arange(len(texts)), np.empty(0), 0.0
    if with_reference:
        checked = evenly_spaced(len(texts), CHECK_TEXTS)
        runner = VARIANTS["torch"].load(model, place)
        logits = [runner.fetch(runner.forward(runner.prepare(pad([token_ids[i]], pad_id)))) for i in checked]
        reference = probabilities(np.concatenate(logits), problem)
        flops = count_flops(model, lengths)
    about = {
        "model": f"{config.model_type}, {config.num_labels} labels, {problem}, at most {limit} tokens",
        "tokenizer": f"{speed:,.0f} messages/s ({'fast' if tokenizer.is_fast else 'slow'} tokenizer)",
        "problem": problem,
        "labels": [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels)],
        "pad_id": pad_id,
        "limit": limit,
        "flops": flops,
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    flat = np.concatenate(token_ids).astype(np.int32)
    np.savez(folder / "arrays.npz", token_ids=flat, lengths=lengths, checked=checked, reference=reference)
