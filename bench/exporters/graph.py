"""An ONNX file: where its weights are kept, what it asks for, and what its graph looks like."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from bench.machine import cpu_cores
from utils import UserError

INSIDE_BYTES = 2**31 - 2**24  # protobuf's limit of 2 GiB for a file, less room for the graph
# of a fused graph: kinds of node, how many of them for each layer, and what it means if there are fewer
FUSIONS = (
    (
        ("Attention", "MultiHeadAttention"),
        1,
        "the rest is separate products and a softmax, slower and with more memory",
    ),
    (("SkipLayerNormalization",), 2, "the rest is separate additions and normalizations, slower"),
    (("FastGelu", "Gelu", "BiasGelu"), 1, "the rest is computed in single steps, slower"),
)
TELLING = re.compile("MatMul|Gemm|Attention|Norm|Gelu|Quant")  # kinds of node that say how a graph computes


def store_weights(file: Path) -> None:
    """Keeps weights inside model.onnx, or moves 2 GB and more to model.onnx_data, the name that every loader looks for.

    onnxruntime's optimizer writes model.onnx.data, which optimum's Hub loader does not download; a mere rename would
    leave the old name inside the model.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    model = onnx.load(file, load_external_data=False)
    outside = {
        entry.value for weight in model.graph.initializer for entry in weight.external_data if entry.key == "location"
    }
    if not outside and file.stat().st_size < INSIDE_BYTES:
        return
    load_external_data_for_model(model, str(file.parent))
    for name in outside:
        (file.parent / name).unlink()
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) >= INSIDE_BYTES
    location = f"{file.name}_data" if large else None
    onnx.save_model(model, file, save_as_external_data=large, location=location, size_threshold=1024)


def count_attention(file: Path) -> int:
    """Counts the nodes that are a whole attention."""
    import onnx

    return sum(node.op_type in FUSIONS[0][0] for node in onnx.load(file, load_external_data=False).graph.node)


def cpu_session(graph: str | bytes):
    """Starts a session on a file or on what is in one, with as many threads as this process has cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_cores()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def session_with(file: Path, names: list[str]):
    """Starts a session on a file that also gives what the file computes under `names`."""
    import onnx

    onnx_model = onnx.load(file, load_external_data=False)
    onnx_model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    probe = file.with_name("probe.onnx")  # beside it, where weights outside are found
    onnx.save(onnx_model, probe)
    session = cpu_session(str(probe))
    probe.unlink()
    return session


def replace_nodes(graph, nodes: list) -> None:
    """Gives a graph these nodes, some of which it may have already."""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def select_inputs(names: list[str], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Picks a graph's inputs; token types that the model did not ask for are zeros. Raises UserError for others."""
    if unknown := set(names) - {*inputs, "token_type_ids"}:
        raise UserError(f"the graph asks for {', '.join(sorted(unknown))}, which no tokenizer gives")
    return {name: inputs[name] if name in inputs else np.zeros_like(inputs["input_ids"]) for name in names}


def describe_graph(file: Path, fused_layers: int | None) -> dict:
    """Says what is in a graph.

    `nodes`: how often the telling kinds occur; `opset`; `findings`: what is not as it should be, with its consequence,
    in plain lines. `fused_layers`: how many layers should be fused, and in FP16; None for a plain graph.
    """
    import onnx
    from onnx import TensorProto

    model = onnx.load(file, load_external_data=False)
    nodes, findings = Counter(node.op_type for node in model.graph.node), []
    if fused_layers is not None:
        for kind, for_each, consequence in FUSIONS:
            found, expected = sum(nodes[name] for name in kind), for_each * fused_layers
            if found < expected:
                findings.append(f"{found} of {expected} {'/'.join(kind)} nodes: {consequence}")
        fp32 = [w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and np.prod(w.dims) > 1]
        if fp32:
            findings.append(f"{len(fp32)} weights are still FP32: they take twice the memory and compute in FP32")
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return {
        "nodes": ", ".join(f"{count} {kind}" for kind, count in nodes.most_common() if TELLING.search(kind)),
        "opset": opset,
        "findings": findings,
    }
