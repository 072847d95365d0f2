"""The files of sentence-transformers beside the encoder's: settings of the tokenizer, and what an export needs."""

import json
import shutil
from pathlib import Path

from bench.files import read_json
from bench.model_files import MODULES, PROMPTS, SENTENCE_SETTINGS, inside, module_names
from utils import UserError

# settings that are applied here, and those that only say that the model takes texts; others could read other files
KNOWN_SETTINGS = {"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"}
# modules.json of an exported plain encoder
PLAIN_MODULES = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (path, kind) in enumerate({"": "Transformer", "1_Pooling": "Pooling"}.items())
]


def sentence_settings(folder: Path) -> dict:
    """Return a model's settings of its tokenizer; empty if it has none. Raises UserError for unknown ones."""
    files = [file for name in SENTENCE_SETTINGS if (file := inside(folder, name)).is_file()]
    settings = read_json(files[0]) if files else {}
    if unknown := sorted(settings.keys() - KNOWN_SETTINGS):
        raise UserError(f"{files[0]} has the setting {unknown[0]}, which is not supported")
    return settings


def cross_encoder_settings(folder: Path) -> dict:
    """Return what sentence-transformers 5.7 saves about a CrossEncoder beside its config.json; empty for others."""
    file = inside(folder, PROMPTS)
    about = read_json(file) if file.is_file() else {}
    return about if about.get("model_type") == "CrossEncoder" else {}


def set_up_tokenizer(tokenizer, folder: Path) -> None:
    """Apply `max_seq_length` and `do_lower_case` to a tokenizer, as sentence-transformers does."""
    settings = sentence_settings(folder)
    if settings.get("max_seq_length") is not None:
        tokenizer.model_max_length = settings["max_seq_length"]
    if not settings.get("do_lower_case"):
        return
    if not tokenizer.is_fast:
        tokenizer.do_lower_case = True
        return
    from tokenizers.normalizers import Lowercase, Sequence

    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])


def save_files(model, target: Path) -> None:
    """Save what sentence-transformers needs to load an export with the model's pooling."""
    if model.task.is_plain:
        from bench.model.sentence import load_head

        head, _ = load_head(model.folder, model.task.dims, model.task.pooling)
        (target / "1_Pooling").mkdir()
        head[0].save(str(target / "1_Pooling"))
        (target / MODULES).write_text(json.dumps(PLAIN_MODULES))
    for name in (MODULES, PROMPTS, *SENTENCE_SETTINGS, *module_names(model.folder)):
        if (file := inside(model.folder, name)).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copy(file, target / name)
