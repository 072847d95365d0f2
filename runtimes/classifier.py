"""A loaded variant, and the one loop from items to answers.

The benchmark's end-to-end rows, the check of an export and labelling all use it: what is timed is what labels.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.model.batches import Batching, round_lengths_up
from bench.model.model import Model
from bench.model.stream import Batch, pick, prefetch, share_of, text_batches
from bench.processes import OUT_OF_MEMORY, error_summary, heartbeat
from bench.tables.items import Item
from bench.variants import Device, digest_export
from runtimes import VARIANTS
from utils import RunError, UserError, say

FETCH_EVERY = 64  # batches between fetches of outputs: each fetch waits for the device


@dataclass(frozen=True)
class ClassifierSpec:
    """What a process needs to load a Classifier."""

    model: Model
    variant: str
    exported: Path | None  # the folder of the variant's export, if it loads one
    device: Device
    export_id: str = ""  # digest_export() of that folder; empty if it need not be checked

    def check_unchanged(self) -> None:
        """Raise RunError if model or export have changed since the run began."""
        self.model.check_unchanged()
        if self.export_id and digest_export(self.exported) != self.export_id:
            raise RunError(f"{self.exported} changed during the run: rerun the command")


@dataclass(frozen=True)
class Predictions:
    """The answers for some items. The token counts are 0 if the variant takes the texts themselves."""

    answers: np.ndarray  # float64 [items, labels], nan for items without tokens
    lengths: np.ndarray  # tokens of each item before truncation, int [items]
    start: float  # seconds of the monotonic clock
    end: float
    waited: float = 0.0  # seconds in which no batch was ready for the model
    tokens: int = 0
    padded_tokens: int = 0  # with padding
    truncated: int = 0  # rows that were truncated
    lost: int = 0  # tokens that truncation removed


class Classifier:
    """A variant loaded into this process, as worker `number` of `workers`, each of which takes a share of the items."""

    def __init__(self, spec: ClassifierSpec, number: int = 0, workers: int = 1):
        variant, gpu = VARIANTS[spec.variant], spec.device.gpu
        os.environ |= variant.environment
        if gpu is None:
            os.environ["RAYON_NUM_THREADS"] = str(spec.device.threads)  # for the tokenizer
        self.model, self.number, self.workers = spec.model, number, workers
        self.takes_texts = variant.takes_texts
        try:
            self.runner = variant.load(spec.model, spec.exported, spec.device)
        finally:
            spec.check_unchanged()  # after loading, so that replaced files are noticed
        self.rounds_lengths_up = variant.new_shapes_are_costly(gpu) and spec.model.can_pad

    def padded_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Return the padded length for each length; rounded up where new shapes are costly."""
        return round_lengths_up(lengths, self.model.max_length) if self.rounds_lengths_up else lengths

    def batches(self, texts: list[Item], batching: Batching) -> Iterator[Batch]:
        return text_batches(self.model, texts, batching, self.padded_lengths)

    def predict(
        self, texts: list[Item], batching: Batching, on_progress: Callable = heartbeat, halve_on_oom: bool = False
    ) -> Predictions:
        """Run the model over items while a thread tokenizes, sorts, pads and moves the next ones.

        `on_progress` gets the approximate number of items done, weighted by length. With `halve_on_oom` a batch that
        does not fit into memory runs in halves. Raises UserError for another model's export, and the runtime's errors.
        """
        start, counts = time.monotonic(), Counter()
        lengths = np.zeros(len(texts), int)
        if self.takes_texts:
            answers = self.runner.answer(texts, batching.batch_size, on_progress)
            return Predictions(answers, lengths, start, time.monotonic())
        rows, fetched = [], []
        waiting = []  # keeps the inputs alive, because a GPU may still read them

        def fetch() -> None:
            self.runner.synchronize()
            fetched.extend((owners, self.to_host(outputs)) for (owners, *_), outputs in waiting)
            waiting.clear()

        prepared = ((batch, self.runner.prepare(batch.inputs)) for batch in self.batches(texts, batching))
        for batch, inputs in timed(prefetch(prepared), counts):
            parts = [(batch.owners, batch.inputs, inputs)]
            while parts:
                owners, arrays, inputs = part = parts.pop()  # noqa: PLW2901
                try:
                    waiting.append((part, self.runner.forward(inputs)))
                    continue
                except Exception as error:
                    if not halve_on_oom or len(owners) < 2 or error_summary(error) != OUT_OF_MEMORY:
                        raise
                # the error, which refers to the batch's memory, is gone from here on
                say(f"out of memory for a batch of {len(owners)} texts; halving it")
                fetch()
                for half in np.array_split(np.arange(len(owners)), 2):
                    half_arrays = {name: values[half] for name, values in arrays.items()}
                    parts.append((owners[half], half_arrays, self.runner.prepare(half_arrays)))
            if len(waiting) >= FETCH_EVERY:
                fetch()
            counts["padded_tokens"] += batch.inputs["input_ids"].size
            rows.append([batch.indices, batch.lengths, batch.lost])
            on_progress(round(batch.done * len(texts)))
        fetch()
        indices, tokens, lost = np.concatenate([np.empty((3, 0), int), *rows], axis=1)
        np.maximum.at(lengths, indices, tokens + lost)
        lost_tokens = int(lost.sum()) if batching.long == "cut" else 0
        counts.update(tokens=int(tokens.sum()), truncated=int((lost > 0).sum()), lost=lost_tokens)
        owners = np.concatenate([np.empty(0, int), *(batch_owners for batch_owners, _ in fetched)])
        no_outputs = np.empty((0, self.model.task.n_outputs), np.float32)
        outputs = np.concatenate([no_outputs, *(batch_outputs for _, batch_outputs in fetched)])
        end = time.monotonic()
        answers = self.model.task.answers(outputs, owners, len(texts), batching.long)
        return Predictions(answers, lengths, start, end, **counts)

    def predict_share(self, texts: list[Item], batching: Batching) -> tuple[np.ndarray, Predictions]:
        """Run the model over this worker's share of the texts; return (their indices, its Predictions)."""
        share = share_of(texts, self.number, self.workers)
        return share, self.predict(pick(texts, share), batching, halve_on_oom=True)

    def to_host(self, outputs) -> np.ndarray:
        """Fetch a batch's outputs, float32 [rows, n]. Raises UserError if n is not what the task expects."""
        rows, expected = self.runner.to_host(outputs), self.model.task.n_outputs
        if rows.shape[1:] != (expected,):
            raise UserError(
                f"the export has {rows.shape[-1]} outputs per text, but the model has {expected}: it belongs to "
                "another model. Recreate it with export_onnx.py --overwrite"
            )
        return rows


def timed(items: Iterator, counts: Counter) -> Iterator:
    """Yield the items; add the seconds spent waiting for them to `waited`."""
    wait_start = time.monotonic()
    for item in items:
        counts["waited"] += time.monotonic() - wait_start
        yield item
        wait_start = time.monotonic()
