"""Model id -> Model: a folder that is there, a download from the Hub, or random-roberta-base."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.files import read_json
from bench.model.hub import download
from bench.model.model import SMALL_FILES, WEIGHTS, Model
from bench.model.random_model import RANDOM_MODEL, random_roberta_base
from bench.model.tasks import choose_task
from bench.processes import run_in_subprocess
from bench.tables.storage import check_no_pointer, locate
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
    if not os.path.isdir(folder):  # unlike Path's, it takes a name that is too long for one that isn't there
        if os.path.exists(folder) or model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
            raise UserError(f"no model folder {model_id}")
        at_the_top = {"ignore_patterns": "*/*"}
        patterns = [*(f"*{suffix}" for suffix in SMALL_FILES), "*.safetensors", "README.md"]
        try:
            folder = download(model_id, allow_patterns=patterns, **at_the_top)
            if not any(folder.glob("*.safetensors")):  # pickles, which torch reads as weights only
                folder = download(model_id, allow_patterns="*.bin", **at_the_top)
        except UserError as error:
            raise type(error)(f"{error}; name a local folder or {RANDOM_MODEL} instead") from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model's folder: it has no config.json")
    for file in folder.iterdir():
        if file.suffix in (*SMALL_FILES, *WEIGHTS) and file.is_file():
            check_no_pointer(locate(file))
    config = read_json(folder / "config.json")
    check_origin(folder, config)
    heads = config.get("architectures") or []
    if not isinstance(config.get("model_type"), str) or not isinstance(heads, list):
        # transformers would guess a missing type from the folder's name
        raise UserError(f"{folder}/config.json has no model_type, or its architectures are not a list")
    choose_task(heads, model_id)
    return folder


def check_origin(folder: Path, config: dict) -> None:
    """Raises UserError where transformers would run code from elsewhere, or load other weights than the folder's.

    trust_remote_code=False stops `auto_map` alone: the name of an attention can be a kernel's on the Hub, some kinds of
    quantization fetch kernels too, and an adapter names the model that is loaded in the folder's place.
    """
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if file.is_file() and "auto_map" in read_json(file):
            raise UserError(f"{folder} needs code of its own (auto_map in {file.name}), which is never run here")
    for name, value in nested_items(config):
        if "attn_implementation" in name and value not in (None, "eager", "sdpa"):
            raise UserError(f"{folder}/config.json asks for the attention {value!r}: only eager and sdpa are run here")
        if name == "quantization_config" and value is not None:
            raise UserError(f"{folder} is quantized, so there is no FP32 original to compare with")
    for index in folder.glob("*.index.json"):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or any(Path(str(shard)).name != shard for shard in shards.values()):
            raise UserError(f"{index} names weights that are not in the model's folder")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} is an adapter of another model: merge the two first")


def nested_items(value) -> Iterator[tuple[str, object]]:
    """Yields the names and values of an object from JSON and of all objects in it."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nested_items(inner)
