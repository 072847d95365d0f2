"""Model id -> Model: a local folder, a download from the Hub, or random-roberta-base."""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from bench.files import read_json
from bench.model.hub import download, list_files
from bench.model.model import Model
from bench.model.random_model import RANDOM_MODEL, random_roberta_base
from bench.model.tasks import choose_task
from bench.model_files import (
    MANIFEST,
    SMALL_FILES,
    WEIGHTS,
    check_settings,
    check_weights,
    file_names,
    graph_names,
    module_names,
    nested_items,
    small_files,
    weight_choices,
    weight_files,
)
from bench.options import hub_name
from bench.processes import error_summary, run_in_subprocess
from bench.tables.storage import check_not_lfs_pointer, locate
from bench.variants import REPORT
from utils import UserError

MOST = 100_000  # labels or layers: transformers makes lists of them when it reads a config
DEFAULT_MODEL = "SamLowe/roberta-base-go_emotions"


def open_model(
    model_id: str,
    call: Callable = run_in_subprocess,
    task: str | None = None,
    original: str | None = None,
    options: dict | None = None,
) -> Model:
    """Open a model, see resolve_model and Model.from_folder, in the process that `call` runs functions in.

    `original`: the model to compare with, see Model.with_original; `options`: see Task.with_options.
    """
    model_id = hub_name(model_id)
    model = call(read_model, resolve_model(model_id, task), model_id, task, options)
    return model.with_original(open_model(original, call, task, options=options)) if original else model


def read_model(folder: Path, *arguments) -> Model:
    """Call Model.from_folder. Raises UserError for whatever a setting of another type leads to."""
    try:
        return Model.from_folder(folder, *arguments)
    except UserError:
        raise
    except Exception as error:
        message = f"{error_summary(error)}; correct config.json or tokenizer_config.json"
        raise UserError(f"{folder} can't be used: {message}") from error


def resolve_model(model_id: str, task: str | None = None) -> Path:
    """Return the local folder of a model: `random-roberta-base`, a local folder, or the download of a Hub id.

    Raises UserError if there is no such model, if it is not for the `task` (see choose_task), or if it asks for code or
    files from elsewhere.
    """
    if model_id == RANDOM_MODEL:
        return random_roberta_base()
    folder = Path(model_id)
    if not os.path.isdir(folder):  # unlike Path.is_dir, False for a name that is too long
        repo, _, revision = hub_name(model_id).partition("@")
        if os.path.exists(folder) or model_id.startswith((".", "/", "~")) or repo.count("/") > 1:
            raise UserError(f"there is no model folder {model_id}")
        try:
            folder = download_model(repo, unquote(revision))
        except UserError as error:
            raise type(error)(f"there is no folder {folder}, and {error}; or use {RANDOM_MODEL}") from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json")
    for file in small_files(folder):
        check_not_lfs_pointer(locate(file))
    config = read_json(folder / "config.json")
    check_origin(folder, config)
    heads = config.get("architectures") or []
    if not isinstance(config.get("model_type"), str) or not isinstance(heads, list):
        # transformers would guess a missing type from the folder's name
        raise UserError(f"{folder}/config.json lacks model_type, or its architectures are not a list")
    choose_task(folder, config, model_id, task)
    check_weights(folder)
    for file in weight_files(folder):
        check_not_lfs_pointer(locate(file))
    return folder


def download_model(repo: str, revision: str) -> Path:
    """Download what transformers would load; a pickle only if there is nothing else, else ONNX. Raises UserError."""
    folder = download(repo, [*SMALL_FILES, *WEIGHTS[:2], WEIGHTS[3], MANIFEST, REPORT, "README.md"], revision)
    if names := module_names(folder):
        folder = download(repo, names, revision)
    if not (folder / "config.json").is_file():
        return folder
    for names in weight_choices(folder):
        if names != [WEIGHTS[0]]:
            folder = download(repo, names, revision)
        if all((folder / name).is_file() for name in names):
            return folder
    names = graph_names(folder, list_files(repo, revision) or file_names(folder))
    return download(repo, names, revision) if names else folder


def check_origin(folder: Path, config: dict) -> None:
    """Raise UserError if transformers would execute code from elsewhere, or load other weights than the folder's.

    trust_remote_code=False stops only `auto_map`: the name of an attention can be a kernel's on the Hub, some kinds of
    quantization fetch kernels too, and an adapter names the model that is loaded instead of the folder's.
    """
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if file.is_file() and "auto_map" in read_json(file):
            raise UserError(f"{folder} needs custom code (auto_map in {file.name}), which is never executed")
    for name, value in nested_items(config):
        if "attn_implementation" in name and value not in (None, "eager", "sdpa"):
            raise UserError(f"{folder}/config.json asks for the attention {value!r}; only eager and sdpa are allowed")
        if name.endswith(("num_labels", "_layer", "_layers")) and isinstance(value, int | float) and value > MOST:
            raise UserError(f"{folder}/config.json: {name} is {value}, more than {MOST}; correct it")
        if name == "quantization_config" and value is not None:
            raise UserError(f"{folder} is quantized; use the FP32 original, with which answers are compared")
    check_settings(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} is an adapter; merge it into its base model first")
