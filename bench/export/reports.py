"""The report on an export: parity.json, the model card, and lines on the terminal."""

import json
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from urllib.parse import quote

from bench.export.ensure import report_file
from bench.export.select import EXPORT_KINDS
from bench.files import new_file
from bench.judge import NOT_WITHIN
from bench.naming import code_span, markdown, python_string
from bench.options import command
from bench.provenance import project_commit, project_url, versions
from bench.variants import CARD, THRESHOLDS
from utils import ROOT, clean, first_line, say

LICENCE = ("license", "license_name", "license_link")
INHERITED = (*LICENCE, "language", "datasets")  # from the card of the model
TEXT, LINK, NAME = r"[^<>]+", r"https?://[^\s<>]+|[\w-][\w.-]*", r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
FORMS = {"license_link": LINK} | dict.fromkeys(("license", "language", "datasets"), NAME)  # others are left out
RUNTIMES = ("torch", "transformers", "optimum-onnx", "onnxruntime-gpu", "onnxruntime")


def runtime_versions() -> str:
    known = versions(*RUNTIMES) | {"commit": project_commit()}
    return ", ".join(f"{name} {version}" for name, version in known.items())


def public_command(arguments: list[str]) -> str:
    """Return the command line of export_onnx.py, without the folders of this machine."""
    public = []
    for argument in arguments:
        option, equals, value = argument.partition("=") if re.match("--[^=]+=", argument) else ("", "", argument)
        if os.path.isabs(value) or os.path.exists(value):
            value = Path(value).resolve().name
        public.append(f"{option}{equals}{value}")
    return command("python", "export_onnx.py", *public)


def write_report(folder: Path, source: Path, report: dict) -> None:
    """Write parity.json and the model card of an export."""
    finite = json.loads(json.dumps(report), parse_constant=lambda _: None)  # JSON has no NaN and no infinity
    files = {report_file(folder, report["threshold"]): finite, folder / THRESHOLDS: finite["gold"].get("thresholds")}
    for path, content in files.items():
        if content:
            with new_file(path) as file:
                file.write(json.dumps(content, indent=2).encode())
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
    url, is_public = project_url(), "/" in report["repo"]
    argument = report["repo"] if is_public else "."
    thresholds = dict(zip(report["labels"], report["thresholds"], strict=False))
    script, output, *taken = report["script"]
    options = {"column": "text", "output": output}
    options |= {name: value for name, value in report["task_options"].items() if name in taken}
    files = {"texts.csv": ["text", "a short text", "and one that is a little longer"]}  # the command reads them: lines
    if options.get("pair_column"):
        options["pair_column"] = "second"
        rows = "a short text,another one", "and one that is a little longer,the second"
        files["texts.csv"] = ["text,second", *rows]
    if any(value != 0.5 for value in thresholds.values()):
        options["threshold"] = "thresholds-in-use.json"
        files[options["threshold"]] = [json.dumps(thresholds)]
    if options.get("candidate_labels"):
        options["candidate_labels"] = "candidate-labels.txt"
        files[options["candidate_labels"]] = report["labels"]
    licence = ", ".join(str(inherited[key]) for key in LICENCE if key in inherited)
    text = ModelCard.from_template(
        data,
        template_path=str(ROOT / "model_card.md"),
        **{name: escaped(value) for name, value in report.items()} | report["card"],
        failed=report["verdict"] == NOT_WITHIN,
        title=markdown(Path(report["repo"]).name),
        source=link,
        folder=python_string(argument),
        is_public=is_public,
        label_command=command("python", f"swiftsure/{script}", argument, "texts.csv", **options),
        original=code_span(command("--original", model)) if "/" in model else "",
        licence=markdown(licence),
        url=url,
        files={name: shlex.join(lines) for name, lines in files.items()},
        command_code=code_span(report.get("command", "")),
        precision_words=EXPORT_KINDS[report["precision"]].description,
        scores=escaped(score_table(report["gold"])),
        file=report_file(folder, report["threshold"]).name,
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
    texts = {key: metadata_text(value, FORMS.get(key, TEXT)) for key, value in metadata.items()}
    return {key: value for key, value in texts.items() if value}


def metadata_text(value, form: str) -> str | list[str]:
    """Return a value of a card's metadata as text of this form, and a list as a list of texts; empty for others."""
    if isinstance(value, list):
        return [text for item in value if not isinstance(item, list) and (text := metadata_text(item, form))]
    if isinstance(value, bool):
        value = "yes" if value else "no"  # YAML 1.1 reads Norwegian as False
    text = clean(str(value)).strip() if isinstance(value, str | int | float) else ""
    return text if re.fullmatch(form, text) else ""


def score_table(gold: dict) -> list[list[str]]:
    """Return the scores by gold labels as rows of text, after a header; empty without gold labels."""
    rows = gold.get("scores", [])
    cells = [
        ["" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows
    ]
    return [*map(list, rows[:1]), *cells]


def print_report(report: dict) -> None:
    """Print a report on standard output, with the `worst` texts if it has any."""
    show = partial(say, file=sys.stdout)
    show(f"largest difference of each text over its labels, {report['texts']} texts ({report['dataset']}):")
    show("  " + "  ".join(f"{name} {value:.3g}" for name, value in report["largest_difference"].items()))
    show(f"mean difference over all labels: {report['mean_over_labels']:.3g}")
    changed = f"{report['changed']:,} of {report['decisions']:,}, {report['flips']:.4%}"
    show(f"changed decisions (flips): {changed} ({report['decision_words']})")
    if gold := report["gold"]:
        show(f"F1 on {gold['texts']:,} texts with gold labels:")
    table = score_table(gold)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        show("  ".join(map(str.rjust, row, widths)))
    if gold.get("thresholds"):
        show(f"best thresholds for --threshold: {THRESHOLDS}; too rare, so 0.5: {', '.join(gold['rare']) or 'none'}")
    if report["weak_test"]:
        show(report["weak_test"])
    show(f"texts with NaN or infinite outputs: {report['non_finite_texts']}")
    speed = report["speed"]
    show(f"messages/s, end to end: export {speed['export']:.1f}, original {speed['original']:.1f}")
    for text in report["worst"]:
        show()
        show(f"  {text['excerpt']!r}")
        for label in text["labels"][:5]:
            values = f"{label['original']:8.4f} {label['export']:8.4f} {label['difference']:+.2g}"
            show(f"    {label['label']:<24} {values}")
    if not report.get("fp16_exercised", True):
        show()
        show("the CPU computes this file in FP32 between casts: FP16 arithmetic was not checked")
