"""A model's config: whether this version of transformers understands it, and what follows from it for its inputs."""

from collections.abc import Container
from pathlib import Path

from bench.files import read_json
from utils import UserError, clean, first_line, say

# types whose answers change with padding although they are told where it is: found by tests/test_awkward_texts.py
SPOILT_BY_PADDING = {"convbert", "doge", "funnel", "nystromformer", "t5gemma", "yoso"}
# of every config, but not in a default one
COMMON_FIELDS = {"_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type", "torch_dtype"}
COMMON_FIELDS |= {"model_type", "transformers_version", "num_labels"}


def load_config(folder: Path):
    """Loads the transformers config of a model's folder; never runs code that a model brings.

    Raises UserError if it can't be used, or if a newer transformers saved it with fields that this one would pass over.
    """
    from transformers import AutoConfig

    newer = saved_by(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each of its fields can be wrong in a way of its own
        raise UserError(f"{folder}/config.json can't be used: {first_line(error)}{newer}") from error
    if newer:
        known = {*type(config)().to_dict(), *config.attribute_map, *COMMON_FIELDS}
        if unknown := sorted(read_json(folder / "config.json").keys() - known):
            raise UserError(f"{folder}/config.json has {', '.join(unknown)}, which is not known here{newer}")
    return config


def saved_by(folder: Path) -> str:
    """Says which transformers saved a model, if it was a newer one than is installed."""
    import transformers
    from packaging.version import InvalidVersion, Version

    saved, installed = read_json(folder / "config.json").get("transformers_version"), transformers.__version__
    try:
        if Version(str(saved)) <= Version(installed):
            return ""
    except InvalidVersion:
        return ""
    which = "requirements-transformers5.txt" if Version(installed).major < 5 <= Version(saved).major else "that version"
    return f" (transformers {saved} saved it, {installed} is installed: install {which})"


def sparse_attention(config) -> bool:
    """Says whether a model has BigBird's attention, which the first short text switches to full attention for good."""
    return getattr(config, "attention_type", None) == "block_sparse"


def resolve_pad_values(config, tokenizer, accepted: Container[str]) -> dict[str, int]:
    """Return the model's inputs by name, each with its padding value.

    These are the names that the tokenizer gives and the forward pass accepts, as in `model(**tokenizer(text))`. Padding
    is the config's token, by which some models find the end of a text. Raises UserError for a model that can't find it
    that way.
    """
    kind, about = config.model_type, text_config(config)
    if about.pad_token_id is None and "past_key_values" in accepted and not config.is_encoder_decoder:
        raise UserError(f"this {kind} has no pad_token_id, which it needs to find the end of each text")
    padding = (tokenizer.pad_token_id or 0) if about.pad_token_id is None else about.pad_token_id
    size = getattr(about, "vocab_size", None)
    if not isinstance(padding, int) or padding < 0 or (size and padding >= size):
        raise UserError(f"the padding is token {padding!r}, the model has {size}: set pad_token_id in config.json")
    values = {"input_ids": padding, "attention_mask": 0, "token_type_ids": 0}
    return {name: value for name, value in values.items() if name in accepted and name in tokenizer.model_input_names}


def resolve_padding_side(config) -> str:
    """Returns where padding goes, whatever the tokenizer's own side: `right`, so that no text's positions move.

    `left` where the answer is read from the last position (XLNet).
    """
    return "left" if getattr(config, "summary_type", None) == "last" else "right"


def text_config(config):
    """Returns the part of a config that is about texts: a model that takes images, too, has one inside."""
    return getattr(config, "text_config", config)


def find_unknown_token_ids(config, tokenizer) -> frozenset[int]:
    """Returns the ids of added tokens that the model has no embedding of, and says which they are.

    Raises UserError if the tokenizer's own vocabulary is larger than the model's.
    """
    size = getattr(text_config(config), "vocab_size", None)
    if not size:
        return frozenset()
    lost = {token: id for token, id in tokenizer.get_vocab().items() if id >= size}
    added = tokenizer.get_added_vocab()
    if own := [id for token, id in lost.items() if token not in added]:
        raise UserError(f"the tokenizer has token {max(own)}, the model has {size}: they don't belong together")
    if lost:
        names = ", ".join(clean(token) for token in sorted(lost, key=lost.get)[:5])
        say(f"{len(lost)} added tokens have no embedding in the model, so texts with one get nulls: {names}")
    return frozenset(lost.values())
