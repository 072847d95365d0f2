"""The last layer of an ONNX graph for the first token alone, where the classifier's head reads no other.

The node that picks the first token is moved up, over all that treats each token alone: the last layer's feed-forward
part, its norms and the attention's own output. That leaves out three quarters of the last layer's products, and what is
left gives the same answers.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from bench.exporters.graph import replace_nodes, select_inputs, session_with

FIRST = "first_token"  # the constant [0]
ELEMENTWISE = {"Abs", "Add", "BiasGelu", "Cast", "Div", "Erf", "FastGelu", "Gelu", "Identity", "Max", "Min", "Mul"}
ELEMENTWISE |= {"Neg", "Pow", "QuickGelu", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh"}
# along the channels -> how many of their inputs are tokens
ALONG_CHANNELS = {"LayerNormalization": 1, "SimplifiedLayerNormalization": 1, "ReduceMean": 1, "Slice": 1, "Split": 1}
ALONG_CHANNELS |= {"SkipLayerNormalization": 2, "SkipSimplifiedLayerNormalization": 2}
INNER = 5, 10  # attributes that are graphs: AttributeProto.GRAPH and GRAPHS
CHANNELS = 2  # the last axis of tokens [texts, tokens, channels]
TOLERANCES = {False: 1e-4, True: 1e-2}  # of the largest logit, in FP32 and in FP16: a smaller product rounds otherwise


def first_token_only(file: Path, batch: dict[str, np.ndarray]) -> bool:
    """Has an ONNX file compute its last layer for the first token alone; says whether that could be done.

    It is done if the answers for a padded `batch`, int64 [texts, tokens] by name, stay the same. Raises what
    onnxruntime raises for a file that it can't run.
    """
    import onnx

    graph = (onnx_model := onnx.load(file, load_external_data=False)).graph
    constants, tokens = constants_of(graph), batch["input_ids"].shape[1]
    alone = nodes_for_first(graph, constants, set())
    if not alone:
        return False
    logits, arrays = run(file, batch, sorted({name for node in alone for name in tokens_of(node, constants)}))
    unfit = {name for name, array in arrays.items() if array.shape[1:-1] != (tokens,)}
    alone = nodes_for_first(graph, constants, unfit)
    if not alone:
        return False
    pick_above(graph, constants, alone)
    del graph.value_info[:]  # shapes that are no longer true
    half = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.initializer)
    rewritten = file.with_name("first_token.onnx")
    onnx.save(onnx_model, rewritten)
    try:
        off = np.abs(run(rewritten, batch, [])[0] - logits).max()
        if off <= TOLERANCES[half] * np.abs(logits).max():
            rewritten.replace(file)
            return True
    except Exception:  # onnxruntime's: the file stays as it was
        pass
    finally:
        rewritten.unlink(missing_ok=True)
    return False


def nodes_for_first(graph, constants: dict, unfit: set[str]) -> list:
    """Finds the nodes above the choice of the first token that treat each token alone, and serve nothing else.

    `unfit`: what has no token axis, though its place in the graph asks for one. Without a product there are none: the
    others cost next to nothing.
    """
    if any(attribute.type in INNER for node in graph.node for attribute in node.attribute):
        return []  # a graph in the graph may read whatever is outside
    readers, found = defaultdict(list), {}
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    kept = {value.name for value in graph.output}

    def serves_first(name: str) -> bool:
        return name not in kept and all(
            node.output[0] in found or picks_first(node, constants) or asks_for_channels(node, readers, constants)
            for node in readers[name]
        )

    for node in reversed(graph.node):
        names = tokens_of(node, constants)
        if names and not unfit & set(names) and all(map(serves_first, filter(None, node.output))):
            found[node.output[0]] = node
    return list(found.values()) if any(node.op_type == "MatMul" for node in found.values()) else []


def tokens_of(node, constants: dict) -> list[str]:
    """Returns a node's inputs that are [texts, tokens, channels], if it treats each token alone; else none."""
    if node.op_type == "MatMul":
        return [node.input[0]] if node.input[1] in constants else []
    if node.op_type in ELEMENTWISE:
        fixed = [constants[name].dims for name in node.input if name in constants]
        if any(len(shape) > 1 and shape[-2] > 1 for shape in fixed):
            return []  # a constant for each token
        return [name for name in node.input if name and name not in constants]
    if node.op_type not in ALONG_CHANNELS:
        return []
    is_along = axis_of(node, constants) in (-1, CHANNELS) and option(node, "keepdims", 1)
    return list(node.input[: ALONG_CHANNELS[node.op_type]]) if is_along else []


def option(node, name: str, default: int | None = None) -> int | None:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def axis_of(node, constants: dict) -> int | None:
    """Returns along which axis a node works; None if that is not known, or if there are several."""
    place = {"Slice": 3, "ReduceMean": 1}.get(node.op_type)  # of the axes among its inputs
    if place is None:
        return option(node, "axis", 0 if node.op_type in ("Gather", "Split") else -1)
    axes = [*node.input, *[""] * place][place]
    older = [attribute.ints for attribute in node.attribute if attribute.name == "axes" and len(attribute.ints) == 1]
    return older[0][0] if older else value_of(axes, constants)


def picks_first(node, constants: dict) -> bool:
    return node.op_type == "Gather" and axis_of(node, constants) == 1 and value_of(node.input[1], constants) == 0


def asks_for_channels(node, readers: dict, constants: dict) -> bool:
    """Says whether a node asks for the number of channels, which stays the same."""
    return (
        node.op_type == "Shape"
        and not node.attribute
        and all(
            reader.op_type == "Gather" and value_of(reader.input[1], constants) in (-1, CHANNELS)
            for reader in readers[node.output[0]]
        )
    )


def constants_of(graph) -> dict:
    """Returns a graph's weights and other constants, name -> TensorProto."""
    constants = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in constants:  # of weights that are alike
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def value_of(name: str, constants: dict) -> int | None:
    """Returns the one number of a constant; None where it is something else."""
    import onnx

    if name not in constants or np.prod(constants[name].dims) != 1:
        return None
    return onnx.numpy_helper.to_array(constants[name]).item()


def pick_above(graph, constants: dict, alone: list) -> None:
    """Gives nodes, of what comes from others, the first token alone."""
    import onnx

    inside = {name for node in alone for name in node.output}
    above = {name for node in alone for name in tokens_of(node, constants)} - inside
    for node in alone:
        own = above & set(tokens_of(node, constants))
        for i, name in enumerate(node.input):
            if name in own:
                node.input[i] = f"{name}_{FIRST}"
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for name in above & set(node.output):
            nodes.append(onnx.helper.make_node("Gather", [name, FIRST], [f"{name}_{FIRST}"], axis=1))
    replace_nodes(graph, nodes)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), FIRST))


def run(file: Path, batch: dict[str, np.ndarray], names: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns a file's logits for a batch, and what it computes under `names`."""
    session = session_with(file, names)
    wanted = [session.get_outputs()[0].name, *names]
    logits, *others = session.run(wanted, select_inputs([node.name for node in session.get_inputs()], batch))
    return logits, dict(zip(names, others, strict=True))
