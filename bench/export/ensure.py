"""Folders of exports: which one a variant loads, and what may be checked, replaced or created."""

import os
import re
import shutil
from pathlib import Path

from bench.export.select import EXPORT_KINDS, export_model, read_manifest
from bench.files import LONGEST_NAME, TEMPORARY, check_writable, new_folder, read_json, remove_leftovers
from bench.judge import NOT_WITHIN
from bench.model.model import Model
from bench.model_files import MANIFEST, export_files, inside, weight_files
from bench.naming import slug
from bench.processes import run_in_subprocess
from bench.provenance import missing_packages, versions
from bench.variants import CARD, REPORT, REPORTS, THRESHOLDS
from runtimes import VARIANTS
from utils import UserError, say

REPORT_TYPES = dict.fromkeys(("verdict", "reason", "dataset", "export_id", "threshold"), str | None)
NEEDED_SPACE = 3  # times the model's weights: the files of several exporters exist at the same time


def export_folder(model_id: str, precision: str) -> Path:
    """Return the default folder of an export, in the working directory."""
    name = Path(model_id).resolve().name
    if not os.path.isdir(model_id):
        name = re.sub("@|%2F", "-", name)  # of a revision
    return Path(name + EXPORT_KINDS[precision].suffix)


def ensure_export(model: Model, precision: str) -> tuple[Path, str]:
    """Return the folder of a model's export, and its origin in a few words.

    That of a model that holds only ONNX is its own. If there is no local one in the working directory, or it is out of
    date, the model is exported. Raises UserError if that fails, or would replace a checked export or files that no
    export created.
    """
    model.task.check_export()
    if model.onnx_precision:
        say_caveats(model.folder, model.onnx_precision, model.task.rule_id)
        return weight_files(model.folder)[0].parent, f"its own ONNX file, {report_words(model)}"
    folder = export_folder(model.id, precision)
    if os.path.lexists(folder):
        reason = stale_reason(folder, model.weights_id)
        if not reason:
            say_caveats(folder, precision, model.task.rule_id)
            return folder, f"local export ./{folder}"
        if any(folder.glob(REPORTS)):
            raise UserError(f"./{folder} {reason}; export_onnx.py --overwrite recreates and checks it")
        if foreign := foreign_files(folder):
            raise UserError(f"./{folder} {reason}, and contains {foreign[0]}, which no export created; move it away")
        say(f"./{folder} {reason}: exporting again")
    check_writable(folder.absolute().parent)
    say(f"export     {model.id} into ./{folder}")
    with new_folder(folder, replace=True) as temporary:
        plain = export_folder(model.id, "fp32")
        if stale_reason(plain, model.weights_id):
            plain = None
        graph = run_in_subprocess(export_model, model, precision, temporary, plain)
    for finding in (f"made by {graph['exporter']}", *graph["findings"]):
        say(f"{folder}: {finding}")
    return folder, f"exported now into ./{folder}"


def runnable_variants(model: Model, names: list[str], asked: list[str] | None = None) -> list[str]:
    """Return which of these variants can run a model, by its task and, if it holds only ONNX, its precision.

    If that leaves none, it is the ONNX file's own. Raises UserError if one of `asked` can't (default: all).
    """
    usable = [name for name, variant in VARIANTS.items() if variant.library in ("", *model.task.libraries)]
    asked = [name for name in names if name in (asked or names)]
    if wrong := [name for name in asked if name not in usable]:
        fitting = ", ".join(name for name in usable if VARIANTS[name].library)
        raise UserError(f"--variant {wrong[0]} is not for {model.task.name}; its baselines: {fitting}")
    for name in asked:
        if VARIANTS[name].library and (missing := missing_packages(VARIANTS[name])):
            raise UserError(f"--variant {name} needs {missing[0]}: install requirements-baselines.txt")
    if not model.onnx_precision:
        return [name for name in names if name in usable]
    loader = EXPORT_KINDS[model.onnx_precision].variant
    usable = [name for name in usable if (kind := VARIANTS[name].export) and kind.variant == loader]
    if wrong := [name for name in asked if name not in usable]:
        kind = f"it holds only ONNX, in {model.onnx_precision.upper()}"
        raise UserError(f"{model.id} can't run as {wrong[0]}: {kind}. Use the original, or one of: {', '.join(usable)}")
    return [name for name in names if name in usable] or usable[:1]


def report_file(folder: Path, rule_id: str) -> Path:
    """Return the file for the report of a check at these thresholds, see Task.rule_id."""
    return inside(folder, f"parity-{slug(rule_id)}.json" if rule_id else REPORT)


def report_words(model: Model) -> str:
    """Return what the report beside the ONNX file of a model proves."""
    file = report_file(model.folder, model.task.rule_id)
    report = read_json(file, REPORT_TYPES) if file.is_file() else {}
    if "verdict" not in report:
        return f"without a check in {file.name}"
    defaults = {"export_id": model.weights_id, "threshold": ""}  # reports of earlier versions
    if [report.get(name, value) for name, value in defaults.items()] != [model.weights_id, model.task.rule_id]:
        return f"with a {file.name} that is about other files or other thresholds"
    variant = EXPORT_KINDS[model.onnx_precision].variant
    return f"by {file.name} {report['verdict']} as {variant} on {report.get('dataset')}: {report.get('reason')}"


def stale_reason(folder: Path, weights_id: str) -> str:
    """Return why a folder is not an export of the model with these weights; empty if it is."""
    if not folder.is_dir():
        return "is not a folder"
    if not (folder / MANIFEST).is_file():
        return f"has no {MANIFEST}, so its model is unknown"
    manifest = read_manifest(folder)
    if missing := [file.name for file in export_files(folder) if not file.is_file()]:
        return f"lacks {missing[0]}"
    if manifest.get("weights_id") != weights_id:
        return "was made from another model, or its weights have changed"
    [installed] = versions("transformers").values()
    made_with = manifest.get("transformers", installed)
    return "" if made_with == installed else f"was made with transformers {made_with}; {installed} is installed"


def say_caveats(folder: Path, precision: str, rule_id: str) -> None:
    """Print why a local export may be wrong: it failed its check at these thresholds, or does not suit this machine."""
    file = report_file(folder, rule_id)
    report = read_json(file, REPORT_TYPES) if file.is_file() else {}
    if report.get("verdict") == NOT_WITHIN:
        say(f"{folder} failed its check: {report.get('reason')}")
    if caveat := EXPORT_KINDS[precision].caveat(read_manifest(folder)):
        say(f"{folder} {caveat}")


def foreign_files(folder: Path) -> list[str]:
    """Return the names of files and folders that no export created; remove what killed runs left."""
    remove_leftovers(folder)
    files = {file.relative_to(folder).parts[0] for file in [*export_files(folder), *folder.glob(REPORTS)]}
    known = {*files, MANIFEST, CARD, THRESHOLDS}
    return sorted(name for name in os.listdir(folder) if not (name in known or TEMPORARY.fullmatch(name)))


def check_target(target: Path, model: Path, overwrite: bool) -> None:
    """Raise UserError if an export can't be written to `target`, or if that would replace anything but an export."""
    output, source = target.resolve(), model.resolve()
    if output.is_relative_to(source) or source.is_relative_to(output):
        raise UserError(f"output folder {target} overlaps the model's own folder {model}; choose another --save-dir")
    if os.path.lexists(target):
        if not overwrite:
            options = "check it with --check-only, replace it with --overwrite, or choose another --save-dir"
            raise UserError(f"{target} exists; {options}")
        if not target.is_dir() or target.is_symlink():
            raise UserError(f"--overwrite: {target} is not a folder; choose another --save-dir")
        if foreign := foreign_files(target):
            raise UserError(f"--overwrite: {target} contains {foreign[0]}, which no export created; move it away")
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        raise UserError(f"--save-dir: the name {target.name[:20]}... is too long; choose a shorter one")
    check_writable(target.absolute().parent)
    needed = NEEDED_SPACE * sum(file.stat().st_size for file in weight_files(model))
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        sizes = f"{needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"
        raise UserError(f"not enough disk space for {target}: {sizes}; choose another --save-dir")
