"""Which export a variant loads: one that lies here, one that is published, or one that is made now."""

import os
from pathlib import Path

from bench.export.select import EXPORT_KINDS, MANIFEST, export_model
from bench.files import check_writable, new_folder, read_json
from bench.judge import NOT_WITHIN
from bench.model.hub import download
from bench.model.model import Model
from bench.model.resolve import DEFAULT_MODEL
from bench.processes import run_in_subprocess
from bench.provenance import versions
from bench.timing import step
from bench.variants import CARD, REPORT
from utils import UserError, say

# (model, precision) -> the Hub's repository of an export, and the folder in it
PUBLISHED = {
    (DEFAULT_MODEL, "fp32"): ("SamLowe/roberta-base-go_emotions-onnx", "onnx"),
    (DEFAULT_MODEL, "fp16"): ("joaopn/roberta-base-go_emotions-onnx-fp16", "."),
}


def export_folder(model_id: str, precision: str) -> Path:
    """Returns where a model's export belongs: in the working directory, named after the model."""
    return Path(Path(model_id).resolve().name + EXPORT_KINDS[precision].suffix)


def ensure_export(model: Model, precision: str) -> tuple[Path, str]:
    """Returns the folder of a model's export, and a few words that say where it is from.

    A local export in the working directory comes first, then the default model's published ones; if there is neither,
    the model is exported now. Raises UserError where none can be had, or would have to replace what isn't ours.
    """
    folder = export_folder(model.id, precision)
    if os.path.lexists(folder):
        reason = stale_reason(folder, model.weights_id)
        if not reason:
            say_caveats(folder, precision)
            return folder, f"local export ./{folder}"
        if (folder / REPORT).is_file():
            raise UserError(f"./{folder} {reason}: export_onnx.py --overwrite makes and checks it anew")
        if foreign := foreign_files(folder):
            raise UserError(f"./{folder} {reason}, and it holds {foreign[0]}, which no export made; move it away")
        say(f"./{folder} {reason}: exporting anew")
    elif (model.id, precision) in PUBLISHED:
        repo, place = PUBLISHED[model.id, precision]
        file = f"{place}/model.onnx".removeprefix("./")
        try:
            downloaded = download(repo, allow_patterns=[file, f"{file}_data"])
            if (downloaded / file).is_file():
                return downloaded / place, f"published export {repo}, {file}"
            say(f"no published export: {repo} has no file {file}")
        except UserError as error:
            say(f"no published export: {error}")
    check_writable(folder.absolute().parent)
    with step(f"export     {model.id} into ./{folder}"), new_folder(folder, replace=True) as temporary:
        plain = export_folder(model.id, "fp32")
        plain = plain if plain.is_dir() and not stale_reason(plain, model.weights_id) else None
        made = run_in_subprocess(export_model, model, precision, temporary, True, plain)
    for finding in (f"made by {made['exporter']}", *made["findings"]):
        say(f"{folder}: {finding}")
    return folder, f"exported now into ./{folder}"


def stale_reason(folder: Path, weights_id: str) -> str:
    """Says why a local export is not one of the model with these weights; nothing if it is."""
    if not (folder / MANIFEST).is_file():
        return f"has no {MANIFEST} that says whose export it is"
    manifest = read_json(folder / MANIFEST)
    if missing := [name for name in map(str, manifest.get("files", [])) if not (folder / name).is_file()]:
        return f"lacks {missing[0]}"
    if manifest.get("weights_id") != weights_id:
        return "is of another model, or of weights that changed since"
    [installed] = versions("transformers").values()
    made_with = manifest.get("transformers", installed)
    return "" if made_with == installed else f"was made with transformers {made_with}, {installed} is installed"


def say_caveats(folder: Path, precision: str) -> None:
    """Says what speaks against a local export."""
    report, manifest = (read_json(path) if path.is_file() else {} for path in (folder / REPORT, folder / MANIFEST))
    if report.get("verdict") == NOT_WITHIN:
        say(f"./{folder} failed its check: {report.get('reason')}")
    if caveat := EXPORT_KINDS[precision].caveat(manifest):
        say(f"./{folder} {caveat}")


def foreign_files(folder: Path) -> list[str]:
    """Returns the names in a folder that no export of ours made."""
    manifest = folder / MANIFEST
    files = read_json(manifest).get("files", []) if manifest.is_file() else []
    return sorted({path.name for path in folder.iterdir()} - {*map(str, files), MANIFEST, REPORT, CARD})
