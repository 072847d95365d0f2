"""The files of sentence-transformers beside the encoder's: settings of the tokenizer, and what an export needs."""

import json
import shutil
from pathlib import Path

from bench.files import read_json
from bench.model_files import MODULES, PROMPTS, SENTENCE_SETTINGS, inside, module_names, sentence_modules
from utils import UserError

APPLIED_SETTINGS = "max_seq_length", "do_lower_case"
# values with which a module takes texts and returns the encoder's last hidden states; other settings must be null
OTHER_SETTINGS = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
# modules.json of an exported plain encoder
PLAIN_MODULES = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (path, kind) in enumerate({"": "Transformer", "1_Pooling": "Pooling"}.items())
]


def sentence_settings(folder: Path) -> dict:
    """Return the settings of a model's tokenizer. Raises UserError for unsupported ones.

    They are empty for a folder without modules.json, for which sentence-transformers does not read them.
    """
    files = [file for name in SENTENCE_SETTINGS if (file := inside(folder, name)).is_file()]
    settings = read_json(files[0]) if files and sentence_modules(folder) else {}
    for name, value in settings.items():
        if name not in APPLIED_SETTINGS and value != OTHER_SETTINGS.get(name):
            raise UserError(f"{files[0]} sets {name} to {value!r}, which is not supported")
    return settings


def cross_encoder_settings(folder: Path) -> dict:
    """Return what sentence-transformers 5.7 saves about a CrossEncoder beside its config.json; empty for others."""
    file = inside(folder, PROMPTS)
    about = read_json(file) if file.is_file() else {}
    return about if about.get("model_type") == "CrossEncoder" else {}


def check_limit(config, folder: Path) -> None:
    """Raise UserError if `max_seq_length` is above the model's positions, to which encode() does not truncate."""
    limit, positions = sentence_settings(folder).get("max_seq_length"), getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and isinstance(positions, int) and limit > positions >= 0:
        raise UserError(f"{folder}: max_seq_length {limit} is above max_position_embeddings {positions}; lower it")


def read_defaults(folder: Path) -> dict:
    """Return the prompts and the defaults of encode()'s options; empty for a plain encoder. Raises UserError."""
    file = folder / PROMPTS
    about = read_json(file) if file.is_file() and sentence_modules(folder) else {}
    if (kind := about.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise UserError(f"{file} has the model_type {kind}; only SentenceTransformer is supported")
    prompts, default = about.get("prompts", {}), about.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise UserError(f"{file}: prompts is not an object of texts; correct it")
    if default is not None and default not in list(prompts):
        raise UserError(f"{file}: default_prompt_name {default!r} is not in its prompts; correct it")
    return about


def set_up_tokenizer(tokenizer, folder: Path) -> None:
    """Apply `max_seq_length` and `do_lower_case` to a tokenizer, as sentence-transformers does.

    Raises UserError for a chat template, in which sentence-transformers would wrap each text.
    """
    settings = sentence_settings(folder)
    if tokenizer.chat_template and "modality_config" not in settings:
        raise UserError(f"{folder}: the tokenizer's chat_template is not supported for embeddings; remove it")
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
        from sentence_transformers.sentence_transformer.modules import Pooling

        (target / "1_Pooling").mkdir()
        Pooling(model.task.dims, model.task.pooling).save(str(target / "1_Pooling"))
        (target / MODULES).write_text(json.dumps(PLAIN_MODULES))
        return
    for name in (MODULES, PROMPTS, *SENTENCE_SETTINGS, *module_names(model.folder)):
        if (file := inside(model.folder, name)).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / name)
