"""The task of an embedding model: one text in, a vector out, as sentence-transformers' encode() returns it."""

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.files import read_json
from bench.model.classification import combine_windows
from bench.model.task import Task
from bench.model.tokenizing import overlap
from bench.model_files import MODULES, PROMPTS, SENTENCE_SETTINGS, inside, module_names, sentence_modules
from bench.naming import code_span, markdown
from bench.tables.datasets import evenly_spaced
from bench.tables.items import Item, is_unicode, parts_of
from utils import UserError

N_ANCHORS = 256  # texts among which the nearest one to each text is looked for
MARGIN = 0.005  # a nearest anchor counts as changed if the original finds the new one this much less similar
MIN_NORM = 1e-12  # as in torch.nn.functional.normalize
# settings that are applied here, and those that only say that the model takes texts; others could read other files
KNOWN_SETTINGS = {"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"}
# modules.json of an exported plain encoder
PLAIN_MODULES = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (path, kind) in enumerate({"": "Transformer", "1_Pooling": "Pooling"}.items())
]


@dataclass(frozen=True)
class Embedding(Task):
    """A sentence-transformers model, or a plain encoder whose tokens are pooled.

    Its "labels" are the numbers of a vector's dimensions.
    """

    name: ClassVar[str] = "feature-extraction"
    output: ClassVar[str] = "sentence_embedding"
    encoder_output: ClassVar[str] = "last_hidden_state"
    class_suffix: ClassVar[str] = "Model"
    script: ClassVar[tuple[str, ...]] = ("embed_texts.py", "vectors", "pooling")
    optional_weights: ClassVar[tuple[str, ...]] = ("pooler.",)
    pipeline_texts: ClassVar[int] = 4096  # which encode() sorts
    dims: int  # numbers that the network returns for a row
    pooling: str  # modes, joined by a plus
    is_plain: bool  # not a sentence-transformers model
    has_unit_length: bool  # its last module normalizes
    include_prompt: bool  # False: the prompt's tokens are left out of the pooling
    prompts: dict[str, str] = field(default_factory=dict)
    prompt: str = ""  # before every text
    normalize: bool = False  # to unit length, after truncating

    @classmethod
    def matches(cls, config: dict) -> bool:
        return False  # config.json does not tell; see choose_task

    @classmethod
    def from_config(cls, config, folder: Path) -> "Embedding":
        """Read modules.json and the files that it names; a folder without is a plain encoder. Raises UserError."""
        from bench.model.sentence import load_head

        kinds = [kind for kind, _ in sentence_modules(folder)]
        if kinds and (kinds[:2] != ["Transformer", "Pooling"] or not {*kinds[2:]} <= {"Dense", "Normalize"}):
            raise UserError(f"{folder}/{MODULES} lists {', '.join(kinds)}; only a Pooling may follow the Transformer")
        if unknown := sorted(sentence_settings(folder).keys() - KNOWN_SETTINGS):
            raise UserError(f"{folder} has the setting {unknown[0]} of sentence-transformers, which is not supported")
        head, size = load_head(folder, getattr(config, "hidden_size", 0), "mean")
        modes, about = head[0].pooling_mode, read_json(folder / PROMPTS) if (folder / PROMPTS).is_file() else {}
        task = cls(
            labels=dimensions(size),
            dims=size,
            pooling=modes if isinstance(modes, str) else "+".join(modes),
            is_plain=not kinds,
            has_unit_length=kinds[-1:] == ["Normalize"],
            include_prompt=head[0].include_prompt,
            prompts=dict(about.get("prompts") or {}),
        )
        names = {"prompt_name": "default_prompt_name", "truncate_dim": "truncate_dim"}
        return task.with_options({name: about.get(key) for name, key in names.items()})

    def with_options(self, options: dict, tokenizer=None, max_length: int = 0) -> "Embedding":
        """Return the task with options of encode(): prompt, prompt_name, truncate_dim, normalize; and with a `pooling`.

        Raises UserError if the model lacks the prompt or the dimensions, or if modules.json tells the pooling.
        """
        pooling, prompt, size = options.get("pooling"), options.get("prompt"), options.get("truncate_dim")
        if (name := options.get("prompt_name")) is not None:
            if name not in self.prompts:
                known = ", ".join(self.prompts) or "none"
                raise UserError(f"--prompt-name {name}: the model has no such prompt; its prompts: {known}")
            prompt = self.prompts[name]
        if size is not None and not 0 < size <= self.dims:
            raise UserError(f"--truncate-dim {size}: the model's vectors have {self.dims} dimensions")
        if pooling and not self.is_plain:
            raise UserError(f"--pooling {pooling}: the model's own is {self.pooling}, see modules.json; drop --pooling")
        return replace(
            self,
            labels=self.labels if size is None else dimensions(size),
            pooling=pooling or self.pooling,
            prompt=self.prompt if prompt is None else prompt,
            normalize=options.get("normalize", False),
        )

    @staticmethod
    def auto_class() -> type:
        from transformers import AutoModel

        return AutoModel

    @classmethod
    def class_of(cls, config) -> type:
        if config.is_encoder_decoder:
            raise UserError(f"{config.model_type} is an encoder-decoder model, which is not supported for embeddings")
        found = super().class_of(config)
        return found if isinstance(found, type) else found[0]  # several for some types

    @staticmethod
    def optimum_class() -> type:
        from optimum.onnxruntime import ORTModelForFeatureExtraction

        return ORTModelForFeatureExtraction

    @property
    def n_outputs(self) -> int:
        return self.dims

    @property
    def fingerprint(self) -> list[bytes]:
        return [f"pooling {self.pooling}".encode()] if self.is_plain else []

    @property
    def answer_options(self) -> str:
        return f"{self.prompt!r}, {len(self.labels)} dimensions, normalize {self.normalize}"

    def pipeline(self, model, network, device):
        """Return what people use instead of transformers' pipeline: SentenceTransformer, with the loaded network.

        With optimum's model class it is the ONNX backend, without its loading.
        """
        from bench.model.sentence import load_library

        library = load_library(model, "cpu" if device == -1 else f"cuda:{device}")
        del library[0].model  # torch replaces a module only by another one, and optimum's is none
        library[0].model = getattr(network, "base_model", network)
        return library

    def pipeline_answers(self, pipe, items: list[Item], batch_size: int) -> np.ndarray:
        """Return the vectors of SentenceTransformer.encode(), which sorts the texts by their length."""
        return pipe.encode(list(map(text_of, items)), batch_size=batch_size, **self.encode_options)

    @property
    def encode_options(self) -> dict:
        options = {"prompt": self.prompt, "truncate_dim": len(self.labels), "normalize_embeddings": self.normalize}
        return options | {"show_progress_bar": False}

    @property
    def rule_id(self) -> str:
        return f"{len(self.labels)} dimensions" if len(self.labels) < self.dims else ""

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
            raise UserError(
                "this model leaves the prompt out of its pooling, which an export can't; use a torch variant"
            )

    def save_files(self, model, target: Path) -> None:
        """Save what sentence-transformers needs to load an export with this pooling."""
        from bench.model.sentence import load_head

        if self.is_plain:
            (target / MODULES).write_text(json.dumps(PLAIN_MODULES))
            (target / "1_Pooling").mkdir()
            head, _ = load_head(model.folder, self.dims, self.pooling)
            head[0].save(str(target / "1_Pooling"))
        for name in (MODULES, PROMPTS, *SENTENCE_SETTINGS, *module_names(model.folder)):
            if (file := inside(model.folder, name)).is_file():
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copy(file, target / name)

    def set_up_tokenizer(self, tokenizer, folder: Path) -> None:
        """Apply `max_seq_length` and `do_lower_case` of sentence-transformers' settings to a tokenizer."""
        settings = sentence_settings(folder)
        if settings.get("max_seq_length") is not None:
            tokenizer.model_max_length = settings["max_seq_length"]
        if not settings.get("do_lower_case"):
            return
        if not tokenizer.is_fast:
            tokenizer.do_lower_case = True
            return
        from tokenizers.normalizers import Lowercase, Sequence

        backend = tokenizer.backend_tokenizer
        backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])

    def tokenize(self, tokenizer, items: list[Item], max_length: int, names: list[str], windows: bool) -> dict:
        return super().tokenize(tokenizer, [self.prompt + text_of(item) for item in items], max_length, names, windows)

    def activate(self, outputs: np.ndarray) -> np.ndarray:
        return outputs

    def answers(self, outputs: np.ndarray, owners: np.ndarray, items: int, long: str) -> np.ndarray:
        """Return vectors, float32 [items, dimensions]; those of a long text's windows are averaged."""
        if long == "cut":
            vectors = np.full((items, self.dims), np.nan, np.float32)
            vectors[owners] = outputs
        else:
            vectors = combine_windows(outputs, owners, items, mean=True)
            vectors = unit(vectors) if self.has_unit_length else vectors
        vectors = vectors[:, : len(self.labels)]
        return (unit(vectors) if self.normalize else vectors).astype(np.float32, copy=False)

    def reference(self, model, original, item: Item, long: str) -> np.ndarray:
        """Return `SentenceTransformer.encode(text)`; with windows the mean of the vectors for each window alone."""
        missing = np.full(len(self.labels), np.nan)
        if not is_unicode(item):
            return missing
        text, library = text_of(item), original.network.library
        options = {"truncation": True, "max_length": model.max_length, "return_tensors": None}
        if long != "cut":
            options |= {"return_overflowing_tokens": True, "stride": overlap(model.max_length)}
        inputs = library.tokenizer([self.prompt + text], **options)
        if not all(map(model.is_valid_input, inputs["input_ids"])):
            return missing
        if len(inputs["input_ids"]) == 1:
            return library.encode(text, **self.encode_options)
        names = [name for name in inputs if name in model.forward_names]
        windows = range(len(inputs["input_ids"]))
        outputs = [original.run({name: np.array(inputs[name][i : i + 1]) for name in names}) for i in windows]
        return self.answers(np.concatenate(outputs), np.zeros(len(outputs), int), 1, long)[0]

    def differences(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return each vector's distance from the original's relative to its length, [items, 1].

        The cosine of two vectors of one length is 1 - distance^2 / 2.
        """
        lengths = np.linalg.norm(reference.astype(np.float64), axis=1)
        distances = np.linalg.norm(answers.astype(np.float64) - reference, axis=1)
        return (distances / np.maximum(lengths, MIN_NORM))[:, None]

    def scale(self, reference: np.ndarray) -> float:
        return 1.0  # differences are relative

    def basis(self, reference: np.ndarray) -> np.ndarray:
        """Return the anchors, vectors of the original [anchors, dimensions]."""
        known = reference[np.isfinite(reference).all(axis=1)]
        return known[evenly_spaced(len(known), N_ANCHORS)]

    def count_flips(
        self, answers: np.ndarray, reference: np.ndarray, basis: np.ndarray | None = None
    ) -> tuple[int, int]:
        """Return (texts with another nearest anchor, all texts), see MARGIN. A text is no anchor of itself."""
        anchors = self.basis(reference) if basis is None else basis
        _, ids = np.unique(np.concatenate([anchors, reference]), axis=0, return_inverse=True)
        is_same = ids[len(anchors) :, None] == ids[: len(anchors)]
        # a text is less similar to itself than to any other, but by a number, so that differences are numbers, too
        original, current = (np.where(is_same, -2, unit(vectors) @ unit(anchors).T) for vectors in (reference, answers))
        nearest = current.argmax(axis=1)
        loss = original.max(axis=1) - np.take_along_axis(original, nearest[:, None], axis=1)[:, 0]
        changed = (loss > MARGIN) | ~np.isfinite(answers).all(axis=1)
        return int(changed.sum()), len(changed)

    @property
    def card(self) -> dict:
        library = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
        prompts = {markdown(name): code_span(text) for name, text in self.prompts.items() if text}
        return library | {"output_word": "vector", "prompts": prompts, "vectors": self.output}


def text_of(item: Item) -> str:
    """Return an item as one text: several columns are joined by a blank line."""
    return "\n\n".join(parts_of(item))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors [n, dims] divided by their lengths, in float64."""
    vectors = vectors.astype(np.float64, copy=False)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), MIN_NORM)


def dimensions(size: int) -> tuple[str, ...]:
    return tuple(map(str, range(size)))


def sentence_settings(folder: Path) -> dict:
    """Return the settings of a sentence-transformers model's tokenizer; empty if it has none."""
    files = [file for name in SENTENCE_SETTINGS if (file := inside(folder, name)).is_file()]
    return read_json(files[0]) if files else {}
