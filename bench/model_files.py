"""The files of a model and of an export: the only place that finds them, so that nothing outside the folder is read."""

import json
import os
import re
from collections.abc import Iterable, Iterator
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
GRAPHS = "model.onnx", "model_optimized.onnx", "onnx/model.onnx"  # ONNX files, as exporters name them
# what loading an export reads
GRAPH = re.compile(r"model(_optimized)?\.onnx([._]data(_\d+)?)?")
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
    known = [os.path.realpath(file) for file in model_files(folder)]
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
                if is_name and os.path.exists(text) and not os.path.isdir(text) and os.path.realpath(text) not in known:
                    raise UserError(f"{folder}/{name} names an unusual file, {text}; remove its {field}")


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
    """Return the files from which transformers loads weights, or without any an ONNX file and its data, in this order.

    Empty if there are neither. Raises UserError if a file is outside the folder, or see graph_names.
    """
    for names in list(weight_choices(folder)):
        files = [inside(folder, name) for name in names]
        if files[0].is_file():
            return [file for file in files if file.is_file()]
    return [file for name in graph_names(folder, file_names(folder)) if (file := inside(folder, name)).is_file()]


def file_names(folder: Path) -> list[str]:
    """Return the names of the files that may be a model's ONNX file or its data, below `folder`."""
    return [str(file.relative_to(folder)) for pattern in ("*.onnx*", "onnx/*.onnx*") for file in folder.glob(pattern)]


def graph_names(folder: Path, names: Iterable[str]) -> list[str]:
    """Return which of a model's files are its ONNX file and the data beside it, in this order; empty without ONNX.

    Only data with a name like model.onnx_data or model.onnx.data counts. If there are several ONNX files, it is the one
    that MANIFEST names. Raises UserError if that leaves several, or one with a name that GRAPHS lacks.
    """
    names = sorted(names)
    graphs = [name for name in names if name.endswith(".onnx") and name.removeprefix("onnx/").count("/") == 0]
    listed = manifest_names(folder)
    chosen = [name for name in graphs if listed is None or name in listed]
    if not graphs:
        return []
    if len(chosen) != 1 or chosen[0] not in GRAPHS:
        raise UserError(
            f"{folder} holds only ONNX, and it is unclear which file to use: {', '.join(graphs)}. Copy one, as "
            f"{GRAPHS[0]}, into a folder of its own with config.json and the tokenizer, and use that folder"
        )
    return [name for name in names if re.fullmatch(rf"{re.escape(chosen[0])}([._]data(_\d+)?)?", name)]


def model_files(folder: Path) -> list[Path]:
    """Return all files that determine the answers: those that transformers loads, or an ONNX file with its tokenizer.

    Raises UserError if one is elsewhere.
    """
    return sorted({*small_files(folder), *weight_files(folder)})


def check_weights(folder: Path) -> None:
    """Raise UserError if a folder has neither weights that torch can load nor an ONNX file."""
    if weight_files(folder):
        return
    wanted = read_json(folder / "config.json").get("transformers_weights") or f"{WEIGHTS[0]} or {WEIGHTS[2]}"
    others = [file.name for file in folder.iterdir() if file.suffix in (".h5", ".msgpack", ".gguf", ".index")]
    found = f", only {others[0]}" if others else ""
    raise UserError(
        f"{folder} has no {wanted} or {GRAPHS[0]}{found}. Weights of TensorFlow (tf_model.h5), Flax or GGUF can't be "
        "used; load them with transformers, and save them again with save_pretrained"
    )


def export_files(folder: Path) -> list[Path]:
    """Return the files of an export: its ONNX file and the data beside it, its manifest, and what this names.

    If there is no model.onnx, it is model_optimized.onnx*. Raises UserError if one is outside the folder.
    """
    names = manifest_names(folder) or []
    found = [file.name for file in folder.glob("model*.onnx*") if GRAPH.fullmatch(file.name)]
    if any(name.startswith(GRAPHS[0]) for name in found):
        found = [name for name in found if name.startswith(GRAPHS[0])]
    manifest = [MANIFEST] if (folder / MANIFEST).is_file() else []
    return sorted({inside(folder, name) for name in [*names, *found, *manifest]})


def manifest_names(folder: Path) -> list | None:
    """Return the files that an export's MANIFEST names; None without a manifest, or if it names none."""
    names = read_json(folder / MANIFEST).get("files") if inside(folder, MANIFEST).is_file() else None
    if not isinstance(names, list | None):
        raise UserError(f"{folder}/{MANIFEST} is damaged: its files are not a list; export again")
    return names


def graph_of(folder: Path) -> Path:
    """Return the ONNX file of an export, `folder`/model.onnx unless it has another name."""
    return next((file for file in export_files(folder) if file.suffix == ".onnx"), folder / GRAPHS[0])


def nested_items(value) -> Iterator[tuple[str, object]]:
    """Yield the names and values of a JSON object and of all objects in it."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nested_items(inner)
