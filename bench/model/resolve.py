"""Model id -> Model: a local folder, a download from the Hub, or random-roberta-base."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.files import read_json
from bench.model.hub import download
from bench.model.model import SMALL_FILES, WEIGHTS, Model
from bench.model.random_model import RANDOM_MODEL, random_roberta_base
from bench.model.tasks import choose_task
from bench.processes import run_in_subprocess
from bench.tables.storage import check_not_lfs_pointer, locate
from utils import UserError

DEFAULT_MODEL = "SamLowe/roberta-base-go_emotions"


def open_model(model_id: str, call: Callable = run_in_subprocess) -> Model:
    """Open a model, see resolve_model and Model.from_folder, in the process that `call` runs functions in."""
    return call(Model.from_folder, resolve_model(model_id), model_id)


def resolve_model(model_id: str) -> Path:
    """Return the local folder of a model: `random-roberta-base`, a local folder, or the download of a Hub id.

    Raises UserError if there is no such model, if its task is unknown, or if it asks for code or weights from
    elsewhere.
    """
    if model_id == RANDOM_MODEL:
        return random_roberta_base()
    folder = Path(model_id)
    if not os.path.isdir(folder):  # unlike Path.is_dir, False for a name that is too long
        if os.path.exists(folder) or model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
            raise UserError(f"there is no model folder {model_id}")
        at_the_top = {"ignore_patterns": "*/*"}
        patterns = [*(f"*{suffix}" for suffix in SMALL_FILES), "*.safetensors", "README.md"]
        try:
            folder = download(model_id, allow_patterns=patterns, **at_the_top)
            if not any(folder.glob("*.safetensors")):  # pickles: torch reads them as weights only
                folder = download(model_id, allow_patterns="*.bin", **at_the_top)
        except UserError as error:
            raise type(error)(f"{error}; use a local folder or {RANDOM_MODEL} instead") from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json")
    for file in folder.iterdir():
        if file.suffix in (*SMALL_FILES, *WEIGHTS) and file.is_file():
            check_not_lfs_pointer(locate(file))
    config = read_json(folder / "config.json")
    check_origin(folder, config)
    heads = config.get("architectures") or []
    if not isinstance(config.get("model_type"), str) or not isinstance(heads, list):
        # transformers would guess a missing type from the folder's name
        raise UserError(f"{folder}/config.json lacks model_type, or its architectures are not a list")
    choose_task(config, model_id)
    return folder


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
        if name == "quantization_config" and value is not None:
            raise UserError(f"{folder} is quantized; use the FP32 original, with which answers are compared")
    for index in folder.glob("*.index.json"):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or any(Path(str(shard)).name != shard for shard in shards.values()):
            raise UserError(f"{index} names weights outside the model's folder")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} is an adapter; merge it into its base model first")


def nested_items(value) -> Iterator[tuple[str, object]]:
    """Yield the names and values of a JSON object and of all objects in it."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nested_items(inner)
