"""The task of zero-shot classification: an NLI model decides whether a text entails a sentence about each label.

The arithmetic is that of transformers' pipeline, which is also the reference.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.files import digest
from bench.model.answers import combine_windows, original_inputs, run_rows, softmax
from bench.model.classification import CARDS, MULTI, SINGLE, Classification, resolve_labels
from bench.model.tokenizing import overlap
from bench.options import TRUNCATIONS
from bench.tables.items import Item
from utils import UserError, say


@dataclass(frozen=True)
class ZeroShot(Classification):
    """An NLI model with candidate labels. Its labels are these candidates; each is a part of an item."""

    name: ClassVar[str] = "zero-shot-classification"
    libraries: ClassVar[tuple[str, ...]] = ("pipeline",)
    takes_pairs = True
    truncation = TRUNCATIONS[1]
    nli_labels: tuple[str, ...]  # of the model's outputs
    entailment: int  # their indices
    contradiction: int
    template: str = ""
    independent: bool = False  # entailment against contradiction for each label, instead of a softmax over the labels

    @classmethod
    def from_config(cls, config, folder: Path) -> "ZeroShot":
        nli_labels = resolve_labels(config)
        found = [i for i, label in enumerate(nli_labels) if label.lower().startswith("entail")]
        if not found:
            raise UserError(
                f"--candidate-labels needs an NLI model with a label that begins with 'entail'; {folder} has "
                f"{', '.join(nli_labels)}. Choose another model, or correct id2label in config.json"
            )
        named = [i for label, i in (config.label2id or {}).items() if str(label).lower().startswith("entail")]
        if named and named[0] != found[0]:
            raise UserError(f"{folder}/config.json: label2id and id2label have entailment at {named[0]} and {found[0]}")
        contradiction = len(nli_labels) - 1 if found[0] == 0 else 0  # as in transformers' pipeline
        return cls((), SINGLE, (), nli_labels, found[0], contradiction)

    def with_options(self, options: dict, tokenizer, max_length: int) -> "ZeroShot":
        labels = tuple(options["labels"])
        independent = options["multi_label"] or len(labels) == 1
        kind = MULTI if independent else SINGLE
        task = replace(self, labels=labels, problem_type=kind, thresholds=(0.5,) * len(labels), independent=independent)
        task = replace(task, template=options["template"])
        tokens = tokenizer(task.hypotheses, add_special_tokens=False)["input_ids"]
        length, longest = max(zip(map(len, tokens), task.hypotheses, strict=True))
        room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - length
        if room <= overlap(max_length):
            raise UserError(
                f"--candidate-labels: the hypothesis {longest!r} leaves {max(room, 0)} of {max_length} tokens for the "
                "text; choose shorter labels or a shorter --hypothesis-template"
            )
        opposite = self.nli_labels[self.contradiction]
        if independent and opposite.lower().startswith("neutral"):
            say(f"note       as in transformers' pipeline, entailment is compared with the first label, {opposite!r}")
        return task

    @property
    def hypotheses(self) -> list[str]:
        return [self.template.format(label) for label in self.labels]

    @property
    def n_outputs(self) -> int:
        return len(self.nli_labels)

    @property
    def parts(self) -> int:
        return len(self.labels)

    @property
    def answer_options(self) -> str:
        options = *self.hypotheses, str(self.independent)
        return f"zero-shot {digest(option.encode() for option in options)}"

    @property
    def summary(self) -> str:
        return f"zero-shot, {super().summary}"

    def tokenize(self, tokenizer, items: list[Item], max_length: int, names: list[str], windows: bool) -> dict:
        """Return the rows of each text with each hypothesis; `lost` is counted for the first hypothesis only."""
        hypotheses, count = self.hypotheses, self.parts
        pairs = [(text, hypothesis) for text in items for hypothesis in hypotheses]
        rows = super().tokenize(tokenizer, pairs, max_length, names, windows)
        rows["part"] = [i % count for i in rows["item"]]
        rows["item"] = [i // count for i in rows["item"]]
        if "lost" in rows:
            rows["lost"] = [0 if part else lost for part, lost in zip(rows["part"], rows["lost"], strict=True)]
        return rows

    def answers(self, outputs: np.ndarray, owners: np.ndarray, items: int, long: str) -> np.ndarray:
        outputs = np.where(np.isfinite(outputs), outputs, np.nan).astype(np.float64)
        entailed = outputs[:, [self.entailment]]
        if self.independent:
            entailed = softmax(outputs[:, [self.contradiction, self.entailment]])[:, 1:]
        combined = combine_windows(entailed, owners, items * self.parts, mean=long == "windows-mean")
        combined = combined.reshape(items, self.parts)
        return combined if self.independent else softmax(combined)

    def activate(self, outputs: np.ndarray) -> np.ndarray:
        """Return the probability of each of the model's own labels."""
        return softmax(np.where(np.isfinite(outputs), outputs, np.nan).astype(np.float64))

    def reference(self, model, original, item: Item, long: str) -> np.ndarray:
        """Return the answer of transformers' pipeline; with windows, which it lacks, combine outputs run row by row."""
        inputs = [original_inputs(model, model.tokenizer, (item, hypothesis), long) for hypothesis in self.hypotheses]
        if None in inputs:
            return np.full(len(self.labels), np.nan)
        if long == "cut":
            return self.pipeline_answers(original.pipeline, [item], batch_size=1)[0]
        outputs = [run_rows(original, of_part) for of_part in inputs]
        owners = np.repeat(np.arange(self.parts), list(map(len, outputs)))
        return self.answers(np.concatenate(outputs), owners, 1, long)[0]

    def pipeline(self, model, network, device):
        network.config.label2id = {"entailment": self.entailment}  # some configs have names in id2label only
        return super(Classification, self).pipeline(model, network, device)

    def pipeline_answers(self, pipe, items: list[Item], batch_size: int) -> np.ndarray:
        options = {"hypothesis_template": self.template, "multi_label": self.independent}
        found = pipe(items, list(self.labels), batch_size=batch_size, **options)
        scores = [dict(zip(answer["labels"], answer["scores"], strict=True)) for answer in found]
        return np.array([[of_item[label] for label in self.labels] for of_item in scores])

    @property
    def card(self) -> dict:
        return CARDS[SINGLE] | {"truncation": self.truncation}
