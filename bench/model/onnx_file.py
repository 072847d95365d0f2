"""A model's ONNX file: its precision, and whether it can run on any texts with the data beside it."""

import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path

from bench.model_files import file_names, graph_names
from utils import UserError, first_line

PRECISIONS = {"FLOAT": "fp32", "FLOAT16": "fp16"}  # of most weights
INT8_NODES = re.compile("Integer|QLinear|Quantize|^QAttention$|^QGemm$")
OTHER_NODES = re.compile("NBits|Bnb4")  # products with weights of fewer bits


def load_graph(file: Path):
    """Load an ONNX file without the weights that are stored outside it."""
    import onnx

    return onnx.load(file, load_external_data=False)


def read_precision(folder: Path) -> str:
    """Return the precision in which the ONNX file of a model's folder computes: fp32, fp16 or int8.

    Raises UserError if it is another one, if the file is damaged or has inputs of a fixed size, or if it has data in
    other files than graph_names() returns.
    """
    import onnx

    names = graph_names(folder, file_names(folder))
    file = folder / names[0]
    try:
        model = load_graph(file)
    except Exception as error:  # of protobuf
        raise UserError(f"{file} is damaged, or not an ONNX file: {first_line(error)}") from error
    sizes = Counter()
    for tensor in tensors(model):
        sizes[tensor.data_type] += prod(tensor.dims)
        for entry in tensor.external_data:
            if entry.key == "location" and str(Path(names[0]).parent / entry.value) not in names[1:]:
                raise UserError(f"{file} needs data in {entry.value!r}, which is not {file.name}_data in its folder")
    if fixed := [value.name for value in model.graph.input if any(map(dim_value, value.type.tensor_type.shape.dim))]:
        raise UserError(f"{file} takes {fixed[0]} of a fixed size only; export it with dynamic axes")
    nodes = {node.op_type for node in model.graph.node}
    if any(map(INT8_NODES.search, nodes)):
        return "int8"
    kind = onnx.TensorProto.DataType.Name(max(sizes, key=sizes.get, default=0))
    if kind not in PRECISIONS or any(map(OTHER_NODES.search, nodes)):
        raise UserError(f"{file} computes neither in FP32 nor in FP16 or INT8; most of its weights are {kind}")
    return PRECISIONS[kind]


def dim_value(dimension) -> int:
    return dimension.dim_value  # 0 if it may vary


def tensors(message) -> Iterator:
    """Yield all tensors in a protobuf message: weights and constants, also of subgraphs and functions."""
    if type(message).__name__ == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from tensors(part)
