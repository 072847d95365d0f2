"""Exporters, model -> model.onnx: optimum's, or torch's own with onnxscript's fusions."""

import contextlib
import io
import tempfile
import warnings
from pathlib import Path

import numpy as np

from bench.exporters.graph import cpu_session
from bench.model.model import Model
from bench.model.reference import N_PADDED_TEXTS
from bench.tables.datasets import bundled_texts, evenly_spaced
from bench.tables.items import Item
from utils import UserError

OPSET = 18  # torch's exporter writes the standard Attention operator from 23 on, which CUDA has no fused kernel for
SHORT, LONG = 128, 1024  # tokens of an example, at most
MASKED = -1e4  # and below: what a bias adds to a score that a softmax is to ignore
# where the fused nodes have their bias, and the lengths of the texts
BIAS, LENGTHS = 5, {"Attention": 3, "MultiHeadAttention": 4}


def example_items(model: Model) -> list[Item]:
    """Return items made of a few bundled texts of different lengths."""
    texts = bundled_texts("normal")
    return model.task.examples([texts[i] for i in evenly_spaced(len(texts), N_PADDED_TEXTS)])


def example_batches(model: Model) -> list[dict[str, np.ndarray]]:
    """Returns the example texts as a padded batch, and a long text alone: int64 [texts, tokens] by name.

    A window of attention, such as ModernBERT's, shows in long texts only.
    """
    long = " ".join(bundled_texts("normal")[: LONG // 10])
    batches = (example_items(model), SHORT), (model.task.examples([long]), LONG)
    return [model.pad(model.tokenize(items, tokens)) for items, tokens in batches]


# ------------------------------------------------------------------------------------------------------------ optimum


def with_optimum(model: Model, target: Path, shape_inference: bool, optimized: bool = False) -> str:
    """Exports by optimum as `target`/model.onnx, plain or with its O4 optimization. Returns how it was made.

    Raises UserError where optimum-onnx is not installed, or doesn't know the type.
    """
    try:
        import optimum.exporters.onnx.model_configs  # noqa: F401  registers the model types
        from optimum.exporters.tasks import TasksManager
        from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer
        from optimum.onnxruntime.utils import ORTConfigManager

        optimum_class = model.task.optimum_class()
    except ImportError as error:
        raise UserError("optimum-onnx is not installed") from error
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(model.model_type, "onnx", library_name="transformers")
        if model.task.name not in tasks:
            raise KeyError(model.model_type)
        if optimized:
            ORTConfigManager.get_model_ort_type(model.model_type)
    except KeyError as error:
        done = "optimized" if optimized else "exported"
        raise UserError(f"a {model.model_type} model for {model.task.name} can't be {done} by it") from error
    with tempfile.TemporaryDirectory(dir=target) as plain:
        tempfile.tempdir = plain  # where optimum exports to: nothing is left elsewhere by an interruption
        try:
            exported = optimum_class.from_pretrained(
                model.folder, export=True, trust_remote_code=False, local_files_only=True
            )
            if not optimized:
                exported.save_pretrained(target)
                return "optimum's plain export"
            optimization = AutoOptimizationConfig.O4(disable_shape_inference=not shape_inference)
            optimization.optimize_for_gpu = False  # else it asks for CUDA, for the same file
            ORTOptimizer.from_pretrained(exported).optimize(
                save_dir=target, optimization_config=optimization, file_suffix=""
            )
        finally:
            tempfile.tempdir = None
    return (
        "optimum's AutoOptimizationConfig.O4: fusion of attention, layer norm, GELU (tanh approximation) and bias "
        "nodes, then FP16 with FP32 inputs and outputs"
    )


# -------------------------------------------------------------------------------------------------------------- torch


def with_torch(model: Model, target: Path, _: bool, fused: bool = False, half: bool = False) -> str:
    """Exports by torch as `target`/model.onnx, perhaps fused by onnxscript, perhaps in FP16. Returns how it was made.

    Raises whatever torch, onnxscript and onnxruntime raise for a model that they can't export.
    """
    import onnx_ir
    import torch
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    network, file = model.load_torch(), target / "model.onnx"
    config, example = network.config, model.pad(model.tokenize(example_items(model), SHORT))
    inputs = {name: array[1:, :16].copy() for name, array in example.items()}
    if config.eos_token_id is not None and config.is_encoder_decoder:
        inputs["input_ids"][:, -1] = config.eos_token_id  # BART's head is at the last of these
    if "attention_mask" in inputs:
        inputs["attention_mask"][1:, -3:] = 0  # an example must have padding in it
    names = list(inputs)

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, *arrays):
            outputs = self.network(**dict(zip(names, arrays, strict=True)), return_dict=True)
            return getattr(outputs, model.task.output)

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            Wrapper().eval(),
            tuple(torch.from_numpy(array) for array in inputs.values()),
            dynamo=True,
            input_names=names,
            output_names=[model.task.output],
            dynamic_shapes={"arrays": tuple({0: "texts", 1: "tokens"} for _ in names)},
            opset_version=OPSET,
            verbose=False,
        )
    made = program.model
    if fused:
        made, _ = optimize_for_ort(made)
        expand_positions(made)
        if model.padding_side == "right":
            replace_mask_bias_by_lengths(made, model.max_length)
    onnx_ir.save(made, file, external_data=f"{file.name}.data")
    words = "torch's ONNX exporter" + (", fused by onnxscript for onnxruntime" if fused else "")
    if half:
        convert_to_fp16(file)
        words += "; then FP16 by onnxruntime, with FP32 logits"
    return words


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
    """Gives every text its positions, where one line of them serves all: onnxruntime's RotaryEmbedding wants so."""
    import onnx_ir as ir

    texts = next(value for value in onnx_model.graph.inputs if value.name == "input_ids")
    for node in [node for node in onnx_model.graph if node.op_type == "RotaryEmbedding"]:
        shape = ir.node("Shape", [texts])
        expanded = ir.node("Expand", [node.inputs[1], shape.outputs[0]])
        onnx_model.graph.insert_before(node, [shape, expanded])
        node.replace_input_with(1, expanded.outputs[0])


def replace_mask_bias_by_lengths(onnx_model, max_length: int) -> None:
    """Gives fused attention the lengths of the texts instead of a bias that hides the padding, which is on the right.

    CUDA's fused kernels want lengths. A bias that says more than that (a causal one, a window, relative positions)
    stays: each is computed for padded texts of up to `max_length` tokens (at most 1,024) and compared.
    """
    import onnx_ir as ir

    users = {}
    for node in onnx_model.graph:
        if node.op_type in LENGTHS and len(node.inputs) > BIAS and node.inputs[BIAS] is not None:
            users.setdefault(node.inputs[BIAS], []).append(node)
    hiding = [bias for bias in users if is_pure_padding_mask(onnx_model, bias, max_length)]
    if not hiding:
        return
    mask = next(value for value in onnx_model.graph.inputs if value.name == "attention_mask")
    one = ir.Value(name="tokens_axis", const_value=ir.tensor(np.array([1]), name="tokens_axis"))
    onnx_model.graph.register_initializer(one)
    total = ir.node("ReduceSum", [mask, one], {"keepdims": 0})
    lengths = ir.node("Cast", [total.outputs[0]], {"to": ir.DataType.INT32.value})
    onnx_model.graph.insert_before(onnx_model.graph[0], [total, lengths])
    for bias in hiding:
        for node in users[bias]:
            node.replace_input_with(BIAS, None)
            node.replace_input_with(LENGTHS[node.op_type], lengths.outputs[0])
    ir.passes.common.RemoveUnusedNodesPass()(onnx_model)


def is_pure_padding_mask(onnx_model, bias, max_length: int) -> bool:
    """Says whether a bias [texts, heads, queries, keys] is 0 for every token of a text, and hides all behind it."""
    import onnx_ir as ir

    inputs = [value.name for value in onnx_model.graph.inputs]
    graph = ir.convenience.extract(onnx_model.graph, inputs, [bias.name])
    only = ir.Model(graph, ir_version=onnx_model.ir_version)
    only.opset_imports.update(onnx_model.opset_imports)
    tokens = min(max_length, LONG)
    lengths = [tokens, tokens // 2, 1]
    mask = (np.arange(tokens) < np.array(lengths)[:, None]).astype(np.int64)
    session = cpu_session(ir.to_proto(only).SerializeToString())
    [values] = session.run(None, {value.name: mask for value in session.get_inputs()})
    for length, of_text in zip(lengths, np.broadcast_to(values, (len(lengths), *values.shape[1:])), strict=True):
        if of_text[..., :length].any() or (of_text[..., length:] > MASKED).any():
            return False
    return True
