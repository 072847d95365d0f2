"""Check an export: run it and the original model over the same texts, and judge the differences."""

import sys
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from bench.export.gold import score
from bench.export.select import EXPORT_KINDS
from bench.files import digest
from bench.judge import NOT_WITHIN, ROUNDING, UNPROVEN, WITHIN, decisions_needed, share_words
from bench.model.batches import Batching
from bench.model.classification import MULTI, Classification
from bench.model.pairs import order_changes
from bench.model.parity import ParityCounter, worst_texts
from bench.model.reference import Reference
from bench.model_files import model_files
from bench.naming import slug
from bench.processes import ProcessPool, device_info, run_in_subprocess
from bench.report.evidence import Evidence, EvidenceFile, evidence_key
from bench.tables.datasets import Dataset
from bench.variants import Device, digest_export
from runtimes import VARIANTS
from runtimes.classifier import Classifier, ClassifierSpec
from runtimes.onnx import check_gpu
from utils import UserError, say


def choose_device(precision: str, kind: str | None, gpu: int, threads: int) -> tuple[Device, str]:
    """Return the device for the check, and the machine's name.

    `kind`: gpu or cpu; None for a GPU if there is one that can run this precision, otherwise the CPU.
    """
    variant = VARIANTS[EXPORT_KINDS[precision].variant]
    if kind != "cpu":
        try:
            if "gpu" in variant.unsupported:
                advice = "; use --device cpu" if kind else ""
                raise UserError(f"no {precision} on a gpu: {variant.unsupported['gpu']}{advice}")
            info = device_info(gpu)
            run_in_subprocess(check_gpu, gpu)
            return Device(gpu, threads), f"{info.name} (driver {info.driver})"
        except UserError as error:
            if kind == "gpu":
                raise
            say(f"checking on the CPU: {error}")
    return Device(None, threads), f"{device_info(None).name}, {threads} threads"


def check_export(
    exported: ClassifierSpec, dataset: Dataset, batching: Batching, tolerance: float, evidence: EvidenceFile
) -> dict:
    """Run an export and the original over the same texts; return the part of the report that compares them.

    The original runs text by text, see Reference. The verdict is drawn from all evidence, to which this check is added.
    Raises UserError if no text can be compared.
    """
    model, device, texts = exported.model, exported.device, dataset.texts
    arguments = (exported,)
    step = Classifier.predict_share
    (_, predictions), export_seconds = run_over(texts, exported.variant, Classifier, arguments, step, batching)
    valid = np.flatnonzero(predictions.lengths)
    if not len(valid):
        raise UserError(f"the tokenizer returns no tokens for any text of {dataset.name}; choose another --dataset")
    valid_texts = [texts[i] for i in valid]
    arguments = model, device.gpu, device.threads
    reference, seconds = run_over(valid_texts, "original", Reference.load, arguments, Reference.of_items)
    answers = predictions.answers[valid]
    parity = ParityCounter(model.task, VARIANTS[exported.variant].computes_in(device.gpu), tolerance)
    parity.add(answers, reference, valid_texts)
    decision_words = model.task.decision_words
    if dataset.groups:
        groups = [dataset.groups[i] for i in valid]
        moved, neighbours = order_changes(*map(model.task.comparable, (answers, reference)), groups)
        parity.add_changes([valid_texts[i] for i in moved], neighbours)
        decision_words += ", and neighbours in the order of a group that change places"
    if not parity.decisions:
        raise UserError(f"{model.id} returns NaN or infinity for every text; its weights may be damaged")
    gold = [dataset.gold[i] for i in valid] if dataset.gold else []
    kind = VARIANTS[exported.variant].export
    place = {"dataset": dataset.name, "device": slug(device_info(device.gpu).name)}
    key = evidence_key(model, exported.variant, digest_export(exported.exported), **place)
    if dataset.groups:  # the texts have more decisions than in checks without an order
        key["threshold"] += " and order"
    evidence.add(key, parity)
    found = evidence.of_key(key)
    verdict = found.verdict(exported.variant, device.gpu is not None, tolerance)
    return {
        "provider": "CPUExecutionProvider" if device.gpu is None else "CUDAExecutionProvider",
        **({"fp16_exercised": device.gpu is not None} if kind.precision == "fp16" else {}),
        "dataset": dataset.name,
        "texts": len(texts),
        "batches": str(batching),
        "batches_matter": kind.batches_matter,
        "max_length": model.max_length,
        "export_id": digest(model_files(exported.exported)),  # its weights_id as a model of its own
        "threshold": model.task.rule_id,
        "labels": model.labels if isinstance(model.task, Classification) else [],
        "thresholds": model.task.thresholds if getattr(model.task, "problem_type", "") == MULTI else [],
        "task": model.task.name,
        "card": model.task.card,
        "script": model.task.script,
        "decision_words": decision_words,
        "weak_test": "" if dataset.gold else model.task.weak_test(reference, tolerance),
        **parity.statistics(),
        "gold": score(gold, reference, answers, model.task) if gold else {},
        "speed": {"original": len(valid) / seconds, "export": len(texts) / export_seconds},
        "worst": worst_texts(answers, reference, valid_texts, model.labels),
        "tolerance": tolerance,
        "verdict": verdict,
        "reason": explain(verdict, found, parity),
        "evidence": {"texts": len(found.changes), "changed": found.changed, "decisions": found.decisions},
    }


def explain(verdict: str, found: Evidence, parity: ParityCounter) -> str:
    """Return the reason for a verdict, in one line. `found`: all evidence, of which `parity` is a part."""
    if found.non_finite:
        return f"{found.non_finite:,} texts have NaN or infinite outputs"
    changed = f"{found.changed:,} of {found.decisions:,} decisions changed"
    if verdict == UNPROVEN:
        needed = decisions_needed(found.changed, found.decisions, parity.tolerance)
        advice = "the share is too close to the tolerance to decide"
        if needed:
            advice = f"about {needed / found.decisions:.1f} times as many texts would decide"
        return f"{share_words(found.changed, found.decisions, parity.tolerance)}: {advice}"
    if verdict == WITHIN and parity.is_rounding and not found.changed:
        word = parity.task.card["output_word"]
        return f"{changed}, and no {word} by more than {ROUNDING:g}, which is rounding"
    limit = "more than" if verdict == NOT_WITHIN else "at most"
    confidence = " with 95% confidence" if 0 < parity.tolerance < 1 else ""
    return f"{changed}, {limit} the tolerance of {parity.tolerance:.3%}{confidence}"


def run_over(texts: list[str], name: str, make: Callable, arguments: tuple, step: Callable, *options):
    """Return step(make(*arguments), texts, *options), run in another process with a progress bar, and its seconds."""
    with (
        ProcessPool(make, [arguments], forked=True) as pool,
        tqdm(desc=name, total=len(texts), unit="text", file=sys.stderr) as progress,
    ):
        start = time.monotonic()
        [result] = pool.call(step, texts, *options, on_heartbeat=lambda done: progress.update(done[0] - progress.n))
        progress.update(progress.total - progress.n)
    return result, time.monotonic() - start
