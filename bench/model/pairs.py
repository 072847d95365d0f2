"""The task of models that compare two texts: NLI, duplicates, similarity, and rerankers with a single score."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.model.classification import CARDS, MIN_CHANGE, MULTI, REGRESSION, Classification, resolve_labels
from bench.model.sentence_files import cross_encoder_settings
from bench.model_files import PROMPTS
from bench.options import TRUNCATIONS
from bench.tables.items import Item
from utils import UserError, say

SECOND_WORDS = 8  # of the second texts of examples: they leave room for the first if only that one is truncated
NEAR_ONE = 1e-3  # distance from 1 within which logits of scores are compressed
SIGMOIDS = {"Identity": False, "Sigmoid": True}  # torch's names of activations


@dataclass(frozen=True)
class Pairs(Classification):
    """A classifier of pairs of texts. A single label is a score, judged like a regression: no threshold is known."""

    takes_pairs = True
    truncation: str = TRUNCATIONS[0]  # of the two texts
    sigmoid_score: bool = False  # the score is the sigmoid of the output

    @classmethod
    def from_config(cls, config, folder: Path) -> "Pairs":
        settings = cross_encoder_settings(folder)
        if prompt := settings.get("default_prompt_name"):
            raise UserError(f"{folder}/{PROMPTS} puts the prompt {prompt!r} before pairs, which is not supported")
        if config.num_labels > 1:
            return super().from_config(config, folder)
        return cls(resolve_labels(config), REGRESSION, (0.5,), sigmoid_score=has_sigmoid(config, settings))

    def with_options(self, options: dict, tokenizer, max_length: int) -> "Pairs":
        return replace(self, **options)

    def save_files(self, model, target: Path) -> None:
        if cross_encoder_settings(model.folder):  # they name the activation
            shutil.copy(model.folder / PROMPTS, target / PROMPTS)

    @property
    def answer_options(self) -> str:
        return f"pairs {self.truncation}"

    @property
    def summary(self) -> str:
        kind = "sigmoid scores" if self.sigmoid_score else self.problem_type
        return f"pairs of texts, {len(self.labels)} labels, {kind}"

    def examples(self, texts: list[str]) -> list[Item]:
        seconds = [" ".join(text.split()[:SECOND_WORDS]) for text in texts]
        return list(zip(texts, [*seconds[1:], seconds[0]], strict=True))

    def comparable(self, answers: np.ndarray) -> np.ndarray:
        """Return what is compared of answers [items, labels]: of sigmoid scores their logits.

        All scores of a reranker may be close to 0, where they have an order all the same. Close to 1 logits are
        compressed, so that they do not exaggerate the rounding of float32.
        """
        if not self.sigmoid_score:
            return answers
        answers = np.maximum(answers.astype(np.float64), np.finfo(np.float32).tiny)
        return np.log(answers / (1 + NEAR_ONE - answers))

    @property
    def card(self) -> dict:
        card = super().card
        if self.sigmoid_score:
            card = CARDS[MULTI] | {"output_word": "score", "compared": "score, as a logit"}
        return card | {"truncation": self.truncation}


def order_changes(answers: np.ndarray, reference: np.ndarray, groups: list[str]) -> tuple[np.ndarray, int]:
    """Compare the order of neighbours in the reference's order of each group, such as a query.

    Returns (the items that change places with the one below, number of neighbours). Scores [items, 1] whose difference
    is within MIN_CHANGE are a tie, which does not count.
    """
    neighbours = np.lexsort((reference[:, 0], groups))
    lower, upper = neighbours[:-1], neighbours[1:]
    same = np.array([groups[i] == groups[j] for i, j in zip(lower, upper, strict=True)], bool)
    same &= (reference[upper] - reference[lower])[:, 0] > MIN_CHANGE  # False for nan
    return upper[same & ~(answers[upper] > answers[lower])[:, 0]], int(same.sum())


def has_sigmoid(config, settings: dict) -> bool:
    """True if a model with one label applies a sigmoid, by the fields that sentence-transformers' CrossEncoder reads.

    `settings`: see cross_encoder_settings; they come first. Without these fields, problem_type decides, as in
    transformers' pipeline. Raises UserError for another activation.
    """
    blocks = settings, getattr(config, "sentence_transformers", None) or {}
    older = getattr(config, "sbert_ce_default_activation_function", None)
    name = next(filter(None, [*(block.get("activation_fn") for block in blocks), older]), None)
    if not name and config.problem_type == REGRESSION:
        reason = "problem_type in config.json is regression, so scores are the outputs, as in transformers' pipeline"
        say(f"note       {reason}; sentence-transformers' CrossEncoder would give their sigmoid")
    if not name:
        return config.problem_type != REGRESSION
    kind = str(name).rpartition(".")[2]
    if kind not in SIGMOIDS:
        raise UserError(f"the model names the activation {name}; only those of {', '.join(SIGMOIDS)} are supported")
    return SIGMOIDS[kind]
