"""The reference: the original model in eager FP32 PyTorch, called as its library documents it."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.files import digest, new_file, read_array
from bench.machine import cpu_cores
from bench.model.model import Model
from bench.processes import ProcessPool, heartbeat
from bench.provenance import versions
from bench.tables.items import Item
from utils import CACHE

N_PADDED_TEXTS = 5  # in the batch that shows the effect of padding: several lengths, and quick
PADDING_TOLERANCE = 1e-3  # of a probability: more than rounding


@dataclass(frozen=True)
class Reference:
    """A model's original weights, loaded into this process."""

    model: Model
    network: object  # in torch, IEEE FP32 without TF32
    device: object
    long: str = "cut"  # how long texts are read, one of LONG_TEXTS

    @classmethod
    def load(cls, model: Model, gpu: int | None = None, threads: int | None = None, long: str = "cut") -> "Reference":
        """Load the model on a GPU, or on the CPU if `gpu` is None, with `threads` (default: all cores)."""
        import torch

        torch.set_num_threads(threads or cpu_cores())
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        return cls(model, model.load_torch().to(device), device, long)

    def of_items(self, items: list[Item]) -> np.ndarray:
        """Return the answers [items, labels], each by the library's documented call for this item alone.

        See Task.reference; nan where the model can't answer.
        """
        answers = np.empty((len(items), len(self.model.labels)))
        for i, item in enumerate(items):
            answers[i] = self.model.task.reference(self.model, self, item, self.long)
            heartbeat(i + 1)
        return answers

    def of_batch(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Return the answers [rows, n] of a padded batch, each row for itself."""
        return self.model.task.activate(self.run(inputs))

    @cached_property
    def pipeline(self):
        return self.model.task.pipeline(self.model, self.network, self.device)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Make one forward pass: name -> int64 [rows, tokens] in, outputs [rows, n] out."""
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
            outputs = getattr(self.network(**tensors, return_dict=True), self.model.task.output)
        return outputs.float().cpu().numpy()

    def padding_effect(self, texts: list[str]) -> float:
        """Return how far any answer of a padded batch is from that of its text alone; 0 if the model can't pad."""
        if not self.model.can_pad:
            return 0.0
        rows, pad = self.model.first_rows(texts), self.model.pad
        alone = [pad({name: values[i : i + 1] for name, values in rows.items()}) for i in range(len(texts))]
        alone = np.concatenate(list(map(self.of_batch, alone)))
        return float(self.model.task.differences(self.of_batch(pad(rows)), alone).max())


def cached_array(compute: Callable, shape: tuple, *inputs: object, is_complete: Callable | None = None) -> np.ndarray:
    """Return compute(), an array of this shape, or what it returned earlier, if is_complete(array).

    `inputs`: all that the result depends on, serializable as JSON. Versions of the libraries are added.
    """
    inputs = [*inputs, versions("torch", "transformers", "tokenizers", "sentence-transformers")]
    file = CACHE / "references" / f"{digest([json.dumps(inputs).encode()])}.npy"
    array = read_array(file, shape)
    if array is not None and (not is_complete or is_complete(array)):
        return array
    array = compute()
    with new_file(file) as whole:
        np.save(whole, array)
    return array


class CachedReference:
    """A context manager with the original model in a process that starts when needed; its results are cached."""

    def __init__(self, model: Model, gpu: int | None, threads: int | None = None, long: str = "cut"):
        self.arguments = model.original or model, gpu, threads, long
        self.stack, self.pool = contextlib.ExitStack(), None

    def answers(self, items: list[Item], on_heartbeat: Callable | None = None) -> np.ndarray:
        """Return the answers [items, labels], see Reference.of_items."""
        shape = len(items), len(self.arguments[0].labels)
        return self.cached(Reference.of_items, shape, items, on_heartbeat)

    def padding_effect(self, items: list[Item]) -> float:
        return float(self.cached(Reference.padding_effect, (), items))

    def cached(self, step: Callable, shape: tuple, items: list[Item], on_heartbeat: Callable | None = None):
        model, gpu, _, long = self.arguments

        def compute() -> np.ndarray:
            if self.pool is None:
                self.pool = self.stack.enter_context(ProcessPool(Reference.load, [self.arguments], forked=True))
            return self.pool.call(step, items, on_heartbeat=on_heartbeat)[0]

        def is_complete(array: np.ndarray) -> bool:
            """True unless an answer is not finite for a text with tokens."""
            failed = np.flatnonzero(~np.isfinite(array).all(axis=-1))
            return not len(failed) or not any(map(len, model.tokenize([items[i] for i in failed])["input_ids"]))

        inputs = step.__name__, items, model.weights_id, long, gpu is not None
        if model.task.answer_options:
            inputs += (model.task.answer_options,)
        return cached_array(compute, shape, *inputs, is_complete=is_complete)

    def __enter__(self) -> "CachedReference":
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()


def padding_note(model: Model, effect: float) -> str:
    """Return a note if padding changes a model's answers; empty otherwise."""
    if not model.can_pad:
        return f"padding changes the answers of a {model.model_type}, so only texts of one length share a batch"
    if effect <= PADDING_TOLERANCE:
        return ""
    return (
        f"padding changes the answers of this {model.model_type} by up to {effect:.2g} on {N_PADDED_TEXTS} texts; "
        "prefer batches with little padding"
    )
