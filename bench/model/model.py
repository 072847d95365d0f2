"""The Model: a model's folder and everything that follows from its files, read once and sent to the workers."""

import inspect
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.files import digest, read_json
from bench.model.batches import pad
from bench.model.config import (
    SPOILT_BY_PADDING,
    check_takes_pairs,
    check_tokenizer_file,
    find_unknown_token_ids,
    load_config,
    resolve_pad_values,
    saved_by,
    sparse_attention,
)
from bench.model.loading import check_loading, explain_load_error, keep_head_in_fp32
from bench.model.onnx_file import read_precision
from bench.model.task import Task
from bench.model.tasks import choose_task
from bench.model.tokenizing import clear_row, load_tokenizer, resolve_max_length
from bench.model_files import model_files
from bench.naming import listed
from bench.tables.items import Item
from utils import RunError, UserError, say

TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Model:
    """A model of transformers. Only its fields are pickled; each process loads config and tokenizer when needed."""

    id: str  # as the user named it
    folder: Path
    weights_id: str  # 16 hexadecimal digits for all files that determine its answers
    model_type: str
    task: Task
    max_length: int  # tokens, special tokens included; longer texts are truncated
    special_tokens: list[str]  # as they may occur in a text
    pad_values: dict[str, int]  # the model's inputs, each with its padding value
    padding_side: str
    can_pad: bool  # False: only rows of one length share a batch
    unknown_token_ids: frozenset[int]  # tokens of the tokenizer that the model has no embedding for
    onnx_precision: str = ""  # of its ONNX file, if it has no weights for torch: fp32, fp16 or int8
    original: "Model | None" = None  # what its answers are compared with; None for itself

    @classmethod
    def from_folder(cls, folder: Path, model_id: str, task: str | None = None, options: dict | None = None) -> "Model":
        """Open a model's folder for a `task` (see choose_task); note on standard error what is special about it.

        `options`: see Task.with_options. Raises UserError if config or tokenizer can't be used, or do not match.
        """
        config, tokenizer = load_config(folder), load_tokenizer(folder)
        check_tokenizer_file(tokenizer, folder)
        task_class = choose_task(folder, read_json(folder / "config.json"), model_id, task)
        accepted = inspect.signature(task_class.class_of(config).forward).parameters
        model_task = task_class.from_config(config, folder)
        model_task.set_up_tokenizer(tokenizer, folder)
        max_length = resolve_max_length(config, tokenizer, task_class.default_max_length)
        model_task = model_task.with_options(options or {}, tokenizer, max_length)
        pad_values = resolve_pad_values(config, tokenizer, accepted)
        reads_last = task_class.output == "logits" and getattr(config, "summary_type", None) == "last"  # XLNet
        if task_class.takes_pairs:
            check_takes_pairs(config, tokenizer, pad_values)
        model = cls(
            id=model_id,
            folder=folder,
            weights_id=digest([*model_files(folder), *model_task.fingerprint]),
            model_type=config.model_type,
            task=model_task,
            max_length=max_length,
            special_tokens=list(map(str, tokenizer.all_special_tokens)),
            pad_values=pad_values,
            padding_side="left" if reads_last else "right",  # whatever the tokenizer's own: no text's positions move
            can_pad="attention_mask" in pad_values and config.model_type not in SPOILT_BY_PADDING,
            unknown_token_ids=find_unknown_token_ids(config, tokenizer),
            onnx_precision=read_precision(folder),
        )
        if sparse_attention(config):
            say(f"{model_id} runs with full attention: block-sparse attention depends on earlier batches")
        vars(model).update(config=config, tokenizer=tokenizer)
        return model

    @property
    def labels(self) -> list[str]:
        return list(self.task.labels)

    def with_thresholds(self, text: str | None) -> "Model":
        """Return this model with the thresholds of `--threshold`. Raises UserError, see Task.with_thresholds."""
        return replace(self, task=self.task.with_thresholds(text))

    def with_original(self, original: "Model") -> "Model":
        """Return this ONNX-only model with the `original` to compare it with. Raises UserError if they don't fit."""
        if not self.onnx_precision:
            raise UserError(f"--original is for a model that holds only ONNX; {self.id} is compared with itself")
        if original.onnx_precision:
            raise UserError(f"--original {original.id} holds only ONNX; name the model that it was exported from")
        if (self.labels, self.task.summary) != (original.labels, original.task.summary):
            words = [f"{model.id} has {model.task.summary} ({listed(model.labels)})" for model in (original, self)]
            raise UserError(f"--original {', but '.join(words)}; name the model that it was exported from")
        return replace(self, original=original)

    @property
    def public_name(self) -> str:
        """Its id on the Hub, or the name of its folder without the path, for what others may read."""
        return self.id if self.folder != Path(self.id) else self.folder.resolve().name

    @property
    def can_be_compared(self) -> bool:
        """True unless there are only the ONNX file's own answers."""
        return bool(self.original or not self.onnx_precision)

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def config(self):
        return load_config(self.folder)

    @cached_property
    def tokenizer(self):
        tokenizer = load_tokenizer(self.folder)
        self.task.set_up_tokenizer(tokenizer, self.folder)
        return tokenizer

    @cached_property
    def forward_names(self) -> list[str]:
        """Return the argument names of the model's forward pass in torch."""
        return list(inspect.signature(self.task.class_of(self.config).forward).parameters)

    def tokenize(self, items: list[Item], max_length: int | None = None, windows: bool = False) -> dict[str, list]:
        """Return the rows of Task.tokenize(), with each `part`. An item that the model can't answer has no tokens."""
        longest = min(max_length or self.max_length, self.max_length)
        rows = self.task.tokenize(self.tokenizer, items, longest, [*self.token_inputs, "lost"], windows)
        rows.setdefault("part", [0] * len(rows["item"]))
        if self.unknown_token_ids or self.eos_ids:
            numbered = zip(rows["item"], rows["input_ids"], strict=True)
            refused = {i for i, ids in numbered if not self.is_valid_input(ids)}
            for row, i in enumerate(rows["item"]):
                if i in refused:
                    clear_row(rows, row)
        return rows

    @cached_property
    def token_inputs(self) -> list[str]:
        """Return the inputs that tokenize() makes. pad() makes token types that are 0 in every text."""
        names = [name for name in self.pad_values if name != "attention_mask"]
        if "token_type_ids" in names and not self.task.takes_pairs:
            types = self.tokenizer("A text.", return_token_type_ids=True)["token_type_ids"]
            return names if any(types) else ["input_ids"]
        return names

    def first_rows(self, items: list[Item], max_length: int | None = None) -> dict[str, list]:
        """Return the rows of tokenize() for the first part of each item."""
        return {name: values[:: self.task.parts] for name, values in self.tokenize(items, max_length).items()}

    def is_valid_input(self, ids: list[int]) -> bool:
        """True if the model has an embedding for each token and, for BART's relatives, an end of sequence."""
        eos_ids = self.eos_ids
        return bool(len(ids)) and self.unknown_token_ids.isdisjoint(ids) and not (eos_ids and eos_ids.isdisjoint(ids))

    @cached_property
    def eos_ids(self) -> set[int]:
        """Return the end-of-sequence ids that an encoder-decoder's head reads; empty for other models."""
        eos_ids = self.config.eos_token_id if self.config.is_encoder_decoder else None
        return set() if eos_ids is None else {eos_ids} if isinstance(eos_ids, int) else set(eos_ids)

    def groups(self, token_ids: list[list[int]]) -> np.ndarray:
        """Return a group for each row, int [rows]: rows of different groups can't share a batch.

        The group is the length if rows can't be padded. BART-like models need the same number of EOS tokens in every
        row of a batch; a text that contains `</s>` has one more.
        """
        if not self.can_pad:
            return np.array([len(ids) for ids in token_ids], int)
        eos_ids = self.eos_ids
        return np.array([sum(id in eos_ids for id in ids) if eos_ids else 0 for ids in token_ids], int)

    def pad(self, rows: dict[str, list], to_length: int = 0) -> dict[str, np.ndarray]:
        """Pad rows of tokenize() to a batch: input name -> int64 [rows, tokens]."""
        return pad(rows, self.pad_values, self.padding_side, to_length)

    def check_unchanged(self) -> None:
        """Raise RunError if the files have changed since from_folder(); without a weights_id nothing is checked."""
        if self.weights_id and digest([*model_files(self.folder), *self.task.fingerprint]) != self.weights_id:
            raise RunError(f"{self.folder} changed during the run: rerun the command")

    def load_torch(self, precision: str = "fp32", **options):
        """Load the model in torch on the CPU. Raises UserError if weights are missing: they would be random.

        Below FP32 the head stays in FP32: BF16 has steps of 1/16 for logits near 8. Custom code is never executed, and
        pickles are read as weights only. `options` are passed to from_pretrained.
        """
        if self.onnx_precision:
            raise UserError(f"{self.folder} holds only ONNX, without weights for torch; use the original model")
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        options |= {"trust_remote_code": False, "local_files_only": True}
        options["dtype"] = getattr(torch, TORCH_DTYPES[precision])
        if sparse_attention(self.config):
            options["attention_type"] = "original_full"
        try:
            model, loading = self.task.auto_class().from_pretrained(self.folder, **options)
        except Exception as error:  # a wrong config and a broken file fail in many ways
            reason = explain_load_error(self.folder, error)
            raise UserError(f"{self.folder} can't be loaded: {reason}{saved_by(self.folder)}") from error
        optional = self.task.optional_weights
        loading["missing_keys"] = [name for name in loading["missing_keys"] if not name.startswith(optional)]
        check_loading(self.folder, model, loading)
        model = self.task.wrap(self, model)
        if precision != "fp32":
            keep_head_in_fp32(model)
        return model.eval()
