"""Restrict the last layer of an ONNX graph to the first token, if the head reads no other.

The node that selects the first token moves up past all nodes that treat each token separately: the last layer's
feed-forward part, its norms and the output projection of its attention. That saves three quarters of the last layer's
products without changing the answers.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from bench.exporters.graph import load_with, replace_nodes
from bench.model.onnx_file import load_graph

FIRST = "first_token"  # name of the constant [0]
ELEMENTWISE = {"Abs", "Add", "BiasGelu", "Cast", "Div", "Erf", "FastGelu", "Gelu", "Identity", "Max", "Min", "Mul"}
ELEMENTWISE |= {"Neg", "Pow", "QuickGelu", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh"}
# types of nodes that work along the channels -> how many of their inputs are tensors of tokens
ALONG_CHANNELS = {"LayerNormalization": 1, "SimplifiedLayerNormalization": 1, "ReduceMean": 1, "Slice": 1, "Split": 1}
ALONG_CHANNELS |= {"SkipLayerNormalization": 2, "SkipSimplifiedLayerNormalization": 2}
SUBGRAPH_TYPES = (5, 10)  # AttributeProto.GRAPH and GRAPHS
CHANNELS = 2  # the last axis of [texts, tokens, channels]
FP32_TOLERANCE, FP16_TOLERANCE = 1e-4, 1e-2  # of the largest output: smaller products round differently


def first_token_only(file: Path, batch: dict[str, np.ndarray]) -> bool:
    """Rewrite an ONNX file to compute its last layer for the first token only. Return True if that was possible.

    The file stays the same if the answers for a padded `batch`, int64 [texts, tokens] by input name, would change.
    """
    import onnx

    onnx_model = load_graph(file)
    graph = onnx_model.graph
    constants = constants_of(graph)
    nodes = nodes_for_first(graph, constants, set())
    if not nodes:
        return False
    names = sorted({name for node in nodes for name in tokens_of(node, constants)})
    outputs, arrays = load_with(file, names)(batch)
    n_tokens = batch["input_ids"].shape[1]
    without_tokens = {name for name, array in arrays.items() if array.shape[1:-1] != (n_tokens,)}
    nodes = nodes_for_first(graph, constants, without_tokens)
    if not nodes:
        return False
    select_first(graph, constants, nodes)
    del graph.value_info[:]  # shapes that are no longer true
    is_half = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.initializer)
    tolerance = FP16_TOLERANCE if is_half else FP32_TOLERANCE
    rewritten = file.with_name("first_token.onnx")
    onnx.save(onnx_model, rewritten)
    try:
        deviation = np.abs(load_with(rewritten, [])(batch)[0] - outputs).max()
        if deviation <= tolerance * np.abs(outputs).max():
            rewritten.replace(file)
            return True
    except Exception:  # of onnxruntime: it can't run the rewritten file, so the original stays
        pass
    finally:
        rewritten.unlink(missing_ok=True)
    return False


def nodes_for_first(graph, constants: dict, without_tokens: set[str]) -> list:
    """Return the nodes before the selection of the first token that treat each token separately, and only feed it.

    `without_tokens`: tensors that turned out to have no token axis. Returns an empty list if none is a MatMul, since
    other nodes cost almost nothing.
    """
    if any(attribute.type in SUBGRAPH_TYPES for node in graph.node for attribute in node.attribute):
        return []  # a subgraph may read any tensor of the graph
    readers = defaultdict(list)
    first_token_nodes = {}
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in graph.output}

    def feeds_first(name: str) -> bool:
        return name not in outputs and all(
            node.output[0] in first_token_nodes
            or selects_first(node, constants)
            or reads_channels(node, readers, constants)
            for node in readers[name]
        )

    for node in reversed(graph.node):
        names = tokens_of(node, constants)
        if names and not without_tokens & set(names) and all(map(feeds_first, filter(None, node.output))):
            first_token_nodes[node.output[0]] = node
    nodes = list(first_token_nodes.values())
    return nodes if any(node.op_type == "MatMul" for node in nodes) else []


def tokens_of(node, constants: dict) -> list[str]:
    """Return a node's inputs [texts, tokens, channels] if it treats each token separately, otherwise none."""
    if node.op_type == "MatMul":
        return [node.input[0]] if node.input[1] in constants else []
    if node.op_type in ELEMENTWISE:
        shapes = [constants[name].dims for name in node.input if name in constants]
        if any(len(shape) > 1 and shape[-2] > 1 for shape in shapes):
            return []  # a constant with a value per token
        return [name for name in node.input if name and name not in constants]
    if node.op_type in ALONG_CHANNELS and axis_of(node, constants) in (-1, CHANNELS) and option(node, "keepdims", 1):
        return list(node.input[: ALONG_CHANNELS[node.op_type]])
    return []


def option(node, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def axis_of(node, constants: dict) -> int | None:
    """Return the axis that a node works along; None if it is unknown, or if there are several."""
    index = {"Slice": 3, "ReduceMean": 1}.get(node.op_type)  # of the axes among its inputs
    if index is None:
        return option(node, "axis", 0 if node.op_type in ("Gather", "Split") else -1)
    for attribute in node.attribute:
        if attribute.name == "axes" and len(attribute.ints) == 1:  # as in older opsets
            return attribute.ints[0]
    return value_of(node.input[index], constants) if index < len(node.input) else None


def selects_first(node, constants: dict) -> bool:
    return node.op_type == "Gather" and axis_of(node, constants) == 1 and value_of(node.input[1], constants) == 0


def reads_channels(node, readers: dict, constants: dict) -> bool:
    """True if a node reads the number of channels, which stays the same."""
    if node.op_type != "Shape" or node.attribute:
        return False
    return all(
        reader.op_type == "Gather" and value_of(reader.input[1], constants) in (-1, CHANNELS)
        for reader in readers[node.output[0]]
    )


def constants_of(graph) -> dict:
    """Return a graph's weights and other constants, name -> TensorProto."""
    constants = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in constants:  # shared weights
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def value_of(name: str, constants: dict) -> int | None:
    """Return the value of a constant with one element, otherwise None."""
    import onnx

    if name not in constants or np.prod(constants[name].dims) != 1:
        return None
    return onnx.numpy_helper.to_array(constants[name]).item()


def select_first(graph, constants: dict, nodes: list) -> None:
    """Give `nodes` only the first token of each tensor of tokens that they read from other nodes."""
    import onnx

    computed = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in tokens_of(node, constants)} - computed
    for node in nodes:
        tokens = read.intersection(tokens_of(node, constants))
        for i, name in enumerate(node.input):
            if name in tokens:
                node.input[i] = f"{name}_{FIRST}"
    all_nodes = []
    for node in graph.node:
        all_nodes.append(node)
        for name in read.intersection(node.output):
            all_nodes.append(onnx.helper.make_node("Gather", [name, FIRST], [f"{name}_{FIRST}"], axis=1))
    replace_nodes(graph, all_nodes)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), FIRST))
