"""Exporters, model -> model.onnx: optimum's, or torch's with onnxscript's fusions."""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.exporters.graph import start_session
from bench.model.model import Model
from bench.model.reference import N_PADDED_TEXTS
from bench.tables.datasets import bundled_texts, evenly_spaced
from bench.tables.items import Item
from utils import UserError

OPSET = 18  # from 23 on, torch writes the standard Attention operator, for which CUDA has no fused kernel
SHORT, LONG = 128, 1024  # tokens of an example, at most
MASKED = -1e4  # and below: biases of scores that a softmax ignores
BIAS = 5  # index of the bias among the inputs of fused attention
LENGTHS = {"Attention": 3, "MultiHeadAttention": 4}  # index of the lengths of the texts
O4_DESCRIPTION = (
    "optimum's AutoOptimizationConfig.O4: fusion of attention, layer norm, GELU (tanh approximation) and bias nodes, "
    "then FP16 with FP32 inputs and outputs"
)
FIRST_TOKEN = " (the last layer for the first token only)"


def example_items(model: Model, count: int = N_PADDED_TEXTS) -> list[Item]:
    """Return items made of bundled texts of different lengths."""
    texts = bundled_texts("normal")
    return model.task.examples([texts[i] for i in evenly_spaced(len(texts), count)])


def example_batches(model: Model) -> list[dict[str, np.ndarray]]:
    """Return a padded batch of short texts, and one long text: int64 [texts, tokens] by input name.

    Windowed attention, such as ModernBERT's, only makes a difference in long texts.
    """
    long = model.task.examples([" ".join(bundled_texts("normal")[: LONG // 10])])
    return [model.pad(model.first_rows(items, n)) for items, n in ((example_items(model), SHORT), (long, LONG))]


def load_network(model: Model, trimmed: bool) -> tuple:
    """Load the network to export: an encoder without the modules that append_head() adds, or one with its head.

    If it is `trimmed` and its head reads only the first token, the rest of the last layer is computed for that token
    only. Returns the network, and FIRST_TOKEN or an empty string.
    """
    from bench.model.first_token import first_token_only

    network = model.load_torch()
    if model.task.encoder_output:
        return network.base_model, ""
    if trimmed and model.padding_side == "right" and first_token_only(network):
        return network, FIRST_TOKEN
    return network, ""


def with_optimum(model: Model, target: Path, optimized: bool = False, trimmed: bool = True) -> str:
    """Export to `target`/model.onnx with optimum, plain or with its O4 optimization. Return how it was made."""
    try:
        import optimum.exporters.onnx.model_configs  # noqa: F401  registers the model types
        from optimum.exporters.onnx import onnx_export_from_model
        from optimum.exporters.tasks import TasksManager
        from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer
        from optimum.onnxruntime.utils import ORTConfigManager
    except ImportError as error:
        raise UserError("optimum-onnx is not installed") from error
    kind = model.model_type
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers")
        if optimized:
            ORTConfigManager.get_model_ort_type(kind)
    except KeyError:
        tasks = ()
    if TasksManager.map_from_synonym(model.task.name) not in tasks:
        raise UserError(f"{kind} models for {model.task.name} are not supported")
    network, remark = load_network(model, trimmed)
    network.config._name_or_path = str(target)  # without a tokenizer, whose templates would be written anywhere
    onnx_export_from_model(network, target, task=model.task.name, do_validation=False, no_post_process=True)
    if not optimized:
        return f"optimum's plain export{remark}"
    config = AutoOptimizationConfig.O4(disable_shape_inference=True)  # as optimum's own command line does
    config.optimize_for_gpu = False  # True requires CUDA and gives the same file
    tempfile.tempdir = str(target)  # for onnxruntime's optimizer; an interrupted export leaves nothing elsewhere
    try:
        optimizer = ORTOptimizer([target / "model.onnx"], network.config)
        optimizer.optimize(save_dir=target, optimization_config=config, file_suffix="")
    finally:
        tempfile.tempdir = None
    return O4_DESCRIPTION + remark


def with_torch(model: Model, target: Path, fused: bool = False, half: bool = False, trimmed: bool = True) -> str:
    """Export to `target`/model.onnx with torch, optionally `fused` by onnxscript or in FP16. Return how it was made."""
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    file, output = target / "model.onnx", model.task.encoder_output or model.task.output
    network, remark = load_network(model, trimmed)
    inputs = {name: array[1:, :16].copy() for name, array in example_batches(model)[0].items()}
    if network.config.eos_token_id is not None and network.config.is_encoder_decoder:
        inputs["input_ids"][:, -1] = network.config.eos_token_id  # BART's head reads the last of these tokens
    if "attention_mask" in inputs:
        inputs["attention_mask"][1:, -3:] = 0  # the example must contain padding
    program = export_program(network, lambda given: getattr(network(**given, return_dict=True), output), inputs, output)
    onnx_model, made = program.model, f"torch's ONNX exporter{remark}"
    if fused:
        onnx_model, _ = optimize_for_ort(onnx_model)
        made += ", fused by onnxscript for onnxruntime"
        expand_positions(onnx_model)
        if model.padding_side == "right":
            replace_mask_bias_by_lengths(onnx_model, model.max_length)
    onnx_ir.save(onnx_model, file, external_data=f"{file.name}.data")
    if half:
        convert_to_fp16(file)
        made += "; then FP16 by onnxruntime, with FP32 outputs"
    return made


def export_program(network, run: Callable, inputs: dict[str, np.ndarray], output: str):
    """Export run(inputs), which calls the network on tensors [texts, tokens, ...], with torch's exporter."""
    import torch

    class Wrapper(torch.nn.Module):
        def forward(self, *arrays):
            return run(dict(zip(inputs, arrays, strict=True)))

    wrapper = Wrapper()
    wrapper.network = network  # so that its weights are exported
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        return torch.onnx.export(
            wrapper.eval(),
            tuple(map(torch.from_numpy, inputs.values())),
            dynamo=True,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes={"arrays": tuple({0: "texts", 1: "tokens"} for _ in inputs)},
            opset_version=OPSET,
            verbose=False,
        )


def convert_to_fp16(file: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx_model = onnx.load(file)
    if all(entry.domain != "com.microsoft" for entry in onnx_model.opset_import):
        onnx_model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    half = convert_float_to_float16(onnx_model, keep_io_types=True, disable_shape_infer=True)
    file.with_name(f"{file.name}.data").unlink(missing_ok=True)
    onnx.save_model(half, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=1024)


def expand_positions(onnx_model) -> None:
    """Repeat shared position ids for each text, as onnxruntime's RotaryEmbedding requires."""
    import onnx_ir as ir

    texts = next(value for value in onnx_model.graph.inputs if value.name == "input_ids")
    for node in [node for node in onnx_model.graph if node.op_type == "RotaryEmbedding"]:
        shape = ir.node("Shape", [texts])
        expanded = ir.node("Expand", [node.inputs[1], shape.outputs[0]])
        onnx_model.graph.insert_before(node, [shape, expanded])
        node.replace_input_with(1, expanded.outputs[0])


def replace_mask_bias_by_lengths(onnx_model, max_length: int) -> None:
    """Pass the lengths of the texts to fused attention instead of a bias that masks the padding on the right.

    CUDA's fused kernels take lengths only. A bias that encodes more (causality, a window, relative positions) stays.
    """
    import onnx_ir as ir

    readers = {}
    for node in onnx_model.graph:
        if node.op_type in LENGTHS and len(node.inputs) > BIAS and node.inputs[BIAS] is not None:
            readers.setdefault(node.inputs[BIAS], []).append(node)
    masks = [bias for bias in readers if is_pure_padding_mask(onnx_model, bias, max_length)]
    if not masks:
        return
    attention_mask = next(value for value in onnx_model.graph.inputs if value.name == "attention_mask")
    axis = ir.Value(name="tokens_axis", const_value=ir.tensor(np.array([1]), name="tokens_axis"))
    onnx_model.graph.register_initializer(axis)
    total = ir.node("ReduceSum", [attention_mask, axis], {"keepdims": 0})
    lengths = ir.node("Cast", [total.outputs[0]], {"to": ir.DataType.INT32.value})
    onnx_model.graph.insert_before(onnx_model.graph[0], [total, lengths])
    for bias in masks:
        for node in readers[bias]:
            node.replace_input_with(BIAS, None)
            node.replace_input_with(LENGTHS[node.op_type], lengths.outputs[0])
    ir.passes.common.RemoveUnusedNodesPass()(onnx_model)


def is_pure_padding_mask(onnx_model, bias, max_length: int) -> bool:
    """True if `bias` [texts, heads, queries, keys] masks padding and nothing else.

    It is computed for texts of up to `max_length` tokens, and at most LONG.
    """
    import onnx_ir as ir

    inputs = [value.name for value in onnx_model.graph.inputs]
    graph = ir.convenience.extract(onnx_model.graph, inputs, [bias.name])
    bias_model = ir.Model(graph, ir_version=onnx_model.ir_version)
    bias_model.opset_imports.update(onnx_model.opset_imports)
    tokens = min(max_length, LONG)
    lengths = [tokens, tokens // 2, 1]
    attention_mask = (np.arange(tokens) < np.array(lengths)[:, None]).astype(np.int64)
    session = start_session(ir.to_proto(bias_model).SerializeToString())
    [values] = session.run(None, {value.name: attention_mask for value in session.get_inputs()})
    values = np.broadcast_to(values, (len(lengths), *values.shape[1:]))
    return all(
        not text[..., :length].any() and (text[..., length:] <= MASKED).all()
        for length, text in zip(lengths, values, strict=True)
    )
