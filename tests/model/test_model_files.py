"""Only files in a model's folder are read, and its id covers those that transformers loads."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import transformers
from conftest import refused

from bench.model.model import Model
from bench.model.resolve import resolve_model
from bench.model_files import model_files

pytestmark = pytest.mark.usefixtures("in_this_process")

watchers: list[set[Path]] = []


def note_opened(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes | Path):
        for seen in watchers:
            seen.add(Path(os.fsdecode(arguments[0])))


sys.addaudithook(note_opened)  # for the life of the process


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model, beside another one, `other`, with other weights and another tokenizer."""
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-4] + weights[-8:-4])
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    (other / "template.jinja").write_text("a secret")
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def logits(folder: Path):
    import torch

    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    return network(torch.tensor([[0, 5, 2]])).logits


def tokens(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder)("A TEXT")["input_ids"]


def weights_elsewhere(folder: Path) -> None:
    change_json(folder / "config.json", transformers_weights="../other/model.safetensors")


def tokenizer_elsewhere(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", tokenizer_file=str(folder.parent / "other" / "tokenizer.json"))


def tokenizer_in_the_special_tokens(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    file = str(folder.parent / "other" / "tokenizer.json")
    (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<unk>", "tokenizer_file": file}))


def another_config(folder: Path) -> None:
    """The checks read config.json, and transformers the other file."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.4.0.0.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    change_json(folder / "config.json", configuration_files=["config.4.0.0.json"])


def another_tokenizer(folder: Path) -> None:
    shutil.copy(folder.parent / "other" / "tokenizer.json", folder / "tokenizer.4.0.0.json")
    change_json(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])


def another_vocabulary_in_the_folder(folder: Path) -> None:
    """The id of the weights does not cover it."""
    (folder / "tokenizer.json").unlink()
    vocabulary = json.loads((folder / "vocab.json").read_text())
    swapped = dict(zip(vocabulary, [*list(vocabulary.values())[:9], *list(vocabulary.values())[:8:-1]], strict=True))
    (folder / "evil.txt").write_text(json.dumps(swapped))
    change_json(folder / "tokenizer_config.json", vocab_file=str(folder / "evil.txt"))


ELSEWHERE = {
    another_vocabulary_in_the_folder: (tokens, "tokenizer_config.json"),
    weights_elsewhere: (logits, None),
    tokenizer_elsewhere: (tokens, "tokenizer_config.json"),
    tokenizer_in_the_special_tokens: (tokens, "special_tokens_map.json"),
    another_config: (logits, "config.json"),
    another_tokenizer: (tokens, "tokenizer_config.json"),
}


@pytest.mark.parametrize("change", ELSEWHERE, ids=lambda change: change.__name__)
def test_a_file_that_a_setting_names_is_refused(change, folder):
    observe, names = ELSEWHERE[change]
    before = observe(folder)
    change(folder)
    if transformers.__version__ < "5":  # which refuses some of them, and does not read others
        after = observe(folder)
        same = before == after if isinstance(before, list) else before.equal(after)
        assert not same, "the test proves nothing if transformers doesn't read it"
    message = refused(resolve_model, str(folder))
    assert (f"{folder}/{names}" if names else str(folder)) in message


def test_paths_that_nothing_reads_are_accepted(folder):
    other = str(folder.parent / "other" / "tokenizer.json")
    change_json(folder / "config.json", _name_or_path=other)
    change_json(folder / "tokenizer_config.json", name_or_path=other, special_tokens_map_file=other)
    change_json(folder / "tokenizer_config.json", a_note="/home/nobody/model/vocab.txt")
    assert resolve_model(str(folder)) == folder


LINKS = "config.json", "tokenizer.json", "vocab.json", "model.safetensors", "chat_template.jinja", "README.md"


@pytest.mark.parametrize("name", [*LINKS, "additional_chat_templates/x.jinja", "additional_chat_templates"])
def test_a_link_out_of_the_folder_is_refused(name, folder):
    """transformers copies a chat template into an export."""
    target = folder.parent / "other" / name
    if not target.exists():
        target = folder.parent / "other" / ("template.jinja" if "." in name else "")
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(target)
    message = refused(resolve_model, str(folder))
    assert name in message and str(folder) in message


def test_links_within_the_folder_and_a_link_to_the_folder_are_followed(folder):
    (folder / "kept").mkdir()
    (folder / "model.safetensors").rename(folder / "kept" / "weights")
    (folder / "model.safetensors").symlink_to("kept/weights")
    (folder.parent / "link").symlink_to(folder)
    assert resolve_model(str(folder.parent / "link")) == folder.parent / "link"


def test_a_link_from_the_hubs_cache_may_lead_to_its_blobs_only(folder, tmp_path):
    blobs, snapshot = tmp_path / "models--ann--x" / "blobs", tmp_path / "models--ann--x" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copy(file, blobs / f"1-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/1-{file.name}")
    assert resolve_model(str(snapshot)) == snapshot
    (snapshot / "vocab.json").unlink()
    (snapshot / "vocab.json").symlink_to(folder / "vocab.json")
    assert "vocab.json" in refused(resolve_model, str(snapshot))


def test_the_id_covers_what_transformers_opens_and_nothing_else(folder):
    for name in ("log.txt", "thresholds.json", "trainer_state.json", "training_args.bin", "model.fp16.safetensors"):
        (folder / name).write_text("{}")
    (folder / "pytorch_model.bin").write_text("older weights")
    watchers.append(set())
    logits(folder), tokens(folder)
    read = {file.name for file in watchers.pop() if file.parent == folder}
    listed = {file.name for file in model_files(folder)}
    assert "config.json" in read and read <= listed, "safetensors are opened in Rust"
    assert listed - read <= {
        "model.safetensors",
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
    }
    model = Model.from_folder(folder, "x")
    for name in ("log.txt", "thresholds.json", "pytorch_model.bin", "README.md", "new.json"):
        (folder / name).write_text("changed")
    model.check_unchanged()
    for name in listed:
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before + b"\n")
        with pytest.raises(Exception, match="changed"):
            model.check_unchanged()
        (folder / name).write_bytes(before)
    model.check_unchanged()


def test_weights_in_a_subfolder_count_if_the_config_names_them(folder):
    (folder / "sub").mkdir()
    shutil.move(folder / "model.safetensors", folder / "sub" / "w.safetensors")
    change_json(folder / "config.json", transformers_weights="sub/w.safetensors")
    assert resolve_model(str(folder)) == folder
    before = Model.from_folder(folder, "x").weights_id
    assert logits(folder).shape == (1, 5)
    shutil.copy(folder.parent / "other" / "model.safetensors", folder / "sub" / "w.safetensors")
    assert Model.from_folder(folder, "x").weights_id != before


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack"])
def test_weights_of_another_framework_are_named(name, folder):
    (folder / "model.safetensors").rename(folder / name)
    message = refused(resolve_model, str(folder))
    assert name in message and "from_tf" not in message


def test_the_tokenizers_of_transformers_name_no_other_files():
    from bench.model_files import SMALL_FILES

    names = set()
    for file in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        text = file.read_text()
        for block in text.split("VOCAB_FILES_NAMES = {")[1:]:
            names |= {part.split('"')[1] for part in block.split("}")[0].split(":")[1:] if '"' in part.split(",")[0]}
    assert len(names) > 10 and names <= set(SMALL_FILES), names - set(SMALL_FILES)
