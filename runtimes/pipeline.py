"""Baselines: transformers' pipeline, which most people use, with its own model or optimum's. It takes texts."""

from pathlib import Path

import numpy as np

from bench.model.model import Model
from bench.tables.items import Item
from bench.variants import Device, TextRunner, Variant
from runtimes.onnx import FP32, PACKAGES
from utils import UserError


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
    """Return a runner over the task's pipeline, with batches in file order."""
    pipe = model.task.pipeline(model, network, -1 if device.gpu is None else device.gpu)

    def answer(items: list[Item], batch_size: int, on_progress) -> np.ndarray:
        answers = np.empty((len(items), len(model.labels)))
        batch_size = batch_size if model.can_pad else 1
        step = -(-model.task.pipeline_texts // batch_size) * batch_size
        for start in range(0, len(items), step):
            chunk = slice(start, start + step)
            answers[chunk] = model.task.pipeline_answers(pipe, items[chunk], batch_size)
            on_progress(min(start + step, len(items)))
        return answers

    return TextRunner(answer)


VARIANTS = {
    "pipeline": Variant(load, "fp32", ("transformers",), default_on=(), takes_texts=True),
    "optimum-pipeline": Variant(load_optimum, "fp32", PACKAGES, export=FP32, default_on=(), takes_texts=True),
}
