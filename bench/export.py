"""Model folder -> ONNX: plain, O4 FP16, INT8; what the graph looks like; and which file a variant loads."""

import json
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import int8
from bench.files import check_writable, make_once
from bench.hub import download
from bench.machine import cpu_capabilities
from bench.models import DEFAULT_MODEL, load_config, read_json
from bench.texts import load_tokenizer
from bench.workers import in_fresh_process
from runtimes.pytorch import load_model
from utils import UserError, first_line, say, step

ABOUT = "export.json"  # beside model.onnx: what made it, and its files
INSIDE_BYTES = 2**31 - 2**24  # protobuf's limit of 2 GiB for a file, less room for the graph
# of a fused graph: kinds of node, how many of them for each layer, and what it means if there are fewer
FUSIONS = (
    (
        ("Attention", "MultiHeadAttention"),
        1,
        "the rest is separate products and a softmax, slower and with more memory",
    ),
    (("SkipLayerNormalization",), 2, "the rest is separate additions and normalizations, slower"),
    (("FastGelu", "Gelu", "BiasGelu"), 1, "the rest is computed in single steps, slower"),
)
TELLING = re.compile("MatMul|Gemm|Attention|Norm|Gelu|Quant")  # kinds of node that say how a graph computes
PUBLISHED = {
    (DEFAULT_MODEL, "fp32"): ("SamLowe/roberta-base-go_emotions-onnx", "onnx/model.onnx"),
    (DEFAULT_MODEL, "fp16"): ("joaopn/roberta-base-go_emotions-onnx-fp16", "model.onnx"),
}


@dataclass(frozen=True)
class Export:
    """A kind of export: how its folder's name ends, what it is, and how it is made."""

    suffix: str
    words: str
    options: str


EXPORTS = {
    "fp16": Export(
        "-onnx-fp16",
        "FP16 with fused nodes (O4)",
        "optimum's AutoOptimizationConfig.O4: fusion of attention, layer norm, GELU (tanh approximation) and bias "
        "nodes, then FP16 with FP32 inputs and outputs",
    ),
    "int8": Export(
        "-onnx-int8",
        "INT8 (dynamically quantized, for CPUs)",
        f"onnxruntime's dynamic quantization: {int8.WORDS}; weights per channel",
    ),
    "fp32": Export("-onnx", "FP32", "plain export"),
}


def export_folder(model_id: str, precision: str) -> Path:
    """Returns where a model's export belongs: in the working directory, named after the model."""
    return Path(Path(model_id).resolve().name + EXPORTS[precision].suffix)


def find_export(precision: str, model_id: str, folder: Path) -> tuple[Path, str]:
    """Returns the ONNX file of a precision, and a few words that say where it is from.

    A local export in the working directory comes first, then the default model's published exports, and if there is
    neither, the model in `folder` is exported now.
    """
    exported = export_folder(model_id, precision)
    file = exported / "model.onnx"
    if file.is_file():
        report, about = (
            read_json(path) if path.is_file() else {} for path in (exported / "parity.json", exported / ABOUT)
        )
        if report.get("gate"):
            say(f"./{exported} failed its check: {report['gate']}")
        if precision == "int8" and about.get("bits") != 7 and "vnni" not in cpu_capabilities():
            say(f"./{exported} may be wrong here: its weights have 8 bits, whose sums saturate on a CPU without VNNI")
        return file, f"local export ./{file}"
    if exported.exists():
        raise UserError(f"./{exported} exists but holds no model.onnx; move it away")
    if (model_id, precision) in PUBLISHED:
        repo, published = PUBLISHED[model_id, precision]
        try:
            downloaded = download(repo, allow_patterns=[published, f"{published}_data"]) / published
            if downloaded.is_file():
                return downloaded, f"published export {repo}, {published}"
            say(f"no published export: {repo} has no file {published}")
        except UserError as error:
            say(f"no published export: {error}")
    check_writable(exported.absolute().parent)

    def make(temporary: Path) -> None:
        for finding in in_fresh_process(export, folder, temporary, precision)["findings"]:
            say(f"{exported}: {finding}")

    with step(f"export     {model_id} into ./{exported}"):
        make_once(exported, make)
    return file, f"exported now into ./{exported}"


def check_exportable(folder: Path, precision: str) -> None:
    """Raises UserError if optimum can't export or optimize a classifier of the folder's model type.

    Also if the tokenizer or weights don't load: optimum would fill in random ones.
    """
    import optimum.exporters.onnx.model_configs  # noqa: F401  registers the model types
    from optimum.exporters.tasks import TasksManager
    from optimum.onnxruntime.utils import ORTConfigManager

    config = load_config(folder)
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(config.model_type, "onnx", library_name="transformers")
        if "text-classification" not in tasks:
            raise KeyError(config.model_type)
        if precision == "fp16":
            ORTConfigManager.get_model_ort_type(config.model_type)
    except KeyError as error:
        done = "optimized" if precision == "fp16" else "exported"
        raise UserError(f"a classifier of type {config.model_type} can't be {done} by optimum") from error
    load_tokenizer(folder)
    load_model(folder)


def export(folder: Path, target: Path, precision: str, shape_inference: bool = True) -> dict:
    """Exports the model in `folder` as `target`/model.onnx with its config and tokenizer beside it.

    fp32 is the plain export, fp16 has optimum's O4 optimization (fused nodes, tanh GELU, FP16), int8 is quantized by
    int8.quantize. Returns `options` (how it was made, in words) and what describe_graph says. Raises UserError for a
    model that can't be exported so.
    """
    import onnxruntime
    from optimum.onnxruntime import AutoOptimizationConfig, ORTModelForSequenceClassification, ORTOptimizer

    onnxruntime.set_default_logger_severity(4)  # O4 asks for CUDA, only to optimize, and does as well without
    file, about, options = target / "model.onnx", {"precision": precision}, EXPORTS[precision].options
    if precision == "int8":
        about["bits"] = 8 if "vnni" in cpu_capabilities() else 7
        options += f", of {about['bits']} bits for CPUs {'with' if about['bits'] == 8 else 'without'} VNNI"
    try:
        with tempfile.TemporaryDirectory(dir=target) as plain:
            tempfile.tempdir = plain  # where optimum exports to: nothing is left elsewhere by an interruption
            model = ORTModelForSequenceClassification.from_pretrained(
                folder, export=True, trust_remote_code=False, local_files_only=True
            )
            model.save_pretrained(target if precision == "fp32" else plain)
            model.config.save_pretrained(target)
            if precision == "fp16":
                optimization = AutoOptimizationConfig.O4(disable_shape_inference=not shape_inference)
                optimizer = ORTOptimizer.from_pretrained(model)
                optimizer.optimize(save_dir=target, optimization_config=optimization, file_suffix="")
            if precision == "int8":
                int8.quantize(folder, Path(plain) / "model.onnx", file, INSIDE_BYTES, about["bits"])
        store_weights(file)
    except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise UserError(f"{folder} can't be exported to ONNX {precision}: {first_line(error)}") from error
    finally:
        tempfile.tempdir = None
    load_tokenizer(folder).save_pretrained(target)
    about["files"] = sorted(path.name for path in target.iterdir())
    (target / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
    return {"options": options} | describe_graph(file, precision, getattr(model.config, "num_hidden_layers", 0))


def foreign_files(folder: Path) -> list[str]:
    """Returns the names in a folder that no export of ours made."""
    about = folder / ABOUT
    files = read_json(about).get("files", []) if about.is_file() else []
    return sorted({path.name for path in folder.iterdir()} - {*map(str, files), ABOUT, "parity.json", "README.md"})


def store_weights(file: Path) -> None:
    """Keeps weights inside model.onnx, or moves 2 GB and more to model.onnx_data, the name that every loader looks for.

    onnxruntime's optimizer writes model.onnx.data, which optimum's Hub loader does not download; a mere rename would
    leave the old name inside the model.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    model = onnx.load(file, load_external_data=False)
    outside = {
        entry.value for weight in model.graph.initializer for entry in weight.external_data if entry.key == "location"
    }
    if not outside and file.stat().st_size < INSIDE_BYTES:
        return
    load_external_data_for_model(model, str(file.parent))
    for name in outside:
        (file.parent / name).unlink()
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) >= INSIDE_BYTES
    location = f"{file.name}_data" if large else None
    onnx.save_model(model, file, save_as_external_data=large, location=location, size_threshold=1024)


def describe_graph(file: Path, precision: str, layers: int) -> dict:
    """Counts a graph's nodes.

    `nodes`: how often the telling kinds occur; `opset`; `findings`: what is not as it should be, with its consequence,
    in plain lines.
    """
    import onnx
    from onnx import TensorProto

    model = onnx.load(file, load_external_data=False)
    nodes = Counter(node.op_type for node in model.graph.node)
    findings = []
    if precision == "fp16":
        for kind, expected, consequence in FUSIONS:
            found = sum(nodes[name] for name in kind)
            if found < expected * layers:
                findings.append(f"{found} of {expected * layers} {'/'.join(kind)} nodes: {consequence}")
        fp32 = [w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and np.prod(w.dims) > 1]
        if fp32:
            findings.append(f"{len(fp32)} weights are still FP32: they take twice the memory and compute in FP32")
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return {
        "nodes": ", ".join(f"{count} {kind}" for kind, count in nodes.most_common() if TELLING.search(kind)),
        "opset": opset,
        "findings": findings,
    }
