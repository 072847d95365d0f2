"""The task of a classifier: one text in, a probability for each label out, or the values of a regression."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.files import digest, read_json
from bench.model.answers import combine_windows, original_inputs, run_rows, sigmoid, softmax
from bench.model.task import Task
from bench.tables.items import Item
from utils import UserError, clean, say

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
DECISIONS = {
    MULTI: "labels that cross {threshold}",
    SINGLE: "texts with another most probable label",
    REGRESSION: "values that move by more than a tenth of the original's standard deviation",
}
CARDS = {
    MULTI: {"activation": "1 / (1 + np.exp(-logits))", "output_word": "probability"},
    SINGLE: {"activation": "softmax(logits)", "output_word": "probability"},
    REGRESSION: {"activation": "logits", "output_word": "value"},
}
NEAR = 0.05  # of a probability: further than a usable variant moves it
MIN_CHANGE = 1e-4  # smallest change of a regression value that counts as a changed decision


@dataclass(frozen=True)
class Classification(Task):
    """A classifier with one label that is predicted, or with several, or a regression."""

    name: ClassVar[str] = "text-classification"
    class_suffix: ClassVar[str] = "ForSequenceClassification"
    sigmoid_score = False
    problem_type: str  # SINGLE, MULTI or REGRESSION
    thresholds: tuple[float, ...]  # above which each label of a MULTI model is predicted

    @classmethod
    def from_config(cls, config, folder: Path) -> "Classification":
        labels = resolve_labels(config)
        if config.problem_type == REGRESSION and labels == ("LABEL_0",):
            reason = "problem_type in config.json is regression, so the outputs are the values, as in transformers"
            say(f"note       {reason}; if {folder} compares two texts, name the second one's column: --pair-column")
        return cls(labels, resolve_problem_type(config), (0.5,) * len(labels))

    def with_thresholds(self, text: str | None) -> "Classification":
        """Return the task with `--threshold`: a number for all labels, or a JSON file of some labels -> number."""
        if text is None or self.problem_type != MULTI:
            return super().with_thresholds(text)
        try:
            given = dict.fromkeys(self.labels, float(text))
        except ValueError:
            given = read_json(Path(text))
        if unknown := [label for label in given if label not in self.labels]:
            raise UserError(
                f"--threshold {text}: the model has no label {unknown[0]!r}; its labels: {', '.join(self.labels)}"
            )
        for label, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise UserError(f"--threshold {text}: {label} is {value!r}; give a number between 0 and 1")
        return replace(self, thresholds=tuple(float(given.get(label, 0.5)) for label in self.labels))

    def answers(self, outputs: np.ndarray, owners: np.ndarray, items: int, long: str) -> np.ndarray:
        return combine_windows(self.activate(outputs), owners, items, mean=long == "windows-mean")

    def activate(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits [rows, labels] into sigmoid, softmax or a regression's values in float64; infinity into nan."""
        logits = np.where(np.isfinite(logits), logits, np.nan).astype(np.float64)
        if self.problem_type == REGRESSION and not self.sigmoid_score:
            return logits
        return softmax(logits) if self.problem_type == SINGLE else sigmoid(logits)

    def reference(self, model, original, item: Item, long: str) -> np.ndarray:
        """Return the answer of `model(**tokenizer(text, truncation=True))`, or those of all windows combined."""
        inputs = original_inputs(model, model.tokenizer, item, long)
        if inputs is None:
            return np.full(len(self.labels), np.nan)
        combine = np.mean if long == "windows-mean" else np.max
        return combine(self.activate(run_rows(original, inputs)), axis=0)

    def pipeline(self, model, network, device):
        network.config.id2label = {i: str(i) for i in range(self.n_outputs)}  # names need not be unique
        return super().pipeline(model, network, device)

    def pipeline_answers(self, pipe, items: list[Item], batch_size: int) -> np.ndarray:
        """Return the answers of the text-classification pipeline, which takes a pair as a dictionary."""
        inputs = [item if isinstance(item, str) else {"text": item[0], "text_pair": item[1]} for item in items]
        options = {"top_k": None, "function_to_apply": "none", "truncation": self.truncation}
        logits = np.empty((len(items), self.n_outputs), dtype=np.float32)
        for row, scores in zip(logits, pipe(inputs, batch_size=batch_size, **options), strict=True):
            row[[int(score["label"]) for score in scores]] = [score["score"] for score in scores]
        return self.activate(logits)

    @property
    def rule_id(self) -> str:
        """Return the answer_options, and the threshold unless it is 0.5; a digest if labels have different ones."""
        threshold = "" if self.thresholds[0] == 0.5 else str(self.thresholds[0])
        if len(set(self.thresholds)) > 1:
            threshold = f"labels {digest([str(self.thresholds).encode()])}"
        return " ".join(filter(None, (self.answer_options, threshold)))

    @property
    def summary(self) -> str:
        return f"{len(self.labels)} labels, {self.problem_type}"

    @property
    def decision_words(self) -> str:
        threshold = f"{self.thresholds[0]:g}"
        if len(set(self.thresholds)) > 1:
            threshold = f"the threshold of each, {min(self.thresholds):g} to {max(self.thresholds):g}"
        return DECISIONS[self.problem_type].format(threshold=threshold)

    def top_label(self) -> "Classification":
        return replace(self, problem_type=SINGLE) if len(self.labels) > 1 else self

    def of_labels(self, labels: list[str]) -> "Classification":
        """Return the task restricted to `labels`. Each label is then decided on its own."""
        kind = MULTI if self.problem_type == SINGLE else self.problem_type  # the best of all labels is not known
        thresholds = tuple(self.thresholds[self.labels.index(label)] for label in labels)
        return replace(self, labels=tuple(labels), problem_type=kind, thresholds=thresholds)

    def decide(self, answers: np.ndarray) -> np.ndarray:
        """Return which labels are predicted, bool [items, labels]. Raises UserError for a regression."""
        if self.problem_type == REGRESSION:
            raise UserError("a regression has no labels to predict")
        if self.problem_type == MULTI:
            return answers > np.array(self.thresholds)
        return np.arange(answers.shape[1]) == answers.argmax(axis=1)[:, None]

    def comparable(self, answers: np.ndarray) -> np.ndarray:
        """Return what is compared of answers [items, labels]."""
        return answers

    def differences(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return np.abs(self.comparable(answers) - self.comparable(reference))

    def scale(self, reference: np.ndarray) -> float:
        return max(1.0, float(np.abs(self.comparable(reference)).max()))

    def basis(self, reference: np.ndarray) -> np.ndarray:
        """Return the standard deviation of each label [labels]."""
        return self.comparable(reference).std(axis=0)

    def flips(self, answers: np.ndarray, reference: np.ndarray, basis: np.ndarray | None = None) -> np.ndarray:
        """Return which decisions change, see DECISIONS."""
        if self.problem_type == REGRESSION:
            spread = self.basis(reference) if basis is None else basis
            changed = self.differences(answers, reference) > np.maximum(spread / 10, MIN_CHANGE)
        else:
            changed = self.decide(answers) != self.decide(reference)
        changed |= ~np.isfinite(answers)
        return changed.any(axis=1, keepdims=True) if self.problem_type == SINGLE else changed

    def weak_test(self, reference: np.ndarray, tolerance: float) -> str:
        reference = reference[np.isfinite(reference).all(axis=1)]
        distances = np.abs(reference - self.thresholds)
        if self.problem_type == SINGLE:
            second, best = np.sort(reference, axis=1)[:, -2:].T
            distances = (best - second) / 2
        near = int((distances < NEAR).sum())
        if self.problem_type == REGRESSION or near >= tolerance * distances.size:
            return ""
        share = f"{near:,} of {distances.size:,} are within {NEAR:g} of changing"
        return f"these texts hardly test the decisions ({self.decision_words}): only {share}; choose other texts"

    @property
    def card(self) -> dict:
        return CARDS[self.problem_type]


def resolve_labels(config) -> tuple[str, ...]:
    """Return the labels' names in the order of the logits. Raises UserError unless id2label has a name for each."""
    if missing := [i for i in range(config.num_labels) if i not in config.id2label]:
        raise UserError(
            f"id2label in config.json has {config.num_labels} labels but no number {missing[0]}; "
            f"number them from 0 to {config.num_labels - 1}"
        )
    labels = tuple(clean(str(config.id2label[i])) for i in range(config.num_labels))
    if wrong := [label for label, count in Counter(labels).items() if count > 1 or not label.strip()]:
        raise UserError(f"id2label in config.json has labels that can't be told apart: {wrong[0]!r}; rename them")
    return labels


def resolve_problem_type(config) -> str:
    """Return SINGLE, MULTI or REGRESSION, following transformers' text-classification pipeline.

    Unless it is a regression, one label means sigmoid; several labels without a problem_type mean softmax.
    """
    if config.problem_type not in (None, *DECISIONS):
        raise UserError(f"config.json has an unknown problem_type {config.problem_type!r}; use {', '.join(DECISIONS)}")
    if config.problem_type != REGRESSION and config.num_labels == 1:
        return MULTI
    return config.problem_type or SINGLE
