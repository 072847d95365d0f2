"""Model folder -> ONNX: by which exporter, whether it is right, and which file a variant loads."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import int8
from bench.exporters import example_batches, with_optimum, with_torch
from bench.files import check_writable, make_once, new_folder
from bench.graph import INSIDE_BYTES, count_attention, describe_graph, store_weights
from bench.hub import download
from bench.inputs import PADDED_TEXTS, PADDING_CHANGES, answers, identify, padding_effect, padding_words
from bench.machine import cpu_capabilities
from bench.models import DEFAULT_MODEL, load_config, read_json
from bench.parity import problem_type
from bench.texts import load_tokenizer
from bench.workers import in_fresh_process
from runtimes import VARIANTS
from runtimes.runner import Place
from utils import UserError, cpu_cores, first_line, say, step

ABOUT = "export.json"  # beside model.onnx: whose export it is, what made it, and its files
# the ways to try; what is not fused by one may be by the next
EXPORTERS = {
    "optimum": with_optimum,
    "torch": lambda folder, target, precision, _: with_torch(folder, target, precision),
    "torch, not fused": lambda folder, target, precision, _: with_torch(folder, target, precision, fused=False),
}
NAMES = {"fp32": ("optimum", "torch, not fused"), "fp16": tuple(EXPORTERS)}
LONGEST_REASON = 120  # characters of an exporter's own error
# how far any probability may be from the original's on a few texts, or a regression's value, as a share of the largest
DEVIATION = {"fp32": 1e-3, "fp16": 0.1}
PUBLISHED = {
    (DEFAULT_MODEL, "fp32"): ("SamLowe/roberta-base-go_emotions-onnx", "onnx/model.onnx"),
    (DEFAULT_MODEL, "fp16"): ("joaopn/roberta-base-go_emotions-onnx-fp16", "model.onnx"),
}


@dataclass(frozen=True)
class Export:
    """A kind of export: how its folder's name ends, and what it is."""

    suffix: str
    words: str


EXPORTS = {
    "fp16": Export("-onnx-fp16", "FP16 with fused nodes"),
    "int8": Export("-onnx-int8", "INT8 (dynamically quantized, for CPUs)"),
    "fp32": Export("-onnx", "FP32"),
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
    if os.path.lexists(exported):
        why_not = not_of(exported, folder)
        if not why_not:
            warn_of(exported, precision)
            return file, f"local export ./{file}"
        if (exported / "parity.json").is_file():
            raise UserError(f"./{exported} {why_not}: export_onnx.py --overwrite makes and checks it anew")
        if foreign := foreign_files(exported):
            raise UserError(f"./{exported} {why_not}, and it holds {foreign[0]}, which no export made; move it away")
        say(f"./{exported} {why_not}: exporting anew")
    elif (model_id, precision) in PUBLISHED:
        repo, published = PUBLISHED[model_id, precision]
        try:
            downloaded = download(repo, allow_patterns=[published, f"{published}_data"]) / published
            if downloaded.is_file():
                return downloaded, f"published export {repo}, {published}"
            say(f"no published export: {repo} has no file {published}")
        except UserError as error:
            say(f"no published export: {error}")
    make_export(exported, model_id, folder, precision)
    return file, f"exported now into ./{exported}"


def make_export(exported: Path, model_id: str, folder: Path, precision: str) -> None:
    """Exports a model where its export belongs, in place of an older one, and says what is to be known of it."""
    check_writable(exported.absolute().parent)

    def make(temporary: Path) -> None:
        made = in_fresh_process(export, folder, temporary, precision)
        for finding in (f"made by {made['exporter']}", *made["findings"]):
            say(f"{exported}: {finding}")

    with step(f"export     {model_id} into ./{exported}"):
        if not exported.exists():
            make_once(exported, make)
            return
        with new_folder(exported, replace=True) as temporary:
            make(temporary)


def not_of(exported: Path, folder: Path) -> str:
    """Says why a local export is not one of the model in `folder` as it is now; nothing if it is."""
    if not (exported / "model.onnx").is_file():
        return "holds no model.onnx"
    if not (exported / ABOUT).is_file():
        return f"has no {ABOUT} that says whose export it is"
    same = read_json(exported / ABOUT).get("weights_id") == identify(folder, [])["weights_id"]
    return "" if same else "is of another model, or of weights that changed since"


def warn_of(exported: Path, precision: str) -> None:
    """Says what speaks against a local export."""
    report, about = (read_json(path) if path.is_file() else {} for path in (exported / "parity.json", exported / ABOUT))
    if report.get("verdict") == "NOT GOOD":
        say(f"./{exported} failed its check: {report['reason']}")
    if precision == "int8" and about.get("bits") != 7 and "vnni" not in cpu_capabilities():
        say(f"./{exported} may be wrong here: its weights have 8 bits, whose sums saturate on a CPU without VNNI")


def export(folder: Path, target: Path, precision: str, shape_inference: bool = True) -> dict:
    """Exports the model in `folder` as `target`/model.onnx with its config and tokenizer beside it.

    fp32 is the plain export, fp16 has fused nodes where they can be had, int8 is quantized from fp32 by int8.quantize.
    The first of the EXPORTERS whose file is right makes it; for fp16, the one that fuses most of the attention. Returns
    `options` (how it was made, in words), `exporter` and what describe_graph says. Raises UserError for a model that
    can't be exported so.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    config, file, about = load_config(folder), target / "model.onnx", {"precision": precision}
    with tempfile.TemporaryDirectory(dir=target) as place:
        attempts = Path(place)
        name, words, findings = choose_export(folder, attempts, precision, shape_inference)
        made = attempts / name / "model.onnx"
        if precision == "int8":
            about["bits"] = 8 if "vnni" in cpu_capabilities() else 7
            words = f"onnxruntime's dynamic quantization of {words}: {int8.WORDS}; weights per channel, of "
            words += f"{about['bits']} bits for CPUs {'with' if about['bits'] == 8 else 'without'} VNNI"
            (attempts / "int8").mkdir()
            made = attempts / "int8" / "model.onnx"
            int8.quantize(folder, attempts / name / "model.onnx", made, INSIDE_BYTES, about["bits"])
        for part in made.parent.glob("model.onnx*"):
            part.rename(target / part.name)
    store_weights(file)
    config.save_pretrained(target)
    load_tokenizer(folder).save_pretrained(target)
    about |= {"exporter": name, "weights_id": identify(folder, [])["weights_id"]}
    about["files"] = sorted(path.name for path in target.iterdir())
    (target / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
    graph = describe_graph(file, precision, getattr(config, "num_hidden_layers", 0))
    return {"options": words, "exporter": name} | graph | {"findings": [*findings, *graph["findings"]]}


def choose_export(folder: Path, attempts: Path, precision: str, shape_inference: bool) -> tuple[str, str, list[str]]:
    """Exports a model, into subfolders of `attempts`, until one is right and fused.

    Returns (the best one's exporter, what made it, what was wrong with others). Raises UserError if none is right.
    """
    config, precision = load_config(folder), "fp32" if precision == "int8" else precision
    layers = getattr(config, "num_hidden_layers", 0) if precision == "fp16" else 0
    place, problem, batches = Place(None, cpu_cores()), problem_type(config), example_batches(folder)
    original = VARIANTS["torch"].load(folder, place)
    expected = [answers(original, batch, problem) for batch in batches]
    effect = padding_effect(original, batches[0], problem)
    scale = max(1, *(np.abs(probs).max() for probs in expected))  # of a regression's values
    found, failed, wrong = {}, [], []
    for name in NAMES[precision]:
        (attempts / name).mkdir()
        try:
            words = EXPORTERS[name](folder, attempts / name, precision, shape_inference)
            runner = VARIANTS["onnx"].load(attempts / name / "model.onnx", place)
            probs = [answers(runner, batch, problem) for batch in batches]
            off = np.abs(np.concatenate(probs) - np.concatenate(expected)).max() / scale
            if not off <= DEVIATION[precision]:
                wrong.append(f"{name}: its file is wrong, by up to {off:.2g} on {PADDED_TEXTS + 1} texts")
                continue
            found[name] = words, count_attention(attempts / name / "model.onnx")
            if found[name][1] >= layers:
                break
        except UserError as error:
            failed.append(f"{name}: {error}")
        except Exception as error:  # each exporter fails in many ways for what it doesn't know
            failed.append(f"{name}: {first_line(error.__cause__ or error)[:LONGEST_REASON]}")
    if not found:
        reasons = "; ".join(failed + wrong)
        raise UserError(f"a classifier of type {config.model_type} can't be exported to ONNX {precision} ({reasons})")
    best = max(found, key=lambda name: found[name][1])
    if effect > PADDING_CHANGES:
        wrong.append(padding_words(config.model_type, effect))
    return best, found[best][0], wrong


def foreign_files(folder: Path) -> list[str]:
    """Returns the names in a folder that no export of ours made."""
    about = folder / ABOUT
    files = read_json(about).get("files", []) if about.is_file() else []
    return sorted({path.name for path in folder.iterdir()} - {*map(str, files), ABOUT, "parity.json", "README.md"})
