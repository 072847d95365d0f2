"""What a model is for: how items become rows of token ids, what its outputs mean, and what a decision is.

A task is a class in a file of its own, such as classification.py, and a line in TASKS of tasks.py. It is plain data
that is pickled with its Model, and the only place that knows what is particular to the task.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.model.tokenizing import DEFAULT_MAX_LENGTH, load_tokenizer, tokenize, tokenize_windows
from bench.options import ITEM_OPTIONS, TRUNCATIONS, VECTOR_OPTIONS
from bench.tables.items import Item
from utils import UserError


@dataclass(frozen=True)
class Task:
    """The interface of a task, and what most of them share."""

    name: ClassVar[str]  # what transformers' pipelines, optimum and the Hub call it
    output: ClassVar[str] = "logits"  # name of the output to read, in torch and in ONNX
    encoder_output: ClassVar[str] = ""  # name of the output from which the task computes its own in FP32, if it does
    class_suffix: ClassVar[str]  # of classes in transformers and optimum, such as ForSequenceClassification
    takes_pairs = False  # the model gets two texts in a row
    truncation = TRUNCATIONS[0]  # of pairs; without an annotation, so that a task may have it as a field
    # the script that answers files of texts, a name for its output, and options of run_benchmark.py that it takes, too
    script: ClassVar[tuple[str, ...]] = ("classify_texts.py", "labels", "task", "threshold", *ITEM_OPTIONS)
    default_max_length: ClassVar[int | None] = DEFAULT_MAX_LENGTH  # None: the model or its tokenizer must have a limit
    libraries: ClassVar[tuple[str, ...]] = ("pipeline", "crossencoder")  # baselines that fit, see Variant.library
    compared_rows: ClassVar[int] = 64  # of the first part of a labelling job, to stop early if they are wrong
    optional_weights: ClassVar[tuple[str, ...]] = ()  # beginnings of the names of weights that may be missing
    labels: tuple[str, ...]  # one name per number in an answer

    @classmethod
    def matches(cls, config: dict) -> bool:
        """True if the content of config.json says that a model is for this task."""
        return any(str(name).endswith(cls.class_suffix) for name in config.get("architectures") or ())

    @classmethod
    def from_config(cls, config, folder: Path) -> "Task":
        """Read the task from a transformers config and its folder. Raises UserError if they can't be used for it."""
        raise NotImplementedError

    def with_options(self, options: dict, tokenizer, max_length: int) -> "Task":
        """Return the task with its options, see bench/task_options.py. Raises UserError if they don't fit."""
        if given := [name.replace("_", "-") for name in VECTOR_OPTIONS if options.get(name) not in (None, False)]:
            raise UserError(f"--{given[0]} is for embedding models, and this model's task is {self.name}; drop it")
        return self

    def with_thresholds(self, text: str | None) -> "Task":
        """Return the task with the thresholds of `--threshold`. Raises UserError if it has none."""
        if text is not None:
            reason = f"--threshold applies only to multi-label models, and this model has {self.summary}"
            raise UserError(f"{reason}; drop --threshold")
        return self

    @classmethod
    def auto_class(cls) -> type:
        import transformers

        return getattr(transformers, f"AutoModel{cls.class_suffix}")

    @classmethod
    def class_of(cls, config) -> type:
        """Return the class of transformers for a model's type. Raises UserError if there is none."""
        classes = cls.auto_class()._model_mapping
        if type(config) not in classes:
            raise UserError(f"transformers has no AutoModel{cls.class_suffix} for models of type {config.model_type}")
        return classes[type(config)]

    @property
    def fingerprint(self) -> list[bytes]:
        """Return what determines the answers beside the model's files, for its weights_id."""
        return []

    def wrap(self, model, network):
        """Return a loaded network with all that computes the task's output in torch."""
        return network

    def check_export(self) -> None:
        """Raise UserError if an export can't compute what was asked for."""

    def save_files(self, model, target: Path) -> None:
        """Save what an export needs of the model's folder beside config and tokenizer."""

    def set_up_tokenizer(self, tokenizer, folder: Path) -> None:
        """Apply the task's own settings to a tokenizer that was just loaded."""

    @property
    def n_outputs(self) -> int:
        """Return how many numbers the network returns for a row."""
        return len(self.labels)

    @property
    def parts(self) -> int:
        """Return the number of parts of an item, each of which has rows of its own."""
        return 1

    @property
    def answer_options(self) -> str:
        """Return which options change the answers; empty for the defaults."""
        return ""

    def examples(self, texts: list[str]) -> list[Item]:
        """Make items of some texts, with which exports are tried."""
        return list(texts)

    def tokenize(self, tokenizer, items: list[Item], max_length: int, names: list[str], windows: bool) -> dict:
        """Return rows of token ids: name -> list [rows], for `names` and for `item`, the index of each row's item.

        An item may have several rows, which answers() combines: windows, or several `parts`, whose number in the item
        is then in `part`. See bench/model/tokenizing.py.
        """
        if windows:
            return tokenize_windows(tokenizer, items, max_length, names)
        return tokenize(tokenizer, items, max_length, names, self.truncation)

    def activate(self, outputs: np.ndarray) -> np.ndarray:
        """Turn a model's outputs [rows, n] into answers for each row alone, float64 [rows, n], to compare rows."""
        raise NotImplementedError

    def answers(self, outputs: np.ndarray, owners: np.ndarray, items: int, long: str) -> np.ndarray:
        """Turn a model's outputs [rows, n] into answers, float64 [items, labels].

        `owners`: the item of each row, or with several parts, item x parts + part; `long`: how the windows of a long
        text are combined, one of LONG_TEXTS. An item without rows, or with an output that is not finite, has nan.
        """
        raise NotImplementedError

    def reference(self, model, original, item: Item, long: str) -> np.ndarray:
        """Return the answer [labels] for one item by the library's documented call; nan if the model can't answer it.

        `original`: the Reference, whose run() makes a forward pass. Neither tokenizing nor padding may be tokenize()'s.
        """
        raise NotImplementedError

    def differences(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return how far answers [items, labels] are from the reference, [items, n], to compare with ROUNDING."""
        raise NotImplementedError

    def scale(self, reference: np.ndarray) -> float:
        """Return the number that differences of this reference are in proportion to, at least 1."""
        return 1.0

    def basis(self, reference: np.ndarray) -> np.ndarray | None:
        """Return what flips() needs of the reference for a sample of the texts."""
        return None

    def pipeline(self, model, network, device):
        """Return transformers' pipeline for this task, with the limit and the inputs of the model."""
        from transformers import pipeline

        tokenizer = load_tokenizer(model.folder)
        tokenizer.padding_side, tokenizer.model_max_length = model.padding_side, model.max_length
        tokenizer.model_input_names = list(model.pad_values)
        return pipeline(self.name, model=network, tokenizer=tokenizer, device=device)

    def pipeline_answers(self, pipe, items: list[Item], batch_size: int) -> np.ndarray:
        """Return the answers [items, labels] of pipeline()."""
        raise NotImplementedError

    @property
    def rule_id(self) -> str:
        """Return the value of the column `threshold`: the answer_options, and how answers become decisions."""
        return self.answer_options

    @property
    def summary(self) -> str:
        """Return a short description of the model's answers."""
        return f"{len(self.labels)} labels"

    @property
    def decision_words(self) -> str:
        """Describe a changed decision, for reports."""
        raise NotImplementedError

    def flips(self, answers: np.ndarray, reference: np.ndarray, basis: np.ndarray | None = None) -> np.ndarray:
        """Return which decisions differ in two [items, labels], bool [items, decisions of an item].

        A number that is not finite is a change. `basis`: see basis(); by default that of this reference.
        """
        raise NotImplementedError

    def weak_test(self, reference: np.ndarray, tolerance: float) -> str:
        """Return a note if so few answers are close to another decision that large differences would pass, else ''."""
        return ""

    @property
    def card(self) -> dict:
        """Return the model card's fields: `activation` (NumPy code), `output_word`, and what else it needs."""
        raise NotImplementedError
