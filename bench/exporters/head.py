"""Append to an encoder's graph what makes one vector of its tokens, in FP32 whatever the encoder's precision."""

import contextlib
import io
import warnings
from pathlib import Path

from bench.exporters.graph import load_graph
from bench.model.model import Model
from utils import UserError

# also optimum's name, by which sentence-transformers' ONNX backend finds the tokens
TOKENS, ENCODER_OUTPUT = "token_embeddings", "last_hidden_state"
PREFIX = "head_"


def append_head(model: Model, file: Path, opset: int) -> None:
    """Append the modules after the encoder. The outputs are `token_embeddings`, the task's output, and the encoder's.

    Raises UserError if the graph has another `opset`.
    """
    import onnx

    encoder, head = load_graph(file), export_head(model, opset)
    versions = {entry.domain: entry.version for entry in encoder.opset_import}
    if versions.get("", versions.get("ai.onnx")) != opset:
        raise UserError(f"the encoder's graph does not have opset {opset}, so the pooling can't be appended")
    graph, hidden = encoder.graph, encoder.graph.output[0]
    names = {f"{PREFIX}{name.name}": name.name for name in (*head.graph.input, *head.graph.output)}
    names[f"{PREFIX}{TOKENS}"] = hidden.name
    head = onnx.compose.add_prefix(head, PREFIX)
    for node in head.graph.node:
        for edges in (node.input, node.output):
            edges[:] = [names.get(name, name) for name in edges]
    tokens, vector = onnx.ValueInfoProto(), head.graph.output[0]
    tokens.CopyFrom(hidden)
    tokens.name, vector.name = TOKENS, model.task.output
    graph.node.extend(head.graph.node)
    graph.initializer.extend(head.graph.initializer)
    graph.node.append(onnx.helper.make_node("Identity", [hidden.name], [TOKENS]))
    del graph.output[:]
    graph.output.extend([tokens, vector, hidden])
    onnx.save(encoder, file)


def export_head(model: Model, opset: int):
    """Export the modules after the encoder with torch: an onnx.ModelProto."""
    import torch

    network = model.load_torch()
    size = network.config.hidden_size
    mask = torch.ones((2, 8), dtype=torch.int64)
    mask[1, 5:] = 0
    inputs = {TOKENS: torch.rand(2, 8, size), "attention_mask": mask}
    if "attention_mask" not in model.pad_values:
        del inputs["attention_mask"]

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network.head

        def forward(self, tokens, attention_mask=None):
            return network.pool(tokens, attention_mask)

    axes = {0: "texts", 1: "tokens"}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            Head().eval(),
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=[model.task.output],
            dynamic_shapes=tuple(axes for _ in inputs),
            opset_version=opset,
            verbose=False,
        )
    return program.model_proto
