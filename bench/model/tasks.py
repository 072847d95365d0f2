"""The tasks there are, and which of them a model is for."""

from pathlib import Path

from bench.model.classification import REGRESSION, Classification
from bench.model.embedding import Embedding
from bench.model.pairs import Pairs
from bench.model.sentence_files import cross_encoder_settings
from bench.model.task import Task
from bench.model.zero_shot import ZeroShot
from bench.model_files import PROMPTS, sentence_modules
from utils import UserError

TASKS = {"classification": Classification, "embedding": Embedding, "pairs": Pairs, "zero-shot": ZeroShot}


def choose_task(folder: Path, config: dict, model_id: str, name: str | None = None) -> type[Task]:
    """Return the task of a model by its modules.json and the content of its config.json, or the task with this name."""
    if name == "embedding" or (not name and any(kind == "Pooling" for kind, _ in sentence_modules(folder))):
        return Embedding
    if not name and (sign := sign_of_pairs(folder, config)):
        raise UserError(
            f"{model_id} compares two texts, to judge by {sign}. Name the second text's column with "
            "--pair-column, or labels with --candidate-labels. If it labels single texts, add --task classification"
        )
    architectures = config.get("architectures")
    candidates = [TASKS[name]] if name else list(TASKS.values())
    if not architectures:  # as in some older models
        return candidates[0]
    if matching := [task for task in candidates if task.matches(config)]:
        return matching[0]
    message = f"{model_id} is a {', '.join(map(str, architectures))}, not a ...{Classification.class_suffix}"
    raise UserError(f"{message}; for the vectors of an encoder use --task embedding, or embed_texts.py")


def sign_of_pairs(folder: Path, config: dict) -> str:
    """Return what tells that a model is for NLI or a reranker, which take two texts; empty for other models."""
    for name in ("sentence_transformers", "sbert_ce_default_activation_function"):
        if config.get(name) is not None:
            return f"{name} in config.json"
    if cross_encoder_settings(folder):
        return f"model_type in {PROMPTS}"
    labels = []
    if isinstance(config.get("id2label"), dict):
        labels = [str(label).strip() for label in config["id2label"].values()]
    if entailment := [label for label in labels if label.lower().startswith("entail")]:
        return f"the label {entailment[0]} in config.json"
    is_single = labels == ["LABEL_0"] or (not labels and config.get("num_labels") == 1)
    return "its only label, LABEL_0" if is_single and config.get("problem_type") != REGRESSION else ""
