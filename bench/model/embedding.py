"""The task of an embedding model: one text in, a vector out, as sentence-transformers' encode() returns it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.files import digest
from bench.model.answers import MIN_NORM, combine_windows, original_inputs, run_rows, unit
from bench.model.sentence_files import check_limit, read_defaults, save_files, set_up_tokenizer
from bench.model.task import Task
from bench.model_files import MODULES, sentence_modules
from bench.naming import code_span, markdown
from bench.options import VECTOR_OPTIONS
from bench.tables.datasets import evenly_spaced
from bench.tables.items import Item, is_unicode, parts_of
from utils import UserError

N_ANCHORS = 256  # texts among which the nearest one to each text is looked for
MARGIN = 0.005  # a nearest anchor counts as changed if the original finds the new one this much less similar


@dataclass(frozen=True)
class Embedding(Task):
    """A sentence-transformers model, or a plain encoder whose tokens are pooled. Its labels number the dimensions."""

    name: ClassVar[str] = "feature-extraction"
    output: ClassVar[str] = "sentence_embedding"
    encoder_output: ClassVar[str] = "last_hidden_state"
    class_suffix: ClassVar[str] = ""
    script: ClassVar[tuple[str, ...]] = ("embed_texts.py", "vectors", *VECTOR_OPTIONS)
    optional_weights: ClassVar[tuple[str, ...]] = ("pooler.",)
    compared_rows: ClassVar[int] = N_ANCHORS  # which are each other's anchors
    default_max_length: ClassVar[None] = None  # encode() does not truncate then
    libraries: ClassVar[tuple[str, ...]] = ("sentence-transformers",)
    dims: int  # numbers that the network returns for a row
    pooling: str  # modes, joined by a plus
    is_plain: bool  # not a sentence-transformers model
    has_unit_length: bool  # its last module normalizes
    include_prompt: bool  # False: the prompt's tokens are left out of the pooling
    prompts: dict[str, str] = field(default_factory=dict)
    prompt: str = ""  # before every text
    normalize: bool = False  # to unit length, after truncating
    asked: dict[str, object] = field(default_factory=dict)  # options of with_options() that the user gave

    save_files = staticmethod(save_files)
    set_up_tokenizer = staticmethod(set_up_tokenizer)

    @classmethod
    def matches(cls, config: dict) -> bool:
        return False  # config.json does not tell; see choose_task

    @classmethod
    def from_config(cls, config, folder: Path) -> "Embedding":
        """Read modules.json and the files that it names; a folder without is a plain encoder. Raises UserError.

        As in sentence-transformers, a plain decoder is pooled by its last token, and has no prompts.
        """
        from bench.model.sentence import load_head

        kinds = [kind for kind, _ in sentence_modules(folder)]
        if kinds and (kinds[:2] != ["Transformer", "Pooling"] or not {*kinds[2:]} <= {"Dense", "Normalize"}):
            raise UserError(f"{folder}/{MODULES} lists {', '.join(kinds)}; only a Pooling may follow the Transformer")
        check_limit(config, folder)
        about = read_defaults(folder)
        is_decoder = getattr(config, "is_causal", True) and "".join(config.architectures or ()).endswith("ForCausalLM")
        head, size = load_head(folder, getattr(config, "hidden_size", 0), "lasttoken" if is_decoder else "mean")
        modes = head[0].pooling_mode
        task = cls(
            labels=tuple(map(str, range(size))),
            dims=size,
            pooling=modes if isinstance(modes, str) else "+".join(modes),
            is_plain=not kinds,
            has_unit_length=kinds[-1:] == ["Normalize"],
            include_prompt=head[0].include_prompt,
            prompts={name: text or "" for name, text in about.get("prompts", {}).items()},
        )
        names = {"prompt_name": "default_prompt_name", "truncate_dim": "truncate_dim"}
        return replace(task.with_options({name: about.get(key) for name, key in names.items()}), asked={})

    def with_options(self, options: dict, tokenizer=None, max_length: int = 0) -> "Embedding":
        """Return the task with options of encode() and a `pooling`; a prompt has precedence over a prompt_name."""
        pooling, prompt, size = options.get("pooling"), options.get("prompt"), options.get("truncate_dim")
        if not isinstance(prompt, str | None) or not is_unicode(prompt or ""):
            raise UserError(f"--prompt {prompt!r} is not a text")
        if prompt is None and (name := options.get("prompt_name")) is not None:
            if name not in list(self.prompts):
                known = ", ".join(self.prompts) or "none"
                raise UserError(f"--prompt-name {name}: the model has no such prompt; its prompts: {known}")
            prompt = self.prompts[name]
        if size is not None and not (type(size) is int and 0 < size <= self.dims):
            raise UserError(f"--truncate-dim {size!r}: the model's vectors have {self.dims} dimensions")
        if pooling not in (None, self.pooling) and not self.is_plain:
            raise UserError(f"--pooling {pooling}: the model's own is {self.pooling}, see modules.json; drop --pooling")
        return replace(
            self,
            labels=self.labels if size is None else tuple(map(str, range(size))),
            pooling=pooling or self.pooling,
            prompt=self.prompt if prompt is None else prompt,
            normalize=options.get("normalize", False),
            asked={name: value for name, value in options.items() if value is not None},
        )

    @classmethod
    def class_of(cls, config) -> type:
        if config.is_encoder_decoder:
            raise UserError(f"{config.model_type} is an encoder-decoder model, which is not supported for embeddings")
        found = super().class_of(config)
        return found if isinstance(found, type) else found[0]  # several for some types

    @property
    def n_outputs(self) -> int:
        return self.dims

    @property
    def fingerprint(self) -> list[bytes]:
        return [f"pooling {self.pooling}".encode()] if self.is_plain else []

    @property
    def answer_options(self) -> str:
        chosen = ["normalized"] if self.normalize else []
        if "truncate_dim" in self.asked:
            chosen.append(f"{len(self.labels)} dimensions")
        if not self.asked.keys().isdisjoint(("prompt", "prompt_name")):
            chosen.append(f"prompt {digest([self.prompt.encode()])}")
        return " ".join(chosen)

    @property
    def encode_options(self) -> dict:
        options = {name: self.asked.get(name) for name in ("prompt", "prompt_name", "truncate_dim")}
        return options | {"normalize_embeddings": self.normalize, "show_progress_bar": False}

    @property
    def summary(self) -> str:
        prompt = f", prompt {self.prompt!r}" if self.prompt else ""
        return f"{len(self.labels)} dimensions, {self.pooling} pooling{prompt}"

    @property
    def decision_words(self) -> str:
        return f"texts whose nearest anchor is another one, which the original finds over {MARGIN} less similar"

    def wrap(self, model, network):
        from bench.model.sentence import SentenceEncoder

        return SentenceEncoder(network, model)

    def check_export(self) -> None:
        if self.prompt and not self.include_prompt:
            raise UserError("the prompt is left out of this model's pooling, which only torch variants can do")

    def tokenize(self, tokenizer, items: list[Item], max_length: int, names: list[str], windows: bool) -> dict:
        return super().tokenize(tokenizer, [self.prompt + text_of(item) for item in items], max_length, names, windows)

    def activate(self, outputs: np.ndarray) -> np.ndarray:
        return outputs

    def answers(self, outputs: np.ndarray, owners: np.ndarray, items: int, long: str) -> np.ndarray:
        """Return vectors, float32 [items, dimensions]; those of a long text's windows are averaged."""
        vectors = combine_windows(outputs, owners, items, mean=True)
        vectors = unit(vectors) if self.has_unit_length and long != "cut" else vectors
        vectors = vectors[:, : len(self.labels)]
        return (unit(vectors) if self.normalize else vectors).astype(np.float32, copy=False)

    def reference(self, model, original, item: Item, long: str) -> np.ndarray:
        """Return `SentenceTransformer.encode(text)`; with windows the mean of the vectors for each window alone."""
        library = original.network.library
        inputs = original_inputs(model, library.tokenizer, self.prompt + text_of(item), long)
        if inputs is None:
            return np.full(len(self.labels), np.nan)
        if len(inputs["input_ids"]) == 1:
            return library.encode(text_of(item), **self.encode_options)
        outputs = run_rows(original, inputs)
        return self.answers(outputs, np.zeros(len(outputs), int), 1, long)[0]

    def differences(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return each vector's distance d from the original's relative to its length [items, 1]; cosine 1 - d^2 / 2."""
        lengths = np.linalg.norm(reference.astype(np.float64), axis=1)
        distances = np.linalg.norm(answers.astype(np.float64) - reference, axis=1)
        return (distances / np.maximum(lengths, MIN_NORM))[:, None]

    def basis(self, reference: np.ndarray) -> np.ndarray:
        """Return the anchors, vectors of the original [anchors, dimensions]."""
        known = reference[np.isfinite(reference).all(axis=1)]
        return known[evenly_spaced(len(known), N_ANCHORS)]

    def flips(self, answers: np.ndarray, reference: np.ndarray, basis: np.ndarray | None = None) -> np.ndarray:
        """Return which texts have another nearest anchor [items, 1], see MARGIN. A text is no anchor of itself.

        The anchors' vectors are the original's, as in an index that another variant has made.
        """
        anchors = self.basis(reference) if basis is None else basis
        _, ids = np.unique(np.concatenate([anchors, reference]), axis=0, return_inverse=True)
        is_same = ids[len(anchors) :, None] == ids[: len(anchors)]
        # a text is less similar to itself than to any other, but by a number, so that differences are numbers, too
        original, current = (np.where(is_same, -2, unit(vectors) @ unit(anchors).T) for vectors in (reference, answers))
        nearest = current.argmax(axis=1)
        loss = original.max(axis=1) - np.take_along_axis(original, nearest[:, None], axis=1)[:, 0]
        return ((loss > MARGIN) | ~np.isfinite(answers).all(axis=1))[:, None]

    @property
    def card(self) -> dict:
        library = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
        prompts = {markdown(name): code_span(text) for name, text in self.prompts.items() if text}
        return library | {"output_word": "vector", "prompts": prompts, "vectors": self.output}


def text_of(item: Item) -> str:
    """Return an item as one text: several columns are joined by a blank line."""
    return "\n\n".join(parts_of(item))
