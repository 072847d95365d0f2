"""A sentence-transformers model in torch: the encoder of transformers, and the modules that make a vector of it."""

import re
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as kinds

from bench.files import read_json
from bench.model.tokenizing import OFFSET_POSITIONS
from bench.model_files import sentence_modules
from utils import UserError, first_line


class SentenceOutputs(NamedTuple):
    """The outputs of a SentenceEncoder, named as in optimum's exports."""

    token_embeddings: torch.Tensor  # float32 [texts, tokens, n]
    sentence_embedding: torch.Tensor  # float32 [texts, dims]


class SentenceEncoder(torch.nn.Module):
    """An encoder and the further modules, which compute in FP32: sums over long texts exceed FP16's largest number."""

    def __init__(self, encoder, model):
        super().__init__()
        self.base_model, self.config, self.model = encoder, encoder.config, model
        self.head, _ = load_head(model.folder, encoder.config.hidden_size, model.task.pooling)
        self.fixed = {} if model.task.include_prompt else {"prompt_length": count_prompt_tokens(model)}
        if encoder.dtype == torch.float32:
            self.check()

    @torch.inference_mode()
    def check(self) -> None:
        """Raise UserError if the encoder and the modules don't make a vector of a text."""
        rows = self.model.pad(self.model.tokenize(["A sentence to try the model with."]))
        inputs = {name: torch.from_numpy(values) for name, values in rows.items()}
        try:
            shape = tuple(self(**inputs).sentence_embedding.shape)
            if shape != (1, self.model.task.dims):
                raise ValueError(f"its vectors have the shape {shape[1:]}, its modules say {self.model.task.dims}")
        except Exception as error:  # each type of model fails in its own way
            raise UserError(f"{self.model.folder} can't be used for embeddings: {first_line(error)}") from error

    def forward(self, return_dict: bool = True, **inputs) -> SentenceOutputs:
        tokens = self.base_model(**inputs, return_dict=return_dict).last_hidden_state.float()
        return SentenceOutputs(tokens, self.pool(tokens, inputs.get("attention_mask")))

    def pool(self, tokens, attention_mask=None):
        """Return the vectors [texts, dims] for the encoder's outputs [texts, tokens, n]."""
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        return self.head({"token_embeddings": tokens} | mask | self.fixed)["sentence_embedding"]

    @cached_property
    def library(self) -> SentenceTransformer:
        """Load the model as sentence-transformers' documentation does, with weights of its own: the reference."""
        return load_library(self.model, next(self.parameters()).device)


def load_head(folder: Path, size: int, pooling: str) -> tuple[torch.nn.Sequential, int]:
    """Load the modules after an encoder that returns `size` numbers per token; return them, and the size of a vector.

    `pooling`: of a plain encoder. Raises UserError if modules don't fit together, or need code of their own.
    """
    if not size:
        raise UserError(f"{folder}/config.json has no hidden_size, so it is not an encoder of texts; use another model")
    head = torch.nn.Sequential()
    for kind, path in sentence_modules(folder)[1:]:
        config = folder / path / "config.json"
        activation = read_json(config).get("activation_function") if kind == "Dense" else None
        if activation and not re.fullmatch(r"torch\.nn\.(modules\.\w+\.)?\w+", str(activation)):
            raise UserError(f"{config} needs custom code ({activation}), which is never executed")
        try:
            module = getattr(kinds, kind).load(str(folder), subfolder=path, local_files_only=True)
        except Exception as error:  # a wrong config and a broken file fail in many ways
            raise UserError(f"{folder}/{path} can't be loaded: {first_line(error)}") from error
        head.append(module)
        if kind != "Normalize":
            taken = module.embedding_dimension if kind == "Pooling" else module.in_features
            if taken != size:
                raise UserError(f"{config} is for vectors of {taken} dimensions, but gets {size}")
            size = module.get_embedding_dimension()
    return head if len(head) else head.append(kinds.Pooling(size, pooling)), size


def count_prompt_tokens(model) -> int:
    """Return the number of tokens of the prompt, as sentence-transformers leaves them out of the pooling."""
    if not model.task.prompt:
        return 0
    ids = model.tokenizer(model.task.prompt, truncation=True, max_length=model.max_length)["input_ids"]
    return len(ids) - sum(id in model.tokenizer.all_special_ids for id in ids[-1:])


def load_library(model, device, folder: Path | None = None, **backend) -> SentenceTransformer:
    """Load a model in sentence-transformers, in FP32: with transformers 5 it would take the files' precision."""
    options = {"device": str(device), "trust_remote_code": False, "local_files_only": True}
    backend = {"model_kwargs": {"dtype": torch.float32}} | backend
    pooling = model.task.asked.get("pooling")
    if pooling and model.task.is_plain and folder in (None, model.folder):  # an export names its pooling
        transformer = kinds.Transformer(str(model.folder), **backend)
        pool = kinds.Pooling(transformer.get_embedding_dimension(), pooling)
        library = SentenceTransformer(modules=[transformer, pool], **options)
    else:
        library = SentenceTransformer(str(folder or model.folder), **options, **backend)
    if model.model_type in OFFSET_POSITIONS:  # else it would use positions that these types lack
        positions = model.config.max_position_embeddings - model.config.pad_token_id - 1
        library.max_seq_length = min(library.max_seq_length, positions)
    return library
