"""A model's folder and all that follows from its files, made once and sent along: the Model."""

import inspect
import re
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.files import digest
from bench.inputs.batches import pad
from bench.inputs.tokenizing import check_vocabulary, load_tokenizer, resolve_max_length, tokenize
from bench.parity import resolve_problem_type
from utils import UserError, clean, first_line

TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
WEIGHTS = (".safetensors", ".bin")  # files of a model that hold its weights
IDENTITY = (".json", ".txt", ".model", *WEIGHTS)  # files that make its answers


@dataclass(frozen=True)
class Model:
    """A classifier of transformers.

    id: what the user called it; folder: where its files are; weights_id: 16 hexadecimal digits for all that makes its
    answers; problem_type: see parity.resolve_problem_type; labels: their names; max_length: tokens of a text, the rest
    is cut off; pad_values, padding_side: what it gets, and what stands where padding is, see batches.pad.

    A pickled Model has these fields alone: each process loads config and tokenizer once, if it needs them.
    """

    id: str
    folder: Path
    weights_id: str
    model_type: str
    problem_type: str
    labels: list[str]
    max_length: int
    pad_values: dict[str, int]
    padding_side: str

    @classmethod
    def from_folder(cls, folder: Path, model_id: str) -> "Model":
        """Opens a model's folder. Raises UserError if its config or its tokenizer can't be used."""
        config, tokenizer = load_config(folder), load_tokenizer(folder)
        model = cls(
            id=model_id,
            folder=folder,
            weights_id=digest(file for file in sorted(folder.iterdir()) if file.suffix in IDENTITY),
            model_type=config.model_type,
            problem_type=resolve_problem_type(config),
            labels=[clean(str(config.id2label.get(i, f"LABEL_{i}"))) for i in range(config.num_labels)],
            max_length=resolve_max_length(config, tokenizer),
            pad_values=resolve_pad_values(config, tokenizer),
            padding_side=tokenizer.padding_side,
        )
        vars(model).update(config=config, tokenizer=tokenizer)
        return model

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def config(self):
        return load_config(self.folder)

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.folder)

    def tokenize(self, texts: list[str], max_length: int | None = None) -> dict[str, list]:
        """Returns the `input_ids` of each text, and its `token_type_ids` if the model takes them, see tokenizing.

        Raises UserError for a token that the model has no embedding of.
        """
        names = [name for name in self.pad_values if name != "attention_mask"]
        rows = tokenize(self.tokenizer, texts, min(max_length or self.max_length, self.max_length), names)
        check_vocabulary(rows["input_ids"], self.config)
        return rows

    def pad(self, rows: dict[str, list], to_length: int = 0) -> dict[str, np.ndarray]:
        """Pads a batch of what tokenize() gives: what the model gets, name -> int64 [texts, tokens]."""
        return pad(rows, self.pad_values, self.padding_side, to_length)

    def load_torch(self, precision: str = "fp32", **options):
        """Loads the classifier in torch on the CPU. Raises UserError if weights are missing: they would be random.

        Code that the model brings is never run, and pickled weights are read as weights only. `options` are
        from_pretrained's.
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        options |= {"output_loading_info": True, "trust_remote_code": False, "local_files_only": True}
        options["dtype"] = getattr(torch, TORCH_DTYPES[precision])
        try:
            model, loading = AutoModelForSequenceClassification.from_pretrained(self.folder, **options)
        except Exception as error:  # a wrong config and a broken file fail in as many ways as there are
            raise UserError(f"{self.folder} can't be loaded: {first_line(error)}") from error
        if loading["missing_keys"]:
            raise UserError(f"{self.folder} lacks weights: {', '.join(sorted(loading['missing_keys'])[:3])}")
        if unused := [key for key in sorted(loading["unexpected_keys"]) if re.search(r"\.\d+\.", key)]:
            raise UserError(f"{self.folder} has layers that its config.json doesn't count: {', '.join(unused[:3])}")
        return model.eval()


def load_config(folder: Path):
    """Loads the transformers config of a model's folder; never runs code that a model brings. Raises UserError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each of its fields can be wrong in a way of its own
        raise UserError(f"{folder}/config.json can't be used: {first_line(error)}") from error


def resolve_pad_values(config, tokenizer) -> dict[str, int]:
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
    values = {"input_ids": tokenizer.pad_token_id or 0, "attention_mask": 0}
    if "token_type_ids" in accepted and "token_type_ids" in tokenizer.model_input_names:
        values["token_type_ids"] = tokenizer.pad_token_type_id
    return values
