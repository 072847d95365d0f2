"""A loaded variant, and the one loop from texts to logits.

The benchmark's end-to-end rows, the check of an export and the labelling all run it: what is timed is what labels.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.model.batches import Batching, round_lengths_up
from bench.model.model import Model
from bench.model.stream import Batch, prefetch, share_of, text_batches
from bench.processes import OUT_OF_MEMORY, error_summary, heartbeat
from bench.tables.items import Item, count_characters
from bench.variants import Device, TextRunner, digest_export
from runtimes import VARIANTS
from utils import RunError, UserError, say

FETCH_EVERY = 64  # batches whose outputs may wait on the device: fetching waits for all of its work


@dataclass(frozen=True)
class ClassifierSpec:
    """What a process needs to load a Classifier.

    exported: the folder of the variant's export, if it loads one; export_id: digest_export() of what must be in it,
    nothing if that doesn't matter.
    """

    model: Model
    variant: str
    exported: Path | None
    device: Device
    export_id: str = ""

    def check_unchanged(self) -> None:
        """Raises RunError if model or export are no longer what they were when the run began."""
        self.model.check_unchanged()
        if self.export_id and digest_export(self.exported) != self.export_id:
            raise RunError(f"{self.exported} has changed since the run began: start it again")


@dataclass(frozen=True)
class Predictions:
    """The answers for some items.

    answers: float64 [items, labels], nan for items without a token; has_tokens: bool [items]; start, end: seconds of
    the monotonic clock; waited: seconds in between in which no batch was ready for the model.

    These are 0 where the variant takes the texts themselves: tokens, padded_tokens: how many it was given, without and
    with padding; lengths: int [texts], tokens of each text, those that were cut off too; truncated, lost: how many
    texts were cut, and how many of their tokens.
    """

    answers: np.ndarray
    has_tokens: np.ndarray
    start: float
    end: float
    waited: float = 0.0
    tokens: int = 0
    padded_tokens: int = 0
    truncated: int = 0
    lost: int = 0
    lengths: np.ndarray | None = None


class Classifier:
    """A variant that is loaded into this process. Of a file's texts, worker `number` of `workers` takes a share."""

    def __init__(self, spec: ClassifierSpec, number: int = 0, workers: int = 1):
        variant, gpu = VARIANTS[spec.variant], spec.device.gpu
        os.environ |= variant.environment
        if gpu is None:
            os.environ["RAYON_NUM_THREADS"] = str(spec.device.threads)  # the tokenizer's
        self.model, self.number, self.workers = spec.model, number, workers
        try:
            self.runner = variant.load(spec.model, spec.exported, spec.device)
        finally:
            spec.check_unchanged()  # after loading: what is replaced meanwhile is seen, too
        self.rounds_lengths_up = variant.new_shapes_are_costly(gpu) and spec.model.can_pad

    @property
    def takes_texts(self) -> bool:
        return isinstance(self.runner, TextRunner)

    def padded_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Returns to how many tokens texts of these lengths are padded, at least: few shapes where they are costly."""
        return round_lengths_up(lengths, self.model.max_length) if self.rounds_lengths_up else lengths

    def batches(self, texts: list[Item], batching: Batching) -> Iterator[Batch]:
        return text_batches(self.model, texts, batching, self.padded_lengths)

    def predict(
        self, texts: list[Item], batching: Batching, on_progress: Callable = heartbeat, halve: bool = False
    ) -> Predictions:
        """Runs the model over texts: tokenizing, sorting, padding and moving go on in a thread meanwhile.

        `on_progress` gets about how many texts are done: long ones count for more. With `halve` a batch that the memory
        does not hold runs in halves. Raises UserError for another number of labels than the model's, and whatever the
        runtime raises.
        """
        start, counts = time.monotonic(), Counter()
        has_tokens = np.full(len(texts), self.takes_texts)
        if not texts:
            return Predictions(np.empty((0, len(self.model.labels))), has_tokens, start, time.monotonic())
        if self.takes_texts:
            answers = self.runner.answer(texts, batching.batch_size, self.model.max_length, on_progress)
            return Predictions(answers, has_tokens, start, time.monotonic())
        characters, lengths = np.array([count_characters(text) for text in texts]), np.zeros(len(texts), int)
        fetched, waiting = [], []  # waiting with the inputs, which a GPU may still read

        def fetch() -> None:
            self.runner.synchronize()
            fetched.extend((batch.indices, self.to_host(outputs)) for batch, _, outputs in waiting)
            waiting.clear()

        prepared = ((batch, self.runner.prepare(batch.inputs)) for batch in self.batches(texts, batching))
        for batch, inputs in timed(prefetch(prepared), counts):
            parts = [(batch, inputs)]
            while parts:
                part, of_part = parts.pop()
                if (outputs := self.forward(part, of_part, halve)) is not None:
                    waiting.append((part, of_part, outputs))
                    continue
                say(f"out of memory for a batch of {len(part.indices)} texts: in halves")
                fetch()
                parts += [(half, self.runner.prepare(half.inputs)) for half in halves(part)]
            if len(waiting) >= FETCH_EVERY:
                fetch()
            counts["tokens"] += int(batch.lengths.sum())
            counts["padded_tokens"] += batch.inputs["input_ids"].size
            counts["truncated"] += int((batch.lost > 0).sum())
            counts["lost"] += 0 if batching.long != "cut" else int(batch.lost.sum())
            counts["characters"] += int(characters[np.unique(batch.indices[~has_tokens[batch.indices]])].sum())
            has_tokens[batch.indices] = True
            np.maximum.at(lengths, batch.indices, batch.lengths + batch.lost)
            on_progress(round(counts["characters"] / max(characters.sum(), 1) * len(texts)))
        fetch()
        indices = np.concatenate([np.empty(0, int), *(own for own, _ in fetched)])
        outputs = np.concatenate([np.empty((0, len(self.model.labels)), np.float32), *(found for _, found in fetched)])
        end = time.monotonic()
        answers = self.model.task.answers(outputs, indices, len(texts), batching.long)
        del counts["characters"]
        return Predictions(answers, has_tokens, start, end, lengths=lengths, **counts)

    def forward(self, batch: Batch, inputs: object, halve: bool) -> object | None:
        """Returns what the runner makes of a batch; None for one to `halve`, since the memory does not hold it."""
        try:
            return self.runner.forward(inputs)
        except Exception as error:
            if not halve or len(batch.indices) < 2 or error_summary(error) != OUT_OF_MEMORY:
                raise
        return None

    def predict_share(self, texts: list[Item], batching: Batching) -> tuple[np.ndarray, Predictions]:
        """Run the model over this worker's share of the texts; return (their indices, the answers)."""
        share = share_of(texts, self.number, self.workers)
        return share, self.predict([texts[i] for i in share], batching, heartbeat, True)

    def to_host(self, outputs) -> np.ndarray:
        """Fetches a batch's logits, float32 [texts, labels]. Raises UserError if they have other labels."""
        logits, labels = self.runner.to_host(outputs), len(self.model.labels)
        if logits.shape[1:] != (labels,):
            raise UserError(f"it gives {logits.shape[-1]} labels, the model has {labels}: not its export")
        return logits


def timed(items: Iterator, counts: Counter) -> Iterator:
    """Yields the items; adds the seconds for which one waits for them to `waited`."""
    before = time.monotonic()
    for item in items:
        counts["waited"] += time.monotonic() - before
        yield item
        before = time.monotonic()


def halves(batch: Batch) -> list[Batch]:
    """Returns the two halves of a batch of several texts, padded as it is."""
    middle = len(batch.indices) // 2
    return [
        replace(
            batch,
            indices=batch.indices[rows],
            inputs={name: values[rows] for name, values in batch.inputs.items()},
            lengths=batch.lengths[rows],
            lost=batch.lost[rows],
        )
        for rows in (slice(middle), slice(middle, None))
    ]
