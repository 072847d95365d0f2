"""Model id -> local folder: a folder that is there, a download from the Hub, or random-roberta-base."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from bench.files import make_once
from bench.hub import download
from bench.texts import DATASETS, read_column, train_tokenizer
from bench.workers import in_fresh_process
from utils import CACHE, ROOT, UserError, first_line, say

RANDOM_MODEL = "random-roberta-base"
DEFAULT_MODEL = "SamLowe/roberta-base-go_emotions"
MODEL_FILES = ["*.json", "*.txt", "*.model", "README.md"]


def find_model(model_id: str) -> Path:
    """Returns the local folder of a model: `random-roberta-base`, a local folder, or what is downloaded of a Hub id.

    Raises UserError if there is no such model, if it has no sequence-classification head, or if it asks for code or
    weights from elsewhere.
    """
    if model_id == RANDOM_MODEL:
        return random_roberta_base()
    folder = Path(model_id)
    if not os.path.isdir(folder):  # unlike Path's, it takes a name that is too long for one that isn't there
        if os.path.exists(folder) or model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
            raise UserError(f"no model folder {model_id}")
        at_the_top = {"ignore_patterns": "*/*"}
        try:
            folder = download(model_id, allow_patterns=[*MODEL_FILES, "*.safetensors"], **at_the_top)
            if not any(folder.glob("*.safetensors")):  # pickles, which torch reads as weights only
                folder = download(model_id, allow_patterns="*.bin", **at_the_top)
        except UserError as error:
            raise type(error)(f"{error}; name a local folder or {RANDOM_MODEL} instead") from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model's folder: it has no config.json")
    config = read_json(folder / "config.json")
    check_origin(folder, config)
    heads = config.get("architectures") or []
    if not isinstance(config.get("model_type"), str) or not isinstance(heads, list):
        # transformers would guess a missing type from the folder's name
        raise UserError(f"{folder}/config.json has no model_type, or its architectures are not a list")
    if heads and not any(str(head).endswith("ForSequenceClassification") for head in heads):
        raise UserError(f"{model_id} has no sequence-classification head, it is a {', '.join(map(str, heads))}")
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


def read_json(file: Path) -> dict:
    """Reads the object in a JSON file. Raises UserError if there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} can't be read: it holds a {type(content).__name__}, not an object")
    return content


def load_config(folder: Path):
    """Loads the transformers config of a model's folder; never runs code that a model brings. Raises UserError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each of its fields can be wrong in a way of its own
        raise UserError(f"{folder}/config.json can't be used: {first_line(error)}") from error


def random_roberta_base() -> Path:
    """Returns the folder of `random-roberta-base`, built once: RoBERTa-base's architecture with seeded random weights,
    and a byte-level BPE tokenizer trained on the bundled texts.

    Speed doesn't depend on the weights. They are spread so that parity means something: probabilities vary from text
    to text (the attention's value path is 3 times its usual width), most labels are improbable and about 1 in 100 is
    above 0.5, as in a trained classifier of 28 emotions (the head is 8 times as wide, around -4).
    """
    folder = CACHE / RANDOM_MODEL
    if not folder.exists():
        say(f"building {RANDOM_MODEL} in {folder}")
    make_once(folder, lambda temporary: in_fresh_process(build_random_roberta_base, temporary))
    return folder


def build_random_roberta_base(folder: Path) -> None:
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizerFast

    files = [ROOT / "data" / bundled for _, bundled in DATASETS.values()]
    tokenizer = train_tokenizer([text for file in files for text in read_column(file, "body")])
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        num_labels=28,
        problem_type="multi_label_classification",
    )
    model = RobertaForSequenceClassification(config)
    with torch.no_grad():
        for layer in model.roberta.encoder.layer:
            layer.attention.self.value.weight *= 3
            layer.attention.output.dense.weight *= 3
        model.classifier.out_proj.weight *= 8
        model.classifier.out_proj.bias -= 4
    model.save_pretrained(folder)
    tokenizer.save_model(str(folder))
    RobertaTokenizerFast.from_pretrained(folder, add_prefix_space=True, model_max_length=512).save_pretrained(folder)
