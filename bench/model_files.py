"""The files of a model and of an export: the only place that finds them, so that nothing outside the folder is read."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from bench.files import read_json
from utils import UserError, first_line

MANIFEST = "export.json"  # beside model.onnx: its model, its exporter and its files
SETTINGS = "config.json", "tokenizer_config.json", "special_tokens_map.json"
# every `vocab_files_names` in transformers
VOCABULARIES = "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "dict.txt", "prophetnet.tokenizer", "emoji.json"
VOCABULARIES += "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "tokenizer.model", "spm.model"
VOCABULARIES += "spm_char.model", "source.spm", "target.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json"
VOCABULARIES += "entity_vocab.json", "word_shape.json", "word_pronunciation.json", "normalizer.json", "byte_maps.json"
# of sentence-transformers: the list of a model's modules, its prompts, and the settings of its tokenizer
MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
TRANSFORMER_TYPES = "bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"
SENTENCE_SETTINGS = tuple(f"sentence_{name}_config.json" for name in TRANSFORMER_TYPES)
MODULE_KINDS = "Transformer", "Pooling", "Dense", "Normalize"
SMALL_FILES = *SETTINGS, "tokenizer.json", "added_tokens.json", "tekken.json", *VOCABULARIES
SMALL_FILES += MODULES, PROMPTS, *SENTENCE_SETTINGS
# also read, but without effect on the answers
OTHER_FILES = "README.md", "generation_config.json", "chat_template.jinja", "additional_chat_templates/*.jinja"
# in the order in which transformers looks for them
WEIGHTS = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
FILE_FIELDS = "file", "files", "spm", "vocab", "merges"  # the ends of names of settings that are files
# old versions of transformers saved where these came from; none is read
NOTES = "_name_or_path", "name_or_path", "special_tokens_map_file", "added_tokens_file"


def inside(folder: Path, name: object) -> Path:
    """Return the path of a file in a folder. Raises UserError if its name, or a link, leads out of the folder."""
    is_name = isinstance(name, str) and "\0" not in name and not os.path.isabs(name) and ".." not in Path(name).parts
    if is_name and is_inside(folder, folder / name):
        return folder / name
    raise UserError(f"{folder}: {name!r} is outside the folder, from which nothing is read; copy the file into it")


def is_inside(folder: Path, path: str | Path) -> bool:
    """True if a path leads into a folder, links followed.

    The links of a snapshot in the Hub's cache may lead to the blobs of the same repository.
    """
    base, file = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    roots = [base]
    for snapshot in (base, *base.parents):
        if snapshot.parent.name == "snapshots" and snapshot.parent.parent.name.startswith("models--"):
            roots.append(snapshot.parent.parent / "blobs")
    return any(file.is_relative_to(root) for root in roots)


def small_files(folder: Path) -> list[Path]:
    """Return the configs and the files of the tokenizer and of modules. Raises UserError if one leads elsewhere."""
    for pattern in OTHER_FILES:
        for file in folder.glob(pattern):
            inside(folder, str(file.relative_to(folder)))
    return [file for name in (*SMALL_FILES, *module_names(folder)) if (file := inside(folder, name)).is_file()]


def sentence_modules(folder: Path) -> list[tuple[str, str]]:
    """Return the kind and the subfolder of each module of a sentence-transformers model; empty for other models.

    Raises UserError for modules of other kinds: sentence-transformers would run code from the folder to load them.
    """
    file = inside(folder, MODULES)
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_bytes())
        entries = [(content[i]["type"], content[i]["path"]) for i in range(max(len(content), 1))]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{file} can't be read: {first_line(error)}") from error
    modules = []
    for kind, path in entries:
        known = re.fullmatch(rf"sentence_transformers(?:\.\w+)*\.({'|'.join(MODULE_KINDS)})", str(kind))
        if not known or (known[1] == "Transformer") != (path == ""):
            raise UserError(f"{file} has the module {kind!r} in {path!r}; only {', '.join(MODULE_KINDS)} are supported")
        inside(folder, path)
        modules.append((known[1], path))
    return modules


def module_names(folder: Path) -> list[str]:
    """Return the names of the files that the modules of a sentence-transformers model may have in subfolders."""
    names = "config.json", WEIGHTS[0], WEIGHTS[2]
    return [f"{path}/{name}" for _, path in sentence_modules(folder) if path for name in names]


def check_settings(folder: Path) -> None:
    """Raise UserError if a file of settings has transformers read other files than the folder's usual ones.

    An argument of a tokenizer's class, such as vocab_file, takes precedence over the file in the folder.
    """
    for name in SETTINGS:
        content = read_json(folder / name) if (folder / name).is_file() else {}
        for field in ("configuration_files", "fast_tokenizer_files"):
            if content.get(field):
                raise UserError(f"{folder}/{name} names files for some versions of transformers; remove its {field}")
        for field, value in nested_items(content):
            for text in value if isinstance(value, list) else [value]:
                if not isinstance(text, str) or "\0" in text or field in NOTES:
                    continue
                is_name = "/" in text or field.endswith(FILE_FIELDS)
                if is_name and os.path.exists(text) and not os.path.isdir(text) and not is_inside(folder, text):
                    raise UserError(f"{folder}/{name} names a file outside the folder, {text}; correct its {field}")


def weight_choices(folder: Path) -> Iterator[list[str]]:
    """Yield the names of the files from which transformers would load weights, an index with its shards.

    The first choice that exists is loaded. Raises UserError for a name that leads out of the folder.
    """
    named = read_json(folder / "config.json").get("transformers_weights")
    for name in WEIGHTS if named is None else [named]:
        file = inside(folder, name)
        if not name.endswith(".index.json"):
            yield [name]
        elif file.is_file():
            shards = read_json(file).get("weight_map")
            if not isinstance(shards, dict) or any(Path(str(shard)).name != shard for shard in shards.values()):
                raise UserError(f"{file} names weights outside the model's folder")
            yield [name, *sorted(set(shards.values()))]


def weight_files(folder: Path) -> list[Path]:
    """Return the files from which transformers loads weights; none if there are none. Raises UserError."""
    for names in list(weight_choices(folder)):
        files = [inside(folder, name) for name in names]
        if files[0].is_file():
            return [file for file in files if file.is_file()]
    return []


def model_files(folder: Path) -> list[Path]:
    """Return the files that transformers loads, which determine the answers. Raises UserError if one is elsewhere."""
    return sorted({*small_files(folder), *weight_files(folder)})


def check_weights(folder: Path) -> None:
    """Raise UserError if a folder has no weights that torch can load."""
    if weight_files(folder):
        return
    wanted = read_json(folder / "config.json").get("transformers_weights") or f"{WEIGHTS[0]} or {WEIGHTS[2]}"
    others = [file.name for file in folder.iterdir() if file.suffix in (".h5", ".msgpack", ".gguf", ".index")]
    found = f", only {others[0]}" if others else ""
    raise UserError(
        f"{folder} has no {wanted}{found}. Weights of TensorFlow (tf_model.h5), Flax or GGUF can't be used; "
        "load them with transformers, and save them again with save_pretrained"
    )


def export_files(folder: Path) -> list[Path]:
    """Return the files of an export: its manifest and those that this names, or model.onnx* without a manifest.

    Raises UserError if one is outside the folder.
    """
    manifest = read_json(folder / MANIFEST) if inside(folder, MANIFEST).is_file() else {}
    names = manifest.get("files", [file.name for file in folder.glob("model.onnx*")])
    if not isinstance(names, list):
        raise UserError(f"{folder}/{MANIFEST} is damaged: its files are not a list; export again")
    return sorted({inside(folder, name) for name in [*names, *([MANIFEST] if manifest else [])]})


def nested_items(value) -> Iterator[tuple[str, object]]:
    """Yield the names and values of a JSON object and of all objects in it."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nested_items(inner)
