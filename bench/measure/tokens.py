"""Texts -> their token ids, and the reference of those that are compared: what all cells of a sweep share."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bench.judge import MIN_SAMPLE, N_SAMPLE
from bench.measure.peak import count_flops
from bench.model.model import Model
from bench.model.reference import N_PADDED_TEXTS, CachedReference
from bench.tables.datasets import evenly_spaced
from bench.tables.items import Item
from utils import UserError


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts with their rows of token ids; sent to every worker."""

    texts: list[Item]  # without those that have no token
    ids: dict[str, np.ndarray]  # rows joined, int32 [tokens]: `input_ids`, perhaps `token_type_ids`
    items: np.ndarray  # the index of each row's text, ascending
    owners: np.ndarray  # of each row, see Task.answers
    lengths: np.ndarray  # tokens of each row
    groups: np.ndarray  # of each row, see Model.groups
    tokens_speed: float  # messages/s of the tokenizer
    n_empty: int  # texts left out because they have no token
    sample: np.ndarray  # indices of the texts that are compared
    reference: np.ndarray | None = None  # answers of the original model [sample, labels]; None without one
    padding_effect: float = 0.0  # see Reference.padding_effect
    tokenizer: str = ""  # its class
    is_fast: bool = True  # in transformers' sense: it is written in Rust and uses all cores
    flops: float = np.nan  # of one pass over the tokens without padding; nan if torch cannot count them

    def rows(self, batch: Iterable[int]) -> dict[str, list[list[int]]]:
        spans = [slice(self.offsets[i], self.offsets[i + 1]) for i in batch]
        return {name: [values[span].tolist() for span in spans] for name, values in self.ids.items()}

    @cached_property
    def offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.lengths)])


def prepare_tokens(model: Model, texts: list[Item], call: Callable) -> TokenizedTexts:
    """Tokenize the texts and count their FLOPs. `call` runs a function in a helper process."""
    tokens = call(tokenize, model, texts)
    longest = tokens.rows([tokens.lengths.argmax()])["input_ids"][0]
    return replace(tokens, flops=count_flops(model, tokens.lengths, longest, call))


def with_reference(tokens: TokenizedTexts, model: Model, gpu: int | None) -> TokenizedTexts:
    """Add the answers of the original model, if there is one."""
    if not model.can_be_compared:
        return tokens
    by_length = tokens.sample[np.argsort(np.bincount(tokens.items, tokens.lengths)[tokens.sample], kind="stable")]
    shorter = by_length[: len(by_length) * 2 // 3 + 1]  # the longest would take seconds
    padded = [tokens.texts[shorter[i]] for i in evenly_spaced(len(shorter), N_PADDED_TEXTS)]
    with CachedReference(model, gpu) as original:
        reference = original.answers([tokens.texts[i] for i in tokens.sample])
        return replace(tokens, reference=reference, padding_effect=original.padding_effect(padded))


def tokenize(model: Model, texts: list[Item]) -> TokenizedTexts:
    """Tokenize the texts, without the reference. Raises UserError if no text has a token."""
    model.tokenize(texts[:1])  # the first call sets the tokenizer up
    start = time.monotonic()
    rows = model.tokenize(texts)
    seconds = time.monotonic() - start
    del rows["lost"]
    full = [i for i, ids in enumerate(rows["input_ids"]) if ids]
    if not full:
        raise UserError("the tokenizer finds no token in any text: check the texts and the model's tokenizer")
    rows = {name: [values[i] for i in full] for name, values in rows.items()}
    answered, items = np.unique(rows.pop("item"), return_inverse=True)
    owners = items * model.task.parts + np.array(rows.pop("part"), int)
    return TokenizedTexts(
        texts=[texts[i] for i in answered],
        ids={name: np.concatenate(values).astype(np.int32) for name, values in rows.items()},
        items=items,
        owners=owners,
        lengths=np.array([len(ids) for ids in rows["input_ids"]]),
        groups=model.groups(rows["input_ids"]),
        tokenizer=type(model.tokenizer).__name__,
        is_fast=model.tokenizer.is_fast,
        tokens_speed=len(texts) / seconds,
        n_empty=len(texts) - len(answered),
        sample=evenly_spaced(len(answered), max(MIN_SAMPLE, N_SAMPLE // model.task.parts)),
    )
