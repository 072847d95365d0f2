"""A sentence-transformers model in torch: the encoder of transformers, and the modules that make a vector of it."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as kinds

from bench.model_files import sentence_modules


class SentenceOutputs(NamedTuple):
    """The outputs of a SentenceEncoder, named as in optimum's exports."""

    token_embeddings: torch.Tensor  # float32 [texts, tokens, n]
    sentence_embedding: torch.Tensor  # float32 [texts, dims]


class SentenceEncoder(torch.nn.Module):
    """An encoder and the further modules, which compute in FP32: sums over long texts exceed FP16's largest number."""

    def __init__(self, encoder, model):
        super().__init__()
        self.base_model, self.config, self.model = encoder, encoder.config, model
        self.head = torch.nn.Sequential(*load_head(model.folder, model.task, encoder.config.hidden_size))
        self.fixed = {} if model.task.include_prompt else {"prompt_length": count_prompt_tokens(model)}

    def forward(self, return_dict: bool = True, **inputs) -> SentenceOutputs:
        tokens = self.base_model(**inputs, return_dict=return_dict).last_hidden_state.float()
        return SentenceOutputs(tokens, self.pool(tokens, inputs.get("attention_mask")))

    def pool(self, tokens, attention_mask):
        """Return the vectors [texts, dims] for the encoder's outputs [texts, tokens, n]."""
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        return self.head({"token_embeddings": tokens} | mask | self.fixed)["sentence_embedding"]

    @cached_property
    def library(self) -> SentenceTransformer:
        """Load the model as sentence-transformers' documentation does, with weights of its own: the reference."""
        device = next(self.parameters()).device
        return load_library(self.model, device)


def load_head(folder: Path, task, size: int) -> list[torch.nn.Module]:
    """Load the modules after the encoder, which returns `size` numbers per token."""
    if task.is_plain:
        return [kinds.Pooling(size, task.pooling)]
    modules = sentence_modules(folder)[1:]
    return [getattr(kinds, kind).load(str(folder), subfolder=path, local_files_only=True) for kind, path in modules]


def count_prompt_tokens(model) -> int:
    """Return the number of tokens of the prompt, as sentence-transformers leaves them out of the pooling."""
    if not model.task.prompt:
        return 0
    ids = model.tokenizer(model.task.prompt)["input_ids"]
    return len(ids) - (ids[-1] in model.tokenizer.all_special_ids)


def load_library(model, device) -> SentenceTransformer:
    options = {"device": str(device), "trust_remote_code": False, "local_files_only": True}
    if model.task.is_plain:
        transformer = kinds.Transformer(str(model.folder))
        pooling = kinds.Pooling(transformer.get_embedding_dimension(), model.task.pooling)
        library = SentenceTransformer(modules=[transformer, pooling], **options)
    else:
        library = SentenceTransformer(str(model.folder), **options)
    library.max_seq_length = model.max_length
    return library
