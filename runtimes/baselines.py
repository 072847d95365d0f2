"""Baselines: the libraries that people use instead, each at its best. They take texts, and pad and sort them.

`pipeline` is transformers' pipeline, `crossencoder` and `sentence-transformers` are the two classes of
sentence-transformers, each with its backends. Task.libraries names those that fit a task.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bench.exporters.backends import with_optimum
from bench.model.embedding import text_of
from bench.model.model import TORCH_DTYPES, Model
from bench.model_files import graph_of
from bench.tables.items import Item
from bench.variants import Device, TextRunner, Variant
from runtimes.onnx import FP32, PACKAGES
from utils import UserError

PIPELINE_TEXTS = 256  # per call of a pipeline: seconds of work between reports of progress
OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16"}
LIBRARY_TEXTS = 4096  # per call of sentence-transformers, which sorts them by length
AS_EXPORTED = replace(
    FP32,
    precision="fp32-plain",
    suffix="-onnx-plain",
    description="FP32, as optimum exports it",
    backends={"optimum": with_optimum},
    trimmed=False,
)


def load_pipeline(model: Model, exported: Path | None, device: Device) -> TextRunner:
    """Load transformers' pipeline with the model in FP32, its default, or with optimum's class for its export."""
    use_threads(device)
    network = load_optimum(model, exported, device) if exported else model.load_torch()
    pipe = model.task.pipeline(model, network, -1 if device.gpu is None else device.gpu)
    return text_runner(model, partial(model.task.pipeline_answers, pipe), PIPELINE_TEXTS)


def load_optimum(model: Model, exported: Path, device: Device):
    """Load optimum's class for an export. Raises UserError if optimum-onnx is not installed."""
    try:
        optimum_class = model.task.optimum_class()
    except ImportError as error:
        raise UserError("optimum-onnx is not installed") from error
    options = onnx_options(device) | {"local_files_only": True, "trust_remote_code": False}
    return optimum_class.from_pretrained(exported, **options)


def load_cross_encoder(model: Model, exported: Path | None, device: Device, backend: str, precision: str) -> TextRunner:
    """Load sentence-transformers' CrossEncoder, with texts truncated as the task does it."""
    use_threads(device)
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer

    local = {"local_files_only": True, "trust_remote_code": False}
    folder, options = backend_options(model, exported, device, backend, precision)
    transformer = Transformer(
        str(folder),
        transformer_task="sequence-classification",
        model_kwargs=local | options,
        processor_kwargs=local | {"model_max_length": model.max_length, "padding_side": model.padding_side},
        config_kwargs=local,
        backend=backend,
    )
    library = CrossEncoder(modules=[transformer], device=place(device), activation_fn=torch.nn.Identity())
    library.is_singular_input = lambda inputs: False  # predict() would take a list of texts for a pair
    truncation = {"text": {"truncation": model.task.truncation}}

    def answer(items: list[Item], batch_size: int) -> np.ndarray:
        logits = library.predict(items, batch_size=batch_size, processing_kwargs=truncation, show_progress_bar=False)
        return model.task.answers(logits.reshape(len(items), -1), np.arange(len(items)), len(items), "cut")

    return text_runner(model, answer, LIBRARY_TEXTS)


def load_sentence_transformer(
    model: Model, exported: Path | None, device: Device, backend: str, precision: str
) -> TextRunner:
    """Load sentence-transformers' SentenceTransformer, with the options of the task for encode()."""
    use_threads(device)
    from bench.model.sentence import load_library

    folder, options = backend_options(model, exported, device, backend, precision)
    library = load_library(model, place(device), folder, backend=backend, model_kwargs=options)

    def answer(items: list[Item], batch_size: int) -> np.ndarray:
        return library.encode(list(map(text_of, items)), batch_size=batch_size, **model.task.encode_options)

    return text_runner(model, answer, LIBRARY_TEXTS)


def backend_options(
    model: Model, exported: Path | None, device: Device, backend: str, precision: str
) -> tuple[Path, dict]:
    """Return the folder that a backend loads, and its `model_kwargs`: nothing is exported, and the precision is set.

    OpenVINO would otherwise compute in BF16 if the CPU has it.
    """
    if not exported:
        return model.folder, {"dtype": TORCH_DTYPES[precision]}
    folder = model.folder if model.onnx_precision else exported
    options = {"export": False, "file_name": str(graph_of(exported).relative_to(folder))}
    if backend == "onnx":
        return folder, options | onnx_options(device)
    settings = {"INFERENCE_PRECISION_HINT": OPENVINO_TYPES[precision], "INFERENCE_NUM_THREADS": device.threads}
    return folder, options | {"from_onnx": True, "ov_config": settings | {"ENABLE_CPU_PINNING": False}}


def onnx_options(device: Device) -> dict:
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = device.threads
    if device.gpu is None:
        return {"provider": "CPUExecutionProvider", "session_options": options}
    settings = {"device_id": device.gpu, "use_tf32": 0}
    return {"provider": "CUDAExecutionProvider", "provider_options": settings, "session_options": options}


def use_threads(device: Device) -> None:
    import torch

    torch.set_num_threads(device.threads)


def place(device: Device) -> str:
    return "cpu" if device.gpu is None else f"cuda:{device.gpu}"


def text_runner(model: Model, answer_chunk: Callable, chunk_texts: int) -> TextRunner:
    """Return a runner that answers about `chunk_texts` items per call, whole batches in file order."""

    def answer(items: list[Item], batch_size: int, on_progress) -> np.ndarray:
        answers = np.empty((len(items), len(model.labels)))
        batch_size = batch_size if model.can_pad else 1
        step = -(-chunk_texts // batch_size) * batch_size
        for start in range(0, len(items), step):
            chunk = slice(start, start + step)
            answers[chunk] = answer_chunk(items[chunk], batch_size)
            on_progress(min(start + step, len(items)))
        return answers

    return TextRunner(answer, sorts=chunk_texts == LIBRARY_TEXTS)


def variants(library: str, load: Callable) -> dict[str, Variant]:
    """Return the variants of a class of sentence-transformers: its backends, in the precisions that each offers."""

    def variant(backend: str, options: dict, precision: str = "fp32", **more) -> Variant:
        loader = partial(load, backend=backend, precision=precision)
        return Variant(loader, precision, library=library, **options, **more)

    torch = {"packages": ("sentence-transformers",)}
    onnx = {"packages": PACKAGES, "further_packages": ("sentence-transformers", "optimum-onnx"), "export": AS_EXPORTED}
    openvino = {"packages": ("openvino",), "further_packages": ("sentence-transformers", "optimum-intel")}
    openvino |= {"export": AS_EXPORTED, "default_on": ("cpu",)}
    openvino["unsupported"] = {"gpu": "OpenVINO does not support NVIDIA's GPUs"}
    return {
        library: variant("torch", torch),
        f"{library}-fp16": variant("torch", torch, "fp16", default_on=("gpu",)),
        f"{library}-bf16": variant("torch", torch, "bf16", required_cpu_feature="bf16"),
        f"{library}-onnx": variant("onnx", onnx),
        f"{library}-openvino": variant("openvino", openvino),
        f"{library}-openvino-bf16": variant("openvino", openvino, "bf16", required_cpu_feature="bf16"),
    }


VARIANTS = {
    "pipeline": Variant(load_pipeline, "fp32", ("transformers",), library="pipeline"),
    "optimum-pipeline": Variant(
        load_pipeline, "fp32", PACKAGES, ("optimum-onnx",), export=AS_EXPORTED, library="pipeline"
    ),
    **variants("crossencoder", load_cross_encoder),
    **variants("sentence-transformers", load_sentence_transformer),
}
