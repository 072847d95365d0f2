"""A report -> the model card, from the template model_card.md."""

from pathlib import Path

from bench.export.select import EXPORT_KINDS
from bench.files import new_file
from bench.judge import NOT_WITHIN
from bench.naming import markdown
from bench.provenance import project_url
from utils import ROOT, first_line, say


def write_card(folder: Path, source: Path, report: dict) -> None:
    """Writes README.md into `folder`, with the licence, language and tags of the source's card."""
    from huggingface_hub import ModelCard, ModelCardData

    card, inherited = source / "README.md", ModelCardData()
    try:
        inherited = ModelCard.load(card).data if card.is_file() else inherited
    except Exception as error:  # YAML's, the Hub's, the file's: no reason to lose the export
        say(f"{card} can't be read, so the card has no licence, language and tags of it: {first_line(error)}")
    known = {key: getattr(inherited, key, None) for key in ("license", "language", "datasets")}
    data = ModelCardData(
        library_name="optimum",
        pipeline_tag=report["task"],
        tags=list(dict.fromkeys([*map(str, inherited.tags or []), "onnx", report["task"], report["precision"]])),
        **{key: value for key, value in known.items() if value},
    )
    model, link = report["model"], markdown(report["model"])
    if "/" in model:
        data.base_model = model
        data.base_model_relation = None if report["precision"] == "fp32" else "quantized"
        link = f"[{model}](https://huggingface.co/{model})"
    shown = {name: markdown(report[name]) for name in ("dataset", "column", "machine", "verdict", "reason")}
    shown["findings"] = [markdown(finding) for finding in report["findings"]]
    shown["worst"] = [
        {
            "excerpt": markdown(text["excerpt"]),
            "labels": [label | {"label": markdown(label["label"])} for label in text["labels"]],
        }
        for text in report["worst"]
    ]
    text = ModelCard.from_template(
        data,
        template_path=str(ROOT / "model_card.md"),
        **report | report["card"] | shown,
        failed=report["verdict"] == NOT_WITHIN,
        title=markdown(Path(report["repo"]).name),
        source=link,
        precision_words=EXPORT_KINDS[report["precision"]].description,
        scores=score_lines(report["gold"]),
        stats=report["largest_difference"],
        runtime='"onnxruntime-gpu[cuda,cudnn]"' if report["provider"] == "CUDAExecutionProvider" else "onnxruntime",
        project=f"[Swiftsure]({url})" if (url := project_url()) else "Swiftsure",
        real_texts=not report["dataset"].startswith("synthetic-"),
    )
    with new_file(folder / "README.md") as file:
        file.write(str(text).encode())


def score_lines(gold: dict) -> list[str]:
    """Says how well the decisions of original and export agree with gold labels; nothing where there are none."""
    if not gold:
        return []
    names = [name for name in gold["original"] if name != "texts"]
    return [f"{name}: original {gold['original'][name]:.4f}, export {gold['export'][name]:.4f}" for name in names]
