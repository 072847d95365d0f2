"""Baselines: transformers' pipeline, which most people use, with its own model or optimum's. It takes texts."""

from pathlib import Path

import numpy as np

from bench.model.model import Model
from bench.variants import Device, TextRunner, Variant
from runtimes.onnx import FP32, PACKAGES
from utils import UserError

CHUNK_TEXTS = 256  # texts per call, at least: seconds of work between two reports of progress


def load(model: Model, _, device: Device) -> TextRunner:
    """Load the pipeline with the model in FP32, its default."""
    import torch

    torch.set_num_threads(device.threads)
    return pipeline_runner(model, model.load_torch(), device)


def load_optimum(model: Model, exported: Path, device: Device) -> TextRunner:
    """Load the pipeline with optimum's model class. Raises UserError if optimum-onnx is not installed."""
    try:
        optimum_class = model.task.optimum_class()
    except ImportError as error:
        raise UserError("optimum-onnx is not installed") from error
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = device.threads
    provider = "CPUExecutionProvider" if device.gpu is None else "CUDAExecutionProvider"
    network = optimum_class.from_pretrained(
        exported, provider=provider, session_options=options, local_files_only=True, trust_remote_code=False
    )
    return pipeline_runner(model, network, device)


def pipeline_runner(model: Model, network, device: Device) -> TextRunner:
    """Return a runner over the network's pipeline, with batches in file order."""
    from transformers import pipeline

    network.config.id2label = {i: str(i) for i in range(network.config.num_labels)}  # names need not be unique
    device_index = -1 if device.gpu is None else device.gpu
    model.tokenizer.padding_side = model.padding_side
    pipe = pipeline(model.task.name, model=network, tokenizer=model.tokenizer, device=device_index)
    options = {"top_k": None, "function_to_apply": "none", "truncation": True}

    def answer(texts: list[str], batch_size: int, max_length: int, on_progress) -> np.ndarray:
        logits = np.empty((len(texts), network.config.num_labels), dtype=np.float32)
        batch_size = batch_size if model.can_pad else 1
        step = -(-CHUNK_TEXTS // batch_size) * batch_size
        for start in range(0, len(texts), step):
            scores = pipe(texts[start : start + step], batch_size=batch_size, max_length=max_length, **options)
            for i, labels in enumerate(scores, start):
                for label in labels:
                    logits[i, int(label["label"])] = label["score"]
            on_progress(min(start + step, len(texts)))
        return model.task.answers(logits, np.arange(len(texts)), len(texts), "cut")

    return TextRunner(answer)


VARIANTS = {
    "pipeline": Variant(load, "fp32", ("transformers",), default_on=(), takes_texts=True),
    "optimum-pipeline": Variant(load_optimum, "fp32", PACKAGES, export=FP32, default_on=(), takes_texts=True),
}
