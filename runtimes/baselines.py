"""Baselines: the libraries that people use instead, each at its best. They take texts, and make their own batches.

transformers' pipeline, and sentence-transformers' CrossEncoder and SentenceTransformer with each of their backends.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.exporters.backends import with_optimum
from bench.model.embedding import text_of
from bench.model.model import TORCH_DTYPES, Model
from bench.model_files import graph_of
from bench.tables.items import Item
from bench.variants import Device, TextRunner, Variant
from runtimes.onnx import FP32, PACKAGES

CHUNK_TEXTS = {False: 256, True: 4096}  # per call, between reports of progress: of libraries that sort their texts, too
OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16"}
LOCAL = {"local_files_only": True, "trust_remote_code": False}
AS_EXPORTED = replace(
    FP32,
    precision="fp32-plain",
    suffix="-onnx-plain",
    backends={"optimum": with_optimum},
    trimmed=False,
)


def loader(load_library: Callable, backend: str, precision: str) -> Callable:
    """Return Variant.load for a library with one of sentence-transformers' backends."""
    sorts = load_library is not load_pipeline

    def load(model: Model, exported: Path | None, device: Device) -> TextRunner:
        import torch

        torch.set_num_threads(device.threads)
        folder, options = model.folder, {"dtype": TORCH_DTYPES[precision]}
        if exported:
            folder = exported if not model.onnx_precision else model.folder
            options = {"export": False, "file_name": str(graph_of(exported).relative_to(folder))}
            options |= backend_options(device, backend, precision)
        answer_chunk = load_library(model, device, backend, folder, options)

        def answer(items: list[Item], batch_size: int, on_progress: Callable) -> np.ndarray:
            answers = np.empty((len(items), len(model.labels)))
            batch_size = batch_size if model.can_pad else 1
            step = -(-CHUNK_TEXTS[sorts] // batch_size) * batch_size
            for start in range(0, len(items), step):
                chunk = slice(start, start + step)
                answers[chunk] = answer_chunk(items[chunk], batch_size)
                on_progress(min(start + step, len(items)))
            return answers

        return TextRunner(answer, sorts)

    return load


def backend_options(device: Device, backend: str, precision: str) -> dict:
    """Return the options of a backend that loads an export; OpenVINO would use BF16 if the CPU has it."""
    if backend == "openvino":
        settings = {"INFERENCE_PRECISION_HINT": OPENVINO_TYPES[precision], "INFERENCE_NUM_THREADS": device.threads}
        return {"from_onnx": True, "ov_config": settings | {"ENABLE_CPU_PINNING": False}}
    from onnxruntime import SessionOptions

    session = {"session_options": SessionOptions()}
    session["session_options"].intra_op_num_threads = device.threads
    if device.gpu is None:
        return session | {"provider": "CPUExecutionProvider"}
    settings = {"device_id": device.gpu, "use_tf32": 0}
    return session | {"provider": "CUDAExecutionProvider", "provider_options": settings}


def load_pipeline(model: Model, device: Device, backend: str, folder: Path, options: dict) -> Callable:
    if backend == "torch":
        network = model.load_torch()
    else:
        from optimum import onnxruntime

        network = getattr(onnxruntime, f"ORTModel{model.task.class_suffix}").from_pretrained(folder, **options, **LOCAL)
    pipe = model.task.pipeline(model, network, device.torch_name)
    return lambda items, batch_size: model.task.pipeline_answers(pipe, items, batch_size)


def load_cross_encoder(model: Model, device: Device, backend: str, folder: Path, options: dict) -> Callable:
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from torch.nn import Identity

    transformer = Transformer(
        str(folder),
        transformer_task="sequence-classification",
        model_kwargs=options | LOCAL,
        processor_kwargs={"model_max_length": model.max_length, "padding_side": model.padding_side} | LOCAL,
        config_kwargs=LOCAL,
        backend=backend,
    )
    encoder = CrossEncoder(modules=[transformer], device=device.torch_name, activation_fn=Identity())
    encoder.is_singular_input = lambda inputs: False  # predict() takes a list of texts for a single pair
    truncation = {"text": {"truncation": model.task.truncation}}

    def answer_chunk(items: list[Item], batch_size: int) -> np.ndarray:
        logits = encoder.predict(items, batch_size=batch_size, processing_kwargs=truncation, show_progress_bar=False)
        return model.task.answers(logits.reshape(len(items), -1), np.arange(len(items)), len(items), "cut")

    return answer_chunk


def load_sentence_transformer(model: Model, device: Device, backend: str, folder: Path, options: dict) -> Callable:
    from bench.model.sentence import load_library

    encoder = load_library(model, device.torch_name, folder, backend=backend, model_kwargs=options)
    chosen = model.task.encode_options
    return lambda items, batch_size: encoder.encode([*map(text_of, items)], batch_size=batch_size, **chosen)


LIBRARIES = {
    "pipeline": load_pipeline,
    "crossencoder": load_cross_encoder,
    "sentence-transformers": load_sentence_transformer,
}


def variant(library: str, backend: str, precision: str = "fp32", **options) -> Variant:
    package = "transformers" if library == "pipeline" else "sentence-transformers"
    packages, further = (package,), ()
    if backend == "onnx":
        packages, further = PACKAGES, (package, "optimum-onnx")
    elif backend == "openvino":
        packages, further = ("openvino",), (package, "optimum-intel")
        options |= {"default_on": ("cpu",), "unsupported": {"gpu": "OpenVINO does not support NVIDIA's GPUs"}}
    export = None if backend == "torch" else AS_EXPORTED
    load = loader(LIBRARIES[library], backend, precision)
    return Variant(load, precision, packages, further, export=export, library=library, **options)


VARIANTS = {"pipeline": variant("pipeline", "torch"), "optimum-pipeline": variant("pipeline", "onnx")}
for name in ("crossencoder", "sentence-transformers"):
    VARIANTS |= {
        name: variant(name, "torch"),
        f"{name}-fp16": variant(name, "torch", "fp16", default_on=("gpu",)),
        f"{name}-bf16": variant(name, "torch", "bf16", required_cpu_feature="bf16"),
        f"{name}-onnx": variant(name, "onnx"),
        f"{name}-openvino": variant(name, "openvino"),
        f"{name}-openvino-bf16": variant(name, "openvino", "bf16", required_cpu_feature="bf16"),
    }
