"""An export -> the report of what it says beside the original."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.export.gold import score
from bench.judge import judge_export
from bench.model.batches import Batching
from bench.model.parity import ParityCounter, worst_texts
from bench.model.reference import Reference
from bench.processes import ProcessPool
from bench.tables.datasets import Dataset
from runtimes import VARIANTS
from runtimes.classifier import Classifier, ClassifierSpec
from utils import UserError


def check_export(exported: ClassifierSpec, dataset: Dataset, batching: Batching, tolerance: float) -> dict:
    """Runs an export and the original over the same texts; returns what the report says of both.

    The original runs text by text, as transformers documents it, see Reference. Raises UserError if no text has a
    token.
    """
    model, device, texts = exported.model, exported.device, dataset.texts
    arguments = texts, exported.variant, Classifier, (exported,), Classifier.predict_share, batching
    _, predictions = run_over(*arguments)
    full = np.flatnonzero(predictions.has_tokens)
    if not len(full):
        raise UserError("the tokenizer gives no token for any text")
    full_texts = [texts[i] for i in full]
    arguments = full_texts, "original", Reference.load, (model, device.gpu, device.threads), Reference.of_file
    reference, seconds = run_over(*arguments)
    probs = predictions.answers[full]
    speed = {"original": len(full) / seconds, "export": len(texts) / (predictions.end - predictions.start)}
    parity = ParityCounter(model.task, VARIANTS[exported.variant].computes_in(device.gpu), tolerance)
    parity.add(probs, reference)
    stats = parity.statistics()
    verdict, reason = judge_export(stats, tolerance, parity.precision)
    gold = [dataset.gold[i] for i in full] if dataset.gold else []
    return {
        "max_length": model.max_length,
        "task": model.task.name,
        "card": model.task.card,
        "decision_words": model.task.decision_words,
        **stats,
        "gold": {"original": score(gold, reference, model), "export": score(gold, probs, model)} if gold else {},
        "speed": speed,
        "worst": worst_texts(probs, reference, full_texts, model.labels),
        "tolerance": tolerance,
        "verdict": verdict,
        "reason": reason,
    }


def run_over(texts: list[str], name: str, make: Callable, arguments: tuple, method: Callable, *more):
    """Calls method(made object, file of the texts, *more) in a process of its own, with a progress bar."""
    with (
        tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file,
        ProcessPool(make, [arguments], forked=True) as pool,
        tqdm(desc=name, total=len(texts), unit="text", file=sys.stderr) as progress,
    ):
        json.dump(texts, file)
        file.flush()
        request = method, Path(file.name), *more
        [answer] = pool.call(*request, on_heartbeat=lambda done: progress.update(done[0] - progress.n))
        progress.update(progress.total - progress.n)
    return answer


def without_nan(value):
    """Replaces what is not finite in a report by None, since JSON has no word for it."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
