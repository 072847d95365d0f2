"""The INT8 export: dynamic quantization that keeps the outlier channels of each activation in FP32."""

from collections import Counter
from pathlib import Path

import numpy as np

from bench.exporters.backends import example_items
from bench.exporters.graph import INSIDE_BYTES, load_with
from bench.machine import cpu_features
from bench.model.model import Model

N_OUTLIERS = 8  # channels; more made no difference for trained weights
N_TEXTS = 64  # to find the outliers with: bundled ones, so always the same
DESCRIPTION = (
    "onnxruntime's dynamic quantization of {plain}: INT8 activations of the matrix products, except for their "
    "{outliers} outlier channels; embeddings in FP32; {bits}-bit weights per channel, for CPUs {vnni} VNNI"
)


def caveat(manifest: dict) -> str:
    """Return why an INT8 export may be wrong on this CPU, otherwise an empty string."""
    if manifest.get("bits") == 7 or "vnni" in cpu_features():
        return ""
    return "may be wrong on this CPU: it has no VNNI, so sums with 8-bit weights saturate"


def quantize(model: Model, plain: Path, folder: Path, made: str) -> tuple[str, dict]:
    """Quantize the products with constant weights of a plain export into `folder`. `made`: how that export was made.

    Weights are quantized per output channel, activations dynamically. Embeddings, products of two activations (in the
    attention), products with shared weights (ALBERT's) and outlier channels stay in FP32. Weights have 8 bits, or 7 on
    a CPU without VNNI, where 16-bit sums of two products would saturate. Returns how the file was made, and the `bits`.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    bits = 8 if "vnni" in cpu_features() else 7
    onnx_model = onnx.load(plain)
    del onnx_model.graph.value_info[:]  # shapes that onnxruntime's quantization does not keep up to date
    uses = Counter(name for node in onnx_model.graph.node for name in node.input)
    weights = {weight.name for weight in onnx_model.graph.initializer if uses[weight.name] == 1}
    products = [node for node in onnx_model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    outliers = find_outliers(model, plain, {node.input[0] for node in products})
    fp32_nodes = split_outliers(onnx_model, products, outliers)
    data = plain.with_name(f"{plain.name}_split")
    onnx.save_model(onnx_model, plain, save_as_external_data=True, location=data.name)
    quantize_dynamic(
        plain,
        folder / "model.onnx",
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=fp32_nodes,
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=bits == 7,
        use_external_data_format=data.stat().st_size >= INSIDE_BYTES,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    vnni = "with" if bits == 8 else "without"
    return DESCRIPTION.format(plain=made, outliers=N_OUTLIERS, bits=bits, vnni=vnni), {"bits": bits}


def find_outliers(model: Model, plain: Path, tensors: set[str]) -> dict[str, np.ndarray]:
    """Return the channels with the largest values on texts, for each tensor [texts, tokens, channels] of a file."""
    names = sorted(tensors)
    run = load_with(plain, names)
    rows = model.first_rows(example_items(model, N_TEXTS))
    largest = dict.fromkeys(names, 0.0)
    for i in [i for i, ids in enumerate(rows["input_ids"]) if ids]:
        batch = model.pad({name: values[i : i + 1] for name, values in rows.items()})
        for name, values in run(batch).items():
            largest[name] = np.maximum(largest[name], np.abs(values).reshape(-1, values.shape[-1]).max(axis=0))
    return {name: np.sort(np.argsort(-values)[:N_OUTLIERS]) for name, values in largest.items()}


def split_outliers(onnx_model, products: list, outliers: dict[str, np.ndarray]) -> list[str]:
    """Move the outlier channels of each product into a small product; return the names of the small products.

    x W = x[rest] W[rest] + x[outliers] W[outliers]. INT8 has one scale per activation, so a few large channels leave
    few steps for all others (Dettmers et al., LLM.int8(), 2022).
    """
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in onnx_model.graph.initializer}

    def add_constant(name: str, values: np.ndarray) -> str:
        onnx_model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    replaced, split_inputs = {}, set()
    for node in products:
        x, w, output = node.input[0], node.input[1], node.output[0]
        weight = numpy_helper.to_array(weights[w])
        rest = np.ones(len(weight), np.float32)
        rest[outliers[x]] = 0
        nodes = []
        if x not in split_inputs:
            split_inputs.add(x)
            mask, channels = add_constant(f"{x}_mask", rest), add_constant(f"{x}_channels", outliers[x])
            nodes.append(helper.make_node("Mul", [x, mask], [f"{x}_rest"]))
            nodes.append(helper.make_node("Gather", [x, channels], [f"{x}_outliers"], axis=-1))
        small = f"{node.name}_outliers"
        small_weight = add_constant(f"{small}_weight", weight[outliers[x]])
        weights[w].CopyFrom(numpy_helper.from_array(weight * rest[:, None], w))
        node.input[0], node.output[0] = f"{x}_rest", f"{small}_rest"
        nodes.append(helper.make_node("MatMul", [f"{x}_outliers", small_weight], [f"{small}_part"], small))
        nodes.append(node)
        nodes.append(helper.make_node("Add", [f"{small}_rest", f"{small}_part"], [output], f"{small}_sum"))
        replaced[node.name] = nodes
    nodes = [new for node in onnx_model.graph.node for new in replaced.get(node.name, [node])]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]  # the graph owns some of them
    del onnx_model.graph.node[:]
    onnx_model.graph.node.extend(copies)
    return [f"{node.name}_outliers" for node in products]
