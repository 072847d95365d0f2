"""The INT8 export: dynamic quantization that keeps the outlying channels of each activation in FP32."""

from collections import Counter
from pathlib import Path

import numpy as np

from bench.exporters.graph import INSIDE_BYTES, replace_nodes, select_inputs, session_with
from bench.machine import cpu_features
from bench.model.model import Model
from bench.tables.datasets import bundled_texts, evenly_spaced

N_OUTLIERS = 8  # channels: more change nothing on trained weights
N_TEXTS = 64  # to find them with: bundled ones, so always the same
DESCRIPTION = (
    "onnxruntime's dynamic quantization of {plain}: activations of the matrix products as they come, their "
    "{outliers} largest channels and the embeddings in FP32; weights per channel, of {bits} bits for CPUs {vnni} VNNI"
)


def caveat(manifest: dict) -> str:
    """Says what speaks against an INT8 export on this CPU; nothing if nothing does."""
    if manifest.get("bits") == 7 or "vnni" in cpu_features():
        return ""
    return "may be wrong here: its weights have 8 bits, whose sums saturate on a CPU without VNNI"


def quantize(model: Model, plain: Path, folder: Path, words: str) -> tuple[str, dict]:
    """Quantizes the plain export's products with constant weights: weights per output channel, activations dynamically.

    Embeddings, the products of two activations (the attention's) and outlying channels stay FP32. The weights have 8
    bits, or 7 on a CPU without VNNI, whose 16-bit sums of two products would saturate. Returns (how it was made, of a
    file that was made as `words` say; `bits`).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    bits = 8 if "vnni" in cpu_features() else 7
    onnx_model = onnx.load(plain)
    del onnx_model.graph.value_info[:]  # shapes that onnxruntime's quantization would not keep up to date
    constant = {weight.name for weight in onnx_model.graph.initializer}
    uses = Counter(name for node in onnx_model.graph.node for name in node.input)
    products = [
        node  # of a weight of its own: those that ALBERT's layers share can't be split for one of them
        for node in onnx_model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constant and uses[node.input[1]] == 1
    ]
    in_fp32 = split_outliers(onnx_model, products, find_outliers(model, plain, {node.input[0] for node in products}))
    onnx.save_model(onnx_model, plain, save_as_external_data=True, location=f"{plain.name}_split")
    quantize_dynamic(
        plain,
        folder / "model.onnx",
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=in_fp32,
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=bits == 7,
        use_external_data_format=plain.with_name(f"{plain.name}_split").stat().st_size >= INSIDE_BYTES,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    vnni = "with" if bits == 8 else "without"
    return DESCRIPTION.format(plain=words, outliers=N_OUTLIERS, bits=bits, vnni=vnni), {"bits": bits}


def find_outliers(model: Model, plain: Path, tensors: set[str]) -> dict[str, np.ndarray]:
    """Finds, for each tensor [texts, tokens, channels] of the plain export, the channels that are largest on texts."""
    session = session_with(plain, sorted(tensors))
    texts, names = bundled_texts("normal"), [node.name for node in session.get_inputs()]
    rows = model.tokenize(model.task.examples([texts[i] for i in evenly_spaced(len(texts), N_TEXTS)]))
    largest = dict.fromkeys(sorted(tensors), 0.0)
    for i, ids in enumerate(rows["input_ids"]):
        if not ids:
            continue
        one = model.pad({name: values[i : i + 1] for name, values in rows.items()})
        outputs = session.run(list(largest), select_inputs(names, one))
        for name, values in zip(largest, outputs, strict=True):
            largest[name] = np.maximum(largest[name], np.abs(values).reshape(-1, values.shape[-1]).max(axis=0))
    return {name: np.sort(np.argsort(-values)[:N_OUTLIERS]) for name, values in largest.items()}


def split_outliers(onnx_model, products: list, outliers: dict[str, np.ndarray]) -> list[str]:
    """Moves the outlying channels of each product into a small product of their own, and returns the small ones' names.

    x W = x[rest] W[rest] + x[outliers] W[outliers]. One scale serves a whole activation in INT8, so that a few large
    channels leave all others few steps (Dettmers et al., LLM.int8(), 2022).
    """
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in onnx_model.graph.initializer}
    add_constant = onnx_model.graph.initializer.append
    split, halves = {}, set()
    for node in products:
        x, w, output = node.input[0], node.input[1], node.output[0]
        weight = numpy_helper.to_array(weights[w])
        rest = np.ones(len(weight), np.float32)
        rest[outliers[x]] = 0
        before = []
        if x not in halves:
            halves.add(x)
            add_constant(numpy_helper.from_array(rest, f"{x}_mask"))
            add_constant(numpy_helper.from_array(outliers[x], f"{x}_channels"))
            before.append(helper.make_node("Mul", [x, f"{x}_mask"], [f"{x}_rest"]))
            before.append(helper.make_node("Gather", [x, f"{x}_channels"], [f"{x}_outliers"], axis=-1))
        small = f"{node.name}_outliers"
        add_constant(numpy_helper.from_array(weight[outliers[x]], f"{small}_weight"))
        weights[w].CopyFrom(numpy_helper.from_array(weight * rest[:, None], w))
        before.append(helper.make_node("MatMul", [f"{x}_outliers", f"{small}_weight"], [f"{small}_part"], small))
        node.input[0], node.output[0] = f"{x}_rest", f"{small}_rest"
        after = helper.make_node("Add", [f"{small}_rest", f"{small}_part"], [output], f"{small}_sum")
        split[node.name] = [*before, node, after]
    nodes = [new for node in onnx_model.graph.node for new in split.get(node.name, [node])]
    replace_nodes(onnx_model.graph, nodes)
    return [f"{node.name}_outliers" for node in products]
