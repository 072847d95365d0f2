"""Append to an encoder's graph what makes one vector of its tokens, in FP32 whatever the encoder's precision."""

from pathlib import Path

import numpy as np

from bench.exporters.backends import OPSET, export_program
from bench.model.model import Model
from bench.model.onnx_file import load_graph
from utils import UserError

PREFIX = "head_"  # of the appended names
TOKENS = "token_embeddings"


def append_head(model: Model, file: Path) -> None:
    """Append the modules after an encoder. The outputs are those of sentence-transformers' models in optimum.

    The encoder's own output stays, since optimum's model class reads it. Raises UserError for another opset.
    """
    import onnx

    encoder, network = load_graph(file), model.load_torch()
    if all(entry.version != OPSET for entry in encoder.opset_import if not entry.domain):
        raise UserError(f"the encoder's graph does not have opset {OPSET}, which the pooling needs")
    mask = (np.arange(8) < [[8], [5]]).astype(np.int64)
    inputs = {"tokens": np.ones((2, 8, network.config.hidden_size), np.float32), "attention_mask": mask}
    if "attention_mask" not in model.pad_values:
        del inputs["attention_mask"]
    head = export_program(network.head, lambda given: network.pool(**given), inputs, model.task.output).model_proto
    head = onnx.compose.add_prefix(head, PREFIX).graph
    graph, hidden, [vector] = encoder.graph, encoder.graph.output[0], head.output
    names = {f"{PREFIX}tokens": hidden.name, f"{PREFIX}attention_mask": "attention_mask"}
    names[vector.name] = vector.name = model.task.output
    for node in head.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    graph.node.extend([*head.node, onnx.helper.make_node("Identity", [hidden.name], [TOKENS])])
    graph.initializer.extend(head.initializer)
    tokens = onnx.ValueInfoProto(name=TOKENS, type=hidden.type)
    outputs = [tokens, vector, onnx.ValueInfoProto.FromString(hidden.SerializeToString())]
    del graph.output[:]
    graph.output.extend(outputs)
    onnx.save(encoder, file)
