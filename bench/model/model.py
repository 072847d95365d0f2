"""A model's folder and all that follows from its files, made once and sent along: the Model."""

import inspect
import re
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.files import digest
from bench.model.batches import pad
from bench.model.config import (
    SPOILT_BY_PADDING,
    find_unknown_token_ids,
    load_config,
    resolve_pad_values,
    resolve_padding_side,
    saved_by,
    sparse_attention,
)
from bench.model.task import Task
from bench.model.tasks import choose_task
from bench.model.tokenizing import (
    check_tokenizer_file,
    empty,
    load_tokenizer,
    resolve_max_length,
)
from bench.tables.items import Item
from utils import RunError, UserError, first_line, say

TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
WEIGHTS = (".safetensors", ".bin")  # files of a model that hold its weights
SMALL_FILES = (".json", ".txt", ".model", ".spm", ".tiktoken", ".codes")  # its config, and what tokenizers need
# what torch.compile and DataParallel put before the names of weights
WRAPPER = re.compile(r"(^|\.)(_orig_mod|module)\.")


@dataclass(frozen=True)
class Model:
    """A model of transformers, with all that follows from the files in its folder.

    id: what the user called it; folder: where its files are; weights_id: 16 hexadecimal digits for all that makes its
    answers; task: what it is for; max_length: tokens of a text, the rest
    is cut off; special_tokens: as they may stand in a text; pad_values, padding_side: what the model gets, and what
    stands where padding is, see batches.pad; can_pad: if not, only texts of one length share a
    batch; unknown_token_ids: ids of tokens that the tokenizer can give and the model has no embedding of.

    A pickled Model has these fields alone: each process loads config and tokenizer once, if it needs them.
    """

    id: str
    folder: Path
    weights_id: str
    model_type: str
    task: Task
    max_length: int
    special_tokens: list[str]
    pad_values: dict[str, int]
    padding_side: str
    can_pad: bool
    unknown_token_ids: frozenset[int]

    @classmethod
    def from_folder(cls, folder: Path, model_id: str) -> "Model":
        """Opens a model's folder, and says what is special about it.

        Raises UserError if its config or its tokenizer can't be used, or if the two don't belong together.
        """
        config, tokenizer = load_config(folder), load_tokenizer(folder)
        check_tokenizer_file(tokenizer, folder)
        task = choose_task(config.architectures, model_id)
        accepted = inspect.signature(task.class_of(config).forward).parameters
        max_length, pad_values = resolve_max_length(config, tokenizer), resolve_pad_values(config, tokenizer, accepted)
        model = cls(
            id=model_id,
            folder=folder,
            weights_id=digest_weights(folder),
            model_type=config.model_type,
            task=task.from_config(config),
            max_length=max_length,
            special_tokens=list(map(str, tokenizer.all_special_tokens)),
            pad_values=pad_values,
            padding_side=resolve_padding_side(config),
            can_pad="attention_mask" in pad_values and config.model_type not in SPOILT_BY_PADDING,
            unknown_token_ids=find_unknown_token_ids(config, tokenizer),
        )
        if sparse_attention(config):
            say(f"{model_id} runs with full attention: with the sparse one answers depend on the texts before")
        vars(model).update(config=config, tokenizer=tokenizer)
        return model

    @property
    def labels(self) -> list[str]:
        return list(self.task.labels)

    def with_thresholds(self, text: str | None) -> "Model":
        """Return this model with the thresholds of `--threshold`. Raises UserError, see Task.with_thresholds."""
        return replace(self, task=self.task.with_thresholds(text))

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def config(self):
        return load_config(self.folder)

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.folder)

    @cached_property
    def forward_names(self) -> list[str]:
        """The names of the arguments of the model's forward pass in torch."""
        return list(inspect.signature(self.task.class_of(self.config).forward).parameters)

    def tokenize(self, items: list[Item], max_length: int | None = None, windows: bool = False) -> dict[str, list]:
        """Return rows: `input_ids`, `token_type_ids` if the model takes them, tokens `lost`, and the row's `item`.

        See Task.tokenize. An item that the model can't answer has no tokens. With `windows` a long text has several
        rows.
        """
        names = [*(name for name in self.pad_values if name != "attention_mask"), "lost"]
        longest = min(max_length or self.max_length, self.max_length)
        rows = self.task.tokenize(self.tokenizer, items, longest, names, windows)
        check = self.unknown_token_ids or self.eos_ids
        numbered = zip(rows["item"], rows["input_ids"], strict=True)
        refused = {i for i, ids in numbered if check and not self.is_valid_input(ids)}
        for row, i in enumerate(rows["item"] if refused else ()):
            if i in refused:
                empty(rows, row)
        return rows

    def is_valid_input(self, ids: list[int]) -> bool:
        """True if the model has an embedding for each token and, for BART's relatives, an end of sequence."""
        eos_ids = self.eos_ids
        return bool(len(ids)) and self.unknown_token_ids.isdisjoint(ids) and not (eos_ids and eos_ids.isdisjoint(ids))

    @cached_property
    def eos_ids(self) -> set[int]:
        """The tokens at the last of which an encoder-decoder's classifier reads its answer; none for other models."""
        eos_ids = self.config.eos_token_id if self.config.is_encoder_decoder else None
        return set() if eos_ids is None else {eos_ids} if isinstance(eos_ids, int) else set(eos_ids)

    def groups(self, token_ids: list[list[int]]) -> np.ndarray:
        """Returns a number for each text, int [texts]; those of different numbers can't be in one batch.

        That is the length where nothing may be padded. BART's relatives want the same number of ends in all texts of a
        batch; a text with a literal `</s>` has one more.
        """
        if not self.can_pad:
            return np.array([len(ids) for ids in token_ids], int)
        eos_ids = self.eos_ids
        return np.array([sum(id in eos_ids for id in ids) if eos_ids else 0 for ids in token_ids], int)

    def pad(self, rows: dict[str, list], to_length: int = 0) -> dict[str, np.ndarray]:
        """Pads a batch of what tokenize() gives: what the model gets, name -> int64 [texts, tokens]."""
        return pad(rows, self.pad_values, self.padding_side, to_length)

    def check_unchanged(self) -> None:
        """Raises RunError if the files are no longer those that the model was made of; with no weights_id it passes."""
        if self.weights_id and digest_weights(self.folder) != self.weights_id:
            raise RunError(f"{self.folder} has changed since the run began: start it again")

    def load_torch(self, precision: str = "fp32", **options):
        """Loads the classifier in torch on the CPU. Raises UserError if weights are missing: they would be random.

        In a precision below FP32 the head stays in FP32: BF16 has steps of 1/16 for logits near 8. Code that the model
        brings is never run, and pickled weights are read as weights only. `options` are from_pretrained's.
        """
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # of which it tells, and we then
        options |= {"trust_remote_code": False, "local_files_only": True}
        options["dtype"] = getattr(torch, TORCH_DTYPES[precision])
        if sparse_attention(self.config):
            options["attention_type"] = "original_full"
        try:
            model, loading = self.task.auto_class().from_pretrained(self.folder, **options)
        except Exception as error:  # a wrong config and a broken file fail in as many ways as there are
            raise UserError(f"{self.folder} can't be loaded: {first_line(error)}{saved_by(self.folder)}") from error
        check_loading(self.folder, model, loading)
        if precision != "fp32":
            keep_head_in_fp32(model)
        return model.eval()


def check_loading(folder: Path, model, loading: dict) -> None:
    """Raises UserError where transformers says that a folder's weights and its config don't fit.

    A head that goes unused does no harm.
    """
    unexpected = sorted(loading["unexpected_keys"])
    if wrapped := [key for key in unexpected if WRAPPER.search(key)]:
        words = "the names of its weights are torch.compile's or DataParallel's"
        raise UserError(f"{folder}: {words} ({wrapped[0]}): save the model inside, model._orig_mod or model.module")
    if mismatched := [key if isinstance(key, str) else key[0] for key in loading["mismatched_keys"]]:
        wanted = [*model.state_dict()[sorted(mismatched)[0]].shape]
        words = f"{sorted(mismatched)[0]} is not of the size {wanted}, as config.json has it (id2label, or its sizes)"
        raise UserError(f"{folder} can't be loaded: {words}")
    if loading["missing_keys"]:
        raise UserError(f"{folder} lacks weights: {', '.join(sorted(loading['missing_keys'])[:3])}")
    if unused := [key for key in unexpected if re.match(rf"{model.base_model_prefix}\..*\.\d+\.", key)]:
        words = "has layers that its config.json doesn't count, or that this version of transformers doesn't know"
        raise UserError(f"{folder} {words}: {', '.join(unused[:3])}")


def keep_head_in_fp32(model) -> None:
    """Makes whatever stands behind the encoder compute in FP32."""

    def to_fp32(_, arguments):
        return tuple(value.float() if hasattr(value, "is_floating_point") else value for value in arguments)

    for module in model.children():
        if module is not model.base_model:
            module.float().register_forward_pre_hook(to_fp32)


def digest_weights(folder: Path) -> str:
    """Returns 16 hexadecimal digits for all of a model's files that make its answers."""
    return digest(path for path in sorted(folder.iterdir()) if path.suffix in SMALL_FILES + WEIGHTS and path.is_file())
