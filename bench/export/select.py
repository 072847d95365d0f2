"""Model -> a folder with model.onnx: try one exporter after another until a file is correct."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from bench.exporters.backends import FIRST_TOKEN, example_batches, example_items
from bench.exporters.graph import ATTENTION, describe_graph, store_weights
from bench.exporters.head import append_head
from bench.files import read_json
from bench.machine import cpu_cores
from bench.model.model import Model
from bench.model.onnx_file import load_graph
from bench.model.reference import N_PADDED_TEXTS, Reference, padding_note
from bench.model.tokenizing import load_tokenizer
from bench.model_files import MANIFEST, export_files
from bench.provenance import versions
from bench.variants import Device, ExportKind
from runtimes import VARIANTS
from runtimes.onnx import load
from utils import UserError, first_line

MANIFEST_TYPES = dict.fromkeys(("precision", "exporter", "made", "options", "weights_id", "transformers"), str | None)
MANIFEST_TYPES |= {"findings": list | None, "files": list | None}
LONGEST_REASON = 120  # characters of an exporter's error message

EXPORT_KINDS = {variant.export.precision: variant.export for variant in VARIANTS.values() if variant.export}


def export_model(model: Model, precision: str, target: Path, plain: Path | None = None) -> dict:
    """Export a model into `target`: model.onnx, or the files that its kind converts it into, config and tokenizer.

    The first backend of the precision's ExportKind that gives a correct and fused file is used, otherwise the correct
    file with the most fused attention. `plain`: a folder with the model's FP32 export, which a kind with `convert`
    starts from. Returns describe_export(). Raises UserError if no backend gives a correct file.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    kind = EXPORT_KINDS[precision]
    manifest = {"precision": precision}
    with tempfile.TemporaryDirectory(dir=target) as temporary:
        folder = Path(temporary)
        backend, made = copy_plain(plain, folder) if kind.convert and plain else ("", "")
        findings = []
        if not backend:
            backend, made, findings = choose_file(model, kind, folder)
        files = [*(folder / backend).glob("model.onnx*")]
        options = made
        if kind.convert:
            converted = folder / "converted"
            converted.mkdir()
            options, details = kind.convert(model, folder / backend / "model.onnx", converted, made)
            manifest |= details
            files = [*converted.iterdir()]
        for file in files:
            file.rename(target / file.name)
    if (target / "model.onnx").exists():
        store_weights(target / "model.onnx")
    model.config.save_pretrained(target)
    tokenizer = load_tokenizer(model.folder)  # again: the model's own one is set to truncate by now
    model.task.set_up_tokenizer(tokenizer, model.folder)
    model.task.save_files(model, target)
    tokenizer.padding_side = model.padding_side
    set_padding_token(tokenizer, model.pad_values["input_ids"])
    tokenizer.chat_template = None  # encoders have no use for one, and its name may be a path out of the folder
    tokenizer.save_pretrained(target)
    manifest |= {"exporter": backend, "made": made, "options": options, "findings": findings}
    manifest |= {"weights_id": model.weights_id} | versions("transformers")
    manifest["files"] = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return describe_export(model, target)


def set_padding_token(tokenizer, number: int) -> None:
    """Make the model's padding token the tokenizer's, unless that would change how texts with this word are split."""
    if number == tokenizer.pad_token_id or number >= len(tokenizer):
        return
    token = tokenizer.convert_ids_to_tokens(number)
    if number in tokenizer.added_tokens_decoder or tokenizer.encode(token, add_special_tokens=False) != [number]:
        tokenizer.pad_token = token


def read_manifest(folder: Path) -> dict:
    """Return the content of MANIFEST; empty if there is none. Raises UserError if it is damaged."""
    manifest = read_json(folder / MANIFEST, MANIFEST_TYPES) if (folder / MANIFEST).is_file() else {}
    manifest = {name: value for name, value in manifest.items() if value is not None}
    if manifest.get("precision", "fp32") not in EXPORT_KINDS:
        raise UserError(f"{folder / MANIFEST} has an unknown precision {manifest['precision']!r}")
    return manifest


def describe_export(model: Model, folder: Path) -> dict:
    """Return the part of the report that an export's manifest and graph tell, with the findings about both."""
    manifest = {"precision": "fp32", "exporter": "", "options": "", "made": "", "findings": []} | read_manifest(folder)
    graph = {"nodes": "", "opset": "", "findings": []}
    if (folder / "model.onnx").exists():
        is_fused = EXPORT_KINDS[manifest["precision"]].fused
        graph = describe_graph(folder / "model.onnx", fusible_layers(model, manifest["made"]) if is_fused else None)
    described = {name: manifest[name] for name in ("precision", "exporter", "options")}
    return described | graph | {"findings": [*manifest["findings"], *graph["findings"]]}


def copy_plain(plain: Path, folder: Path) -> tuple[str, str]:
    """Copy an FP32 export into `folder`/backend. Return the backend and how it was made, both empty if unknown."""
    manifest = read_manifest(plain)
    backend, made = manifest.get("exporter"), manifest.get("made")
    if backend not in list(EXPORT_KINDS["fp32"].backends) or made is None:
        return "", ""
    (folder / backend).mkdir()
    for file in export_files(plain):
        if file.name.startswith("model.onnx"):
            shutil.copy(file, folder / backend)
    return backend, made


def fusible_layers(model: Model, made: str) -> int:
    """Return the number of layers whose attention should be fused: all but one with a single query."""
    return getattr(model.config, "num_hidden_layers", 0) - (FIRST_TOKEN in made)


def choose_file(model: Model, kind: ExportKind, folder: Path) -> tuple[str, str, list[str]]:
    """Export a model into subfolders of `folder`, one per backend, until a file is correct and fused.

    Returns the backend of the best file, how it was made, and the findings: wrong files of other backends, and effects
    of padding.
    """
    reference, batches = Reference.load(model), example_batches(model)
    expected = [reference.of_batch(batch) for batch in batches]
    scale = model.task.scale(np.concatenate(expected))
    correct, failed, findings = {}, [], []
    head_is_kept = kind.trimmed or not model.task.encoder_output
    for backend, export in kind.backends.items():
        (folder / backend).mkdir()
        file = folder / backend / "model.onnx"
        try:
            made = export(model, folder / backend, trimmed=kind.trimmed)
            if model.task.encoder_output:
                as_exported = b"" if head_is_kept else file.read_bytes()
                append_head(model, file)
            runner = load(model, folder / backend, Device(None, cpu_cores()))
            outputs = [runner.to_host(runner.forward(runner.prepare(batch))) for batch in batches]
            answers = list(map(model.task.activate, outputs))
            deviation = model.task.differences(np.concatenate(answers), np.concatenate(expected)).max() / scale
            if not deviation <= kind.max_deviation:
                texts = f"{N_PADDED_TEXTS + 1} test texts"
                findings.append(f"{backend}: output differs from PyTorch by up to {deviation:.2g} on {texts}")
                continue
            if not head_is_kept:  # it was added for the check only
                file.write_bytes(as_exported)
            fused = sum(node.op_type in ATTENTION for node in load_graph(file).graph.node)
            correct[backend] = fused, made
            if not kind.fused or fused >= fusible_layers(model, made):
                break
        except UserError as error:
            failed.append(f"{backend}: {error}")
        except Exception as error:  # each exporter raises its own types
            failed.append(f"{backend}: {first_line(error.__cause__ or error)[:LONGEST_REASON]}")
    if not correct:
        reasons = "; ".join(failed + findings)
        raise UserError(f"a {model.model_type} model can't be exported to ONNX {kind.precision}: {reasons}")
    if padding := padding_note(model, reference.padding_effect(example_items(model))):
        findings.append(padding)
    best = max(correct, key=lambda backend: correct[backend][0])
    return best, correct[best][1], findings
