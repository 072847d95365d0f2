"""Model -> a folder with model.onnx: tries one exporter after another until a file is right."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.exporters.backends import example_batches, example_items
from bench.exporters.first_token import first_token_only
from bench.exporters.graph import count_attention, describe_graph, store_weights
from bench.files import read_json
from bench.machine import cpu_cores
from bench.model.model import Model
from bench.model.reference import N_PADDED_TEXTS, Reference, padding_note
from bench.model.tokenizing import load_tokenizer
from bench.provenance import versions
from bench.variants import Device, ExportKind, TokenRunner
from runtimes import VARIANTS
from runtimes.onnx import load
from utils import UserError, first_line

MANIFEST = "export.json"  # beside model.onnx: whose export it is, what made it, and its files
LONGEST_REASON = 120  # characters of an exporter's own error: its first words say what is wrong

# precision -> its kind of export
EXPORT_KINDS = {variant.export.precision: variant.export for variant in VARIANTS.values() if variant.export}


@dataclass(frozen=True)
class Candidate:
    """A file that is right: its exporter's `backend`, how it was `made`, and how many `attention` nodes are fused."""

    backend: str
    made: str
    attention: int


def export_model(
    model: Model, precision: str, target: Path, shape_inference: bool = True, plain: Path | None = None
) -> dict:
    """Exports a model into `target`, as model.onnx or what its kind converts that into, with config and tokenizer.

    The first backend of the precision's ExportKind whose file is right makes it, or the one that fuses most. `plain`: a
    folder with the model's FP32 export, of which a kind that converts that makes its files. Returns what
    describe_export says. Raises UserError for a model that can't be exported so.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    kind, manifest = EXPORT_KINDS[precision], {"precision": precision}
    with tempfile.TemporaryDirectory(dir=target) as place:
        folder = Path(place)
        best, findings = known_candidate(plain, folder) if kind.convert else None, []
        if not best:
            best, findings = choose_candidate(model, kind, folder, shape_inference)
        made, words = [*(folder / best.backend).glob("model.onnx*")], best.made
        if kind.convert:
            (folder / "converted").mkdir()
            words, more = kind.convert(model, folder / best.backend / "model.onnx", folder / "converted", words)
            made, manifest = [*(folder / "converted").iterdir()], manifest | more
        for part in made:
            part.rename(target / part.name)
    if (target / "model.onnx").exists():
        store_weights(target / "model.onnx")
    model.config.save_pretrained(target)
    tokenizer = load_tokenizer(model.folder)  # anew: tokenizing has set the other one to truncate
    tokenizer.padding_side = model.padding_side
    tokenizer.save_pretrained(target)
    manifest |= {"exporter": best.backend, "made": best.made, "options": words, "findings": findings}
    manifest |= {"weights_id": model.weights_id} | versions("transformers")
    manifest["files"] = sorted(path.name for path in target.iterdir())
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return describe_export(model, target)


def describe_export(model: Model, folder: Path) -> dict:
    """Returns what an export's files say: `precision`, `options` (how it was made, in words), `exporter`, `findings`,
    and what describe_graph says of its graph."""
    manifest, file = read_json(folder / MANIFEST), folder / "model.onnx"
    graph = {"nodes": "", "opset": "", "findings": []}
    if file.exists():
        kind = EXPORT_KINDS[manifest["precision"]]
        graph = describe_graph(file, layers_of(model) if kind.fused else None)
    known = {"precision": manifest["precision"], "options": manifest.get("options", manifest.get("made", ""))}
    known |= {"exporter": manifest.get("exporter", "")}
    return known | graph | {"findings": [*manifest.get("findings", []), *graph["findings"]]}


def known_candidate(plain: Path | None, folder: Path) -> Candidate | None:
    """Copies an export that was made before into a subfolder of `folder`; None where it doesn't say how it was made."""
    manifest = read_json(plain / MANIFEST) if plain else {}
    if not {"exporter", "made"} <= manifest.keys():
        return None
    (folder / manifest["exporter"]).mkdir()
    for file in plain.glob("model.onnx*"):
        shutil.copy(file, folder / manifest["exporter"])
    return Candidate(manifest["exporter"], manifest["made"], attention=0)


def layers_of(model: Model) -> int:
    return getattr(model.config, "num_hidden_layers", 0)


def choose_candidate(
    model: Model, kind: ExportKind, folder: Path, shape_inference: bool
) -> tuple[Candidate, list[str]]:
    """Exports a model into subfolders of `folder`, one for each backend, until a file is right and fused as it should.

    Returns (the best file, what was wrong with others and what padding does). Raises UserError if none is right.
    """
    enough = layers_of(model) if kind.fused else 0
    reference, batches = Reference.load(model), example_batches(model)
    expected = [reference.of_batch(batch) for batch in batches]
    scale = max(1, *(np.abs(probs).max() for probs in expected))  # of a regression's values
    found, failed, wrong = [], [], []
    for backend, make in kind.backends.items():
        (folder / backend).mkdir()
        try:
            made = make(model, folder / backend, shape_inference)
            if first_token_only(folder / backend / "model.onnx", batches[0]):
                made += ", with the last layer from behind the attention on for the first token alone"
            runner = load(model, folder / backend, Device(None, cpu_cores()))
            probs = [run_batch(runner, model, batch) for batch in batches]
            off = np.abs(np.concatenate(probs) - np.concatenate(expected)).max() / scale
            if not off <= kind.max_deviation:
                wrong.append(f"{backend}: its file is wrong, by up to {off:.2g} on {N_PADDED_TEXTS + 1} texts")
                continue
            found.append(Candidate(backend, made, count_attention(folder / backend / "model.onnx")))
            if found[-1].attention >= enough:
                break
        except UserError as error:
            failed.append(f"{backend}: {error}")
        except Exception as error:  # each exporter fails in many ways for what it doesn't know
            failed.append(f"{backend}: {first_line(error.__cause__ or error)[:LONGEST_REASON]}")
    if not found:
        what = f"a {model.model_type} model can't be exported to ONNX {kind.precision}"
        raise UserError(f"{what} ({'; '.join(failed + wrong)})")
    padding = padding_note(model, reference.padding_effect(example_items(model)))
    return max(found, key=lambda candidate: candidate.attention), [*wrong, *[padding] * bool(padding)]


def run_batch(runner: TokenRunner, model: Model, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return the answers [texts, labels] of a padded batch."""
    outputs = runner.to_host(runner.forward(runner.prepare(batch)))
    return model.task.answers(outputs, np.arange(len(outputs)), len(outputs), "cut")
