"""Texts -> what every cell of a sweep gets: token ids and the reference, made once and kept in the cache."""

import contextlib
import inspect
import json
import math
import shutil
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.batches import pad
from bench.files import digest, make_once
from bench.machine import count_flops, versions
from bench.models import load_config
from bench.parity import probabilities, problem_type
from bench.texts import check_vocabulary, evenly_spaced, load_tokenizer, token_limit, tokenize
from bench.workers import in_fresh_process
from runtimes import VARIANTS
from runtimes.runner import Place, Runner
from utils import CACHE, UserError, clean, cpu_cores

CHECK_TEXTS = 256
PADDED_TEXTS = 5  # to see what padding does
PADDING_CHANGES = 1e-3  # of a probability: more than rounding
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Inputs:
    """What the cells of a sweep share; kept in a folder of the cache, from which each worker loads it.

    ids: of all texts in one run, int32 [tokens], by name (`input_ids`, perhaps `token_type_ids`); lengths: the token
    count of each text; ends: where each ends in `ids`; checked: indices of the texts that are compared; reference:
    their probabilities [checked, labels] from the original model in eager FP32 torch, computed text by text, without
    padding (empty if it was not asked for); flops: of one pass over the real tokens; about: `model` and `tokenizer`
    (lines to print), `problem`, `labels` (names), `limit` (most tokens of a text), `fills` and `side` (see
    batches.pad), `empty` (how many texts gave no token and were left out), `padding_effect` (with a reference).
    """

    folder: Path
    ids: dict[str, np.ndarray]
    lengths: np.ndarray
    ends: np.ndarray
    checked: np.ndarray
    reference: np.ndarray
    flops: float
    about: dict

    def rows(self, batch: Iterable[int]) -> dict[str, list[np.ndarray]]:
        """Returns the ids of each text of a batch."""
        spans = [slice(self.ends[i] - self.lengths[i], self.ends[i]) for i in batch]
        return {name: [values[span] for span in spans] for name, values in self.ids.items()}

    def texts(self) -> list[str]:
        return json.loads((self.folder / "texts.json").read_text(encoding="utf-8"))


def load_inputs(folder: Path) -> Inputs:
    with np.load(folder / "arrays.npz") as file:
        arrays = dict(file)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    ids = {name: arrays.pop(name) for name in ("input_ids", "token_type_ids") if name in arrays}
    return Inputs(folder, ids, **arrays, flops=about.pop("flops"), about=about)


def identify(model: Path, texts: list[str]) -> dict[str, str]:
    """Returns the digests that a row carries: of the texts, and of the model's weights, config and tokenizer."""
    parts = [file for file in sorted(model.iterdir()) if file.suffix in (".json", ".txt", ".model", *WEIGHTS)]
    return {"texts_id": digest(text.encode() for text in texts), "weights_id": digest(parts)}


def prepare_inputs(model: Path, texts: list[str], gpu: int | None, with_reference: bool = True) -> Inputs:
    """Tokenizes the texts and computes the reference, or loads both from the cache.

    With a reference some of the texts are checked, evenly spaced; without one, all of them.
    """
    known = [*identify(model, texts).values(), *versions("torch", "transformers", "tokenizers").values()]
    key = digest(str(part).encode() for part in (*known, CHECK_TEXTS, PADDED_TEXTS, gpu is not None, with_reference))
    folder = CACHE / "inputs" / key

    def make(temporary: Path) -> None:
        (temporary / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        in_fresh_process(make_inputs, model, temporary, Place(gpu, cpu_cores()), with_reference)

    if folder.exists():
        with contextlib.suppress(OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            inputs = load_inputs(folder)
            inputs.texts()
            return inputs
        shutil.rmtree(folder, ignore_errors=True)  # it is damaged
    make_once(folder, make)
    return load_inputs(folder)


def make_inputs(model: Path, folder: Path, place: Place, with_reference: bool) -> None:
    """Writes arrays.npz and about.json beside `folder`/texts.json."""
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    config, tokenizer = load_config(model), load_tokenizer(model)
    about = describe_model(config, tokenizer)
    limit, fills, problem, flops = about["limit"], about["fills"], about["problem"], 0.0
    names = token_names(fills)
    tokenize(tokenizer, texts[:1], limit)  # the first call sets the tokenizer up
    start = time.monotonic()
    rows = tokenize(tokenizer, texts, limit, names)
    speed = len(texts) / (time.monotonic() - start)
    full = [i for i, ids in enumerate(rows["input_ids"]) if ids]
    if not full:
        raise UserError("the tokenizer gives no token for any text")
    if len(full) < len(texts):
        (folder / "texts.json").write_text(json.dumps([texts[i] for i in full]), encoding="utf-8")
        rows = {name: [values[i] for i in full] for name, values in rows.items()}
    check_vocabulary(rows["input_ids"], config)
    if fills.get("token_type_ids") == 0 and not any(any(types) for types in rows["token_type_ids"]):
        del rows["token_type_ids"]  # pad() gives zeros

    arrays = {name: np.concatenate(values).astype(np.int32) for name, values in rows.items()}
    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    arrays |= {"lengths": lengths, "ends": np.cumsum(lengths)}
    arrays |= {"checked": np.arange(len(full)), "reference": np.empty(0)}
    if with_reference:
        arrays["checked"] = evenly_spaced(len(full), CHECK_TEXTS)
        runner = VARIANTS["torch"].load(model, place)
        alone = [{name: [values[i]] for name, values in rows.items()} for i in arrays["checked"]]
        arrays["reference"] = np.concatenate([answers(runner, pad(row, fills), problem) for row in alone])
        by_length = sorted(arrays["checked"], key=lambda i: len(rows["input_ids"][i]))
        shorter = by_length[: len(by_length) * 2 // 3 + 1]  # the longest would take seconds
        some = [int(shorter[i]) for i in evenly_spaced(len(shorter), PADDED_TEXTS)]
        batch = pad({name: [values[i] for i in some] for name, values in rows.items()}, fills, about["side"])
        about["padding_effect"] = padding_effect(runner, batch, problem)
        try:
            flops = count_flops(model, lengths, max(rows["input_ids"], key=len))
        except Exception:  # torch's counter fails for Perceiver, and CANINE takes no short texts
            flops = math.nan
    about |= {
        "model": f"{config.model_type}, {config.num_labels} labels, {problem}, at most {limit} tokens",
        "tokenizer": f"{speed:,.0f} messages/s ({'fast' if tokenizer.is_fast else 'slow'} tokenizer)",
        "empty": len(texts) - len(full),
        "flops": flops,
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    np.savez(folder / "arrays.npz", **arrays)


def padding_effect(runner: Runner, batch: dict[str, np.ndarray], problem: str) -> float:
    """Returns how far any probability of a padded batch is from that of its text alone."""
    masks = batch["attention_mask"].astype(bool)
    texts = [{name: array[[i]][:, mask] for name, array in batch.items()} for i, mask in enumerate(masks)]
    alone = [answers(runner, text, problem) for text in texts]
    return float(np.abs(answers(runner, batch, problem) - np.concatenate(alone)).max())


def padding_words(kind: str, effect: float) -> str:
    return f"padding changes the answers of this {kind}, by up to {effect:.2g} on {PADDED_TEXTS} texts: pad little"


def answers(runner: Runner, batch: dict[str, np.ndarray], problem: str) -> np.ndarray:
    """Returns the probabilities [texts, labels] of a batch."""
    return probabilities(runner.fetch(runner.forward(runner.prepare(batch))), problem)


def describe_model(config, tokenizer) -> dict:
    """Returns what a batch must know of a model: `problem`, `labels`, `limit`, `fills` and `side`, see Inputs."""
    return {
        "problem": problem_type(config),
        "labels": [clean(str(config.id2label.get(i, f"LABEL_{i}"))) for i in range(config.num_labels)],
        "limit": token_limit(config, tokenizer),
        "fills": input_fills(config, tokenizer),
        "side": tokenizer.padding_side,
    }


def token_names(fills: dict[str, int]) -> list[str]:
    """Returns which of a model's inputs the tokenizer gives."""
    return [name for name in fills if name != "attention_mask"]


def input_fills(config, tokenizer) -> dict[str, int]:
    """Returns what the model gets, by name, and what stands where padding is.

    These are the names that its forward has, and of token types those that its tokenizer gives, as in transformers'
    `model(**tokenizer(text))`. Raises UserError for a model that can't tell padding from text.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    kind = config.model_type
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"transformers has no classifier of type {kind}")
    accepted = inspect.signature(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].forward).parameters
    if "attention_mask" not in accepted:
        raise UserError(f"a {kind} has no attention mask, so that padding would change its answers")
    if config.pad_token_id is None and "past_key_values" in accepted and not config.is_encoder_decoder:
        raise UserError(f"this {kind} has no pad_token_id, which it needs to find the end of each text")
    fills = {"input_ids": tokenizer.pad_token_id or 0, "attention_mask": 0}
    if "token_type_ids" in accepted and "token_type_ids" in tokenizer.model_input_names:
        fills["token_type_ids"] = tokenizer.pad_token_type_id
    return fills
