"""The report on an export: parity.json, the model card, and lines on the terminal."""

import json
import os
from pathlib import Path

from bench.export.select import EXPORT_KINDS
from bench.files import new_file
from bench.judge import NOT_WITHIN
from bench.naming import markdown
from bench.options import command
from bench.provenance import project_commit, project_url, versions
from bench.variants import CARD, REPORT
from utils import ROOT, clean, first_line, say

RUNTIMES = ("torch", "transformers", "optimum-onnx", "onnxruntime-gpu", "onnxruntime")


def runtime_versions() -> str:
    known = versions(*RUNTIMES) | {"commit": project_commit()}
    return ", ".join(f"{name} {version}" for name, version in known.items())


def public_command(arguments: list[str]) -> str:
    """Return the command line of export_onnx.py, without access tokens and without the folders of this machine."""
    public = []
    for i, argument in enumerate(arguments):
        option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        if "--hf-token" in (option, *arguments[i - 1 : i]):
            value = "..."
        elif os.path.isabs(value) or os.path.exists(value):
            value = Path(value).resolve().name
        public.append(f"{option}{equals}{value}")
    return clean(command("python", "export_onnx.py", *public)).replace("`", "'")  # it stands between backticks


def write_report(folder: Path, source: Path, report: dict, excerpts: bool) -> None:
    """Write parity.json and the model card of an export, with the `worst` texts if `excerpts`."""
    public = report if excerpts else report | {"worst": []}
    finite = json.loads(json.dumps(public), parse_constant=lambda _: None)  # JSON has no NaN and no infinity
    with new_file(folder / REPORT) as file:
        file.write(json.dumps(finite, indent=2).encode())
    write_card(folder, source, public)


def write_card(folder: Path, source: Path, report: dict) -> None:
    """Write README.md with the licence, language, data sets and tags of the card in the folder `source`."""
    from huggingface_hub import ModelCard, ModelCardData

    card = source / "README.md"
    inherited = ModelCardData()
    try:
        if card.is_file():
            inherited = ModelCard.load(card).data
    except Exception as error:  # of YAML, the Hub or the disk
        say(f"can't read {card}, so the new card lacks its licence, language and tags: {first_line(error)}")
    kept = {key: getattr(inherited, key, None) for key in ("license", "language", "datasets")}
    data = ModelCardData(
        library_name="optimum",
        pipeline_tag=report["task"],
        tags=list(dict.fromkeys([*map(str, inherited.tags or []), "onnx", report["task"], report["precision"]])),
        **{key: value for key, value in kept.items() if value},
    )
    model, link = report["model"], markdown(report["model"])
    if "/" in model:
        data.base_model = model.partition("@")[0]
        data.base_model_relation = None if report["precision"] == "fp32" else "quantized"
        link = f"[{model}](https://huggingface.co/{model.replace('@', '/tree/')})"
    escaped = {name: markdown(report[name]) for name in ("dataset", "column", "machine", "verdict", "reason")}
    escaped["findings"] = list(map(markdown, report["findings"]))
    escaped["worst"] = [
        {
            "excerpt": markdown(text["excerpt"]),
            "labels": [label | {"label": markdown(label["label"])} for label in text["labels"]],
        }
        for text in report["worst"]
    ]
    url = project_url()
    text = ModelCard.from_template(
        data,
        template_path=str(ROOT / "model_card.md"),
        **report | report["card"] | escaped,
        failed=report["verdict"] == NOT_WITHIN,
        title=markdown(Path(report["repo"]).name),
        source=link,
        precision_words=EXPORT_KINDS[report["precision"]].description,
        scores=score_lines(report["gold"]),
        stats=report["largest_difference"],
        runtime='"onnxruntime-gpu[cuda,cudnn]"' if report["provider"] == "CUDAExecutionProvider" else "onnxruntime",
        project=f"[Swiftsure]({url})" if url else "Swiftsure",
        real_texts=not report["dataset"].startswith("synthetic-"),
    )
    with new_file(folder / CARD) as file:
        file.write(str(text).encode())


def score_lines(gold: dict) -> list[str]:
    """Return a line for each score of original and export by gold labels; none without gold labels."""
    original, export = gold.get("original", {}), gold.get("export", {})
    return [f"{name}: original {original[name]:.4f}, export {export[name]:.4f}" for name in original if name != "texts"]


def print_report(report: dict) -> None:
    print(f"largest difference of each text over its labels, {report['texts']} texts ({report['dataset']}):")
    print("  " + "  ".join(f"{name} {value:.3g}" for name, value in report["largest_difference"].items()))
    print(f"mean difference over all labels: {report['mean_over_labels']:.3g}")
    changed = f"{report['changed']:,} of {report['decisions']:,}, {report['flips']:.4%}"
    print(f"changed decisions (flips): {changed} ({report['decision_words']})")
    for line in score_lines(report["gold"]):
        print(f"on {report['gold']['original']['texts']:,} texts with gold labels, {line}")
    print(f"texts with NaN or infinite outputs: {report['non_finite_texts']}")
    speed = report["speed"]
    print(f"messages/s, end to end: export {speed['export']:.1f}, original {speed['original']:.1f}")
    for text in report["worst"]:
        print(f"\n  {text['excerpt']!r}")
        for label in text["labels"][:5]:
            values = f"{label['original']:8.4f} {label['export']:8.4f} {label['difference']:+.2g}"
            print(f"    {label['label']:<24} {values}")
    if not report["fp16_exercised"]:
        print("\nthe CPU computes this file in FP32 between casts: FP16 arithmetic was not checked")
