"""The report on an export: parity.json, the model card, and lines on the terminal."""

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from urllib.parse import quote

from bench.export.select import EXPORT_KINDS
from bench.files import new_file
from bench.judge import NOT_WITHIN
from bench.naming import code_span, markdown, python_string
from bench.options import command
from bench.provenance import project_commit, project_url, versions
from bench.variants import CARD, REPORT
from utils import ROOT, first_line, say

INHERITED = ("license", "license_name", "license_link", "language", "datasets")  # from the card of the model
RUNTIMES = ("torch", "transformers", "optimum-onnx", "onnxruntime-gpu", "onnxruntime")


def runtime_versions() -> str:
    known = versions(*RUNTIMES) | {"commit": project_commit()}
    return ", ".join(f"{name} {version}" for name, version in known.items())


def public_command(arguments: list[str]) -> str:
    """Return the command line of export_onnx.py, without access tokens and without the folders of this machine."""
    public = []
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=") if re.match("--[^=]+=", argument) else ("", "", argument)
        if "--hf-token" in (option, *arguments[i - 1 : i]):
            value = "..."
        elif os.path.isabs(value) or os.path.exists(value):
            value = Path(value).resolve().name
        public.append(f"{option}{equals}{value}")
    return command("python", "export_onnx.py", *public)


def write_report(folder: Path, source: Path, report: dict) -> None:
    """Write parity.json and the model card of an export."""
    finite = json.loads(json.dumps(report), parse_constant=lambda _: None)  # JSON has no NaN and no infinity
    with new_file(folder / REPORT) as file:
        file.write(json.dumps(finite, indent=2).encode())
    write_card(folder, source, report)


def write_card(folder: Path, source: Path, report: dict) -> None:
    """Write README.md with the licence, language, data sets and tags of the card in the folder `source`."""
    from huggingface_hub import ModelCard, ModelCardData

    inherited = read_metadata(source / "README.md")
    tags = inherited.get("tags", [])
    tags = [*(tags if isinstance(tags, list) else [tags]), "onnx", report["task"], report["precision"]]
    data = ModelCardData(
        library_name=report["card"].get("library_name", "optimum"),
        pipeline_tag=report["card"].get("pipeline_tag", report["task"]),
        tags=list(dict.fromkeys(tags)),
        **{key: inherited[key] for key in INHERITED if key in inherited},
    )
    model, link = report["model"], markdown(report["model"])
    if "/" in model:
        data.base_model = model.partition("@")[0]
        data.base_model_relation = None if report["precision"] == "fp32" else "quantized"
        link = f"[{link}](https://huggingface.co/{quote(model.replace('@', '/tree/'))})"
    manifest_texts = {"options": str(report.get("options", "")), "findings": [*map(str, report["findings"])]}
    url = project_url()
    text = ModelCard.from_template(
        data,
        template_path=str(ROOT / "model_card.md"),
        **{name: escaped(value) for name, value in (report | manifest_texts).items()} | report["card"],
        failed=report["verdict"] == NOT_WITHIN,
        title=markdown(Path(report["repo"]).name),
        source=link,
        repo_string=python_string(report["repo"]),
        command_code=code_span(report.get("command", "")),
        precision_words=EXPORT_KINDS[report["precision"]].description,
        scores=score_lines(report["gold"]),
        stats=report["largest_difference"],
        runtime='"onnxruntime-gpu[cuda,cudnn]"' if report["provider"] == "CUDAExecutionProvider" else "onnxruntime",
        project=f"[Swiftsure]({url})" if url else "Swiftsure",
        real_texts=not report["dataset"].startswith("synthetic-"),
    )
    with new_file(folder / CARD) as file:
        file.write(str(text).encode())


def escaped(value):
    """Return a value of a report with all texts in it escaped for Markdown."""
    if isinstance(value, dict):
        return {name: escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return markdown(value) if isinstance(value, str) else value


def read_metadata(card: Path) -> dict[str, str | list[str]]:
    """Return the metadata of a model card that are texts or lists of texts; empty if it is missing or damaged."""
    from huggingface_hub import metadata_load

    try:
        metadata = (metadata_load(card) if card.is_file() else None) or {}
    except Exception as error:  # of YAML or the disk
        say(f"can't read {card}, so the new card lacks its licence, language and tags: {first_line(error)}")
        return {}
    texts = {key: metadata_text(value) for key, value in metadata.items()}
    return {key: value for key, value in texts.items() if value}


def metadata_text(value) -> str | list[str]:
    """Return a value of a card's metadata as text, and a list as a list of texts; empty for anything else."""
    if isinstance(value, list):
        return [metadata_text(item) for item in value if isinstance(item, str | int | float)]
    if value is False:
        return "no"  # YAML 1.1 reads Norwegian as False
    return str(value) if isinstance(value, str | int | float) else ""


def score_lines(gold: dict) -> list[str]:
    """Return a line for each score of original and export by gold labels; none without gold labels."""
    original, export = gold.get("original", {}), gold.get("export", {})
    return [f"{name}: original {original[name]:.4f}, export {export[name]:.4f}" for name in original if name != "texts"]


def print_report(report: dict) -> None:
    """Print a report on standard output, with the `worst` texts if it has any."""
    show = partial(say, file=sys.stdout)
    show(f"largest difference of each text over its labels, {report['texts']} texts ({report['dataset']}):")
    show("  " + "  ".join(f"{name} {value:.3g}" for name, value in report["largest_difference"].items()))
    show(f"mean difference over all labels: {report['mean_over_labels']:.3g}")
    changed = f"{report['changed']:,} of {report['decisions']:,}, {report['flips']:.4%}"
    show(f"changed decisions (flips): {changed} ({report['decision_words']})")
    for line in score_lines(report["gold"]):
        show(f"on {report['gold']['original']['texts']:,} texts with gold labels, {line}")
    show(f"texts with NaN or infinite outputs: {report['non_finite_texts']}")
    speed = report["speed"]
    show(f"messages/s, end to end: export {speed['export']:.1f}, original {speed['original']:.1f}")
    for text in report["worst"]:
        show()
        show(f"  {text['excerpt']!r}")
        for label in text["labels"][:5]:
            values = f"{label['original']:8.4f} {label['export']:8.4f} {label['difference']:+.2g}"
            show(f"    {label['label']:<24} {values}")
    if not report["fp16_exercised"]:
        show()
        show("the CPU computes this file in FP32 between casts: FP16 arithmetic was not checked")
