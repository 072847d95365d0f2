"""ONNX files: their weights, their inputs, and what their graphs are made of."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.machine import cpu_cores
from bench.model.onnx_file import load_graph
from bench.variants import Device
from utils import UserError

INSIDE_BYTES = 2**31 - 2**24  # protobuf's limit of 2 GiB for a file, minus some space for the graph
ATTENTION = ("Attention", "MultiHeadAttention")
FUSIONS = [  # of a fused graph: node types, their number per layer, and the consequence if there are fewer
    (ATTENTION, 1, "the rest runs as separate products and a softmax, which is slower and takes more memory"),
    (("SkipLayerNormalization",), 2, "the rest runs as separate additions and normalizations, which is slower"),
    (("FastGelu", "Gelu", "BiasGelu"), 1, "the rest runs in single steps, which is slower"),
]
NOTABLE = re.compile("MatMul|Gemm|Attention|Norm|Gelu|Quant")  # node types that a report lists


def store_weights(file: Path) -> None:
    """Move weights into model.onnx, or from 2 GB on to model.onnx_data, the name that loaders expect.

    onnxruntime's optimizer writes model.onnx.data, which optimum does not download from the Hub. Renaming it is not
    enough, since the model contains the name.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    model = load_graph(file)
    weights = model.graph.initializer
    outside = {entry.value for weight in weights for entry in weight.external_data if entry.key == "location"}
    if not outside and file.stat().st_size < INSIDE_BYTES:
        return
    load_external_data_for_model(model, str(file.parent))
    for name in outside:
        (file.parent / name).unlink()
    large = sum(len(weight.raw_data) for weight in weights) >= INSIDE_BYTES
    location = f"{file.name}_data" if large else None
    onnx.save_model(model, file, save_as_external_data=large, location=location, size_threshold=1024)


def start_session(graph: str | bytes, device: Device | None = None):
    """Start a session on a file or its content with `device.threads` threads; by default on the whole CPU.

    They spin-wait only if no other worker runs. On a GPU, FP32 is IEEE FP32 (no TF32).
    """
    device = device or Device(None, cpu_cores())
    if device.gpu is not None:
        import torch  # noqa: F401  before onnxruntime: torch loads the CUDA libraries
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # an error quotes names of the file, and is raised, too
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = device.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")  # denormals are very slow on some CPUs
    options.enable_mem_pattern = False  # it would allocate again in the second run of each shape, inside the timing
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if device.exclusive else "0")
    provider, settings = "CPUExecutionProvider", {}
    if device.gpu is not None:
        provider, settings = "CUDAExecutionProvider", {"device_id": device.gpu, "use_tf32": 0}
    session = onnxruntime.InferenceSession(graph, options, providers=[(provider, settings)], enable_fallback=0)
    if session.get_providers()[0] != provider:
        raise UserError(
            f"onnxruntime could not use {provider} and fell back to {session.get_providers()[0]}: "
            "install onnxruntime-gpu and check the CUDA driver, or use --device cpu"
        )
    return session


def load_with(file: Path, names: list[str]) -> Callable:
    """Return a function that runs a file: batch -> the tensors `names` of its graph."""
    import onnx

    model = load_graph(file)
    model.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, names))
    probe = file.with_name("probe.onnx")  # in the same folder, where it finds weights outside the file
    onnx.save(model, probe)
    session = start_session(str(probe))
    probe.unlink()
    inputs = [node.name for node in session.get_inputs()]

    return lambda batch: dict(zip(names, session.run(names, select_inputs(inputs, batch)), strict=True))


def select_inputs(names: list[str], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Select a graph's inputs. Token types that the model does not take are zeros. Raises UserError for others."""
    if unknown := set(names) - {*inputs, "token_type_ids"}:
        raise UserError(f"the graph has inputs that no tokenizer returns: {', '.join(sorted(unknown))}")
    return {name: inputs[name] if name in inputs else np.zeros_like(inputs["input_ids"]) for name in names}


def describe_graph(file: Path, fused_layers: int | None) -> dict:
    """Return `nodes` (the number of each notable type), `opset` and `findings` (problems with their consequences).

    `fused_layers`: number of layers that should be fused and in FP16; None for a plain graph.
    """
    from onnx import TensorProto

    model = load_graph(file)
    nodes, findings = Counter(node.op_type for node in model.graph.node), []
    if fused_layers is not None:
        for types, per_layer, consequence in FUSIONS:
            count, expected = sum(nodes[name] for name in types), per_layer * fused_layers
            if count < expected:
                findings.append(f"{count} of {expected} {'/'.join(types)} nodes: {consequence}")
        fp32 = [w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and np.prod(w.dims) > 1]
        if fp32:
            findings.append(f"{len(fp32)} weights are still FP32: they take twice the memory and compute in FP32")
    return {
        "nodes": ", ".join(f"{count} {name}" for name, count in nodes.most_common() if NOTABLE.search(name)),
        "opset": next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        "findings": findings,
    }
