"""A model's ONNX file: its precision, and whether it can run on any texts with the data beside it."""

import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path

from bench.model_files import weight_files
from utils import UserError, first_line

PRECISIONS = {"FLOAT": "fp32", "FLOAT16": "fp16"}  # of most weights
INT8_NODES = re.compile("Integer|QLinear|Quantize|^QAttention$|^QGemm$")
OTHER_NODES = re.compile("NBits|Bnb4")  # products with weights of fewer bits


def load_graph(file: Path):
    """Load an ONNX file without the weights that are stored outside it."""
    import onnx

    return onnx.load(file, load_external_data=False)


def read_precision(folder: Path) -> str:
    """Return the precision of a model that is an ONNX file: fp32, fp16 or int8; empty for one with weights for torch.

    Raises UserError if the file can't run on any texts with the data in weight_files().
    """
    import onnx

    file, *data = weight_files(folder) or [folder]
    if file.suffix != ".onnx":
        return ""
    try:
        model = load_graph(file)
    except Exception as error:  # of protobuf
        raise UserError(f"{file} is damaged, or not an ONNX file: {first_line(error)}") from error
    sizes = Counter()
    for tensor in tensors(model):
        sizes[tensor.data_type] += prod(tensor.dims)
        for entry in tensor.external_data:
            if entry.key == "location" and file.parent / entry.value not in data:
                raise UserError(f"{file} needs data in {entry.value!r}, which is not {file.name}_data in its folder")
    for value in model.graph.input:
        if any(dimension.dim_value for dimension in value.type.tensor_type.shape.dim):
            raise UserError(f"{file} takes {value.name} of a fixed size only; export it with dynamic axes")
    nodes = {node.op_type for node in model.graph.node}
    if any(map(INT8_NODES.search, nodes)):
        return "int8"
    kind = onnx.TensorProto.DataType.Name(max(sizes, key=sizes.get, default=0))
    if kind not in PRECISIONS or any(map(OTHER_NODES.search, nodes)):
        raise UserError(f"{file} computes neither in FP32 nor in FP16 or INT8; most of its weights are {kind}")
    return PRECISIONS[kind]


def tensors(message) -> Iterator:
    """Yield all tensors in a protobuf message: weights and constants, also of subgraphs and functions."""
    if type(message).__name__ == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from tensors(part)
