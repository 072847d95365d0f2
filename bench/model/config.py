"""A model's config and tokenizer: whether this transformers understands them, and what they say about the inputs."""

from collections.abc import Container
from pathlib import Path

from bench.files import read_json
from utils import UserError, clean, first_line, say

# types whose answers change with padding despite the attention mask, found by tests/test_awkward_texts.py
SPOILT_BY_PADDING = {"convbert", "doge", "funnel", "nystromformer", "t5gemma", "yoso"}
# fields of any config that a default config lacks
COMMON_FIELDS = {"_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type", "torch_dtype"}
COMMON_FIELDS |= {"model_type", "transformers_version", "num_labels"}
# a tokenizer must agree with its file on these: case, accents, digits, spaces, signs, other scripts, the empty text
SAMPLES = (
    "A Plain sentence, of 12 words: it's naïve, isn't it?",
    "  two  spaces\tand\na line  ",
    "ÅNGSTRÖM e\u0301 ﬁne 😀👍🏽 don\u2019t “quote”",
    "你好\uff0c世界 שלום مرحبا नमस्ते 1,234.56",
    "http://example.org/a_b?c=1 #tag @name snake_case CamelCase",
    "",
)


def load_config(folder: Path):
    """Load a folder's config without custom code. Raises UserError, also for fields of a newer transformers."""
    from transformers import AutoConfig

    newer = saved_by(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each field can be wrong in its own way
        raise UserError(f"{folder}/config.json can't be used: {first_line(error)}{newer}") from error
    if newer:
        known = {*type(config)().to_dict(), *config.attribute_map, *COMMON_FIELDS}
        if unknown := sorted(read_json(folder / "config.json").keys() - known):
            raise UserError(f"{folder}/config.json has unknown fields: {', '.join(unknown)}{newer}")
    return config


def saved_by(folder: Path) -> str:
    """Return a remark that a newer transformers than the installed one saved the model; empty otherwise."""
    import transformers
    from packaging.version import InvalidVersion, Version

    saved, installed = read_json(folder / "config.json").get("transformers_version"), transformers.__version__
    try:
        if Version(str(saved)) <= Version(installed):
            return ""
    except InvalidVersion:
        return ""
    which = "requirements-transformers5.txt" if Version(installed).major < 5 <= Version(saved).major else "that version"
    return f" (saved by transformers {saved}, but {installed} is installed; install {which})"


def check_tokenizer_file(tokenizer, folder: Path) -> None:
    """Raise UserError if transformers' tokenizer gives other tokens than its own file tokenizer.json.

    The class named in tokenizer_config.json may rebuild what the file says, differently in each version of transformers
    (its issues 45701 and 47706); then nobody can tell which tokens the model was trained with.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file() or not tokenizer.is_fast:
        return
    import transformers

    backends = tokenizer.backend_tokenizer, Tokenizer.from_file(str(file))
    for backend in backends:
        backend.no_padding()
        backend.no_truncation()
    for text in SAMPLES:
        ids, expected = (backend.encode(text).ids for backend in backends)
        if ids != expected:
            raise UserError(
                f"{folder}: transformers {transformers.__version__} and tokenizer.json tokenize {text!r} differently "
                f"({len(ids)} and {len(expected)} tokens). Correct tokenizer_class in tokenizer_config.json, or "
                "install the version of transformers that saved it"
            )


def sparse_attention(config) -> bool:
    """True for BigBird's block-sparse attention, which the first short text replaces by full attention for good."""
    return getattr(config, "attention_type", None) == "block_sparse"


def resolve_pad_values(config, tokenizer, accepted: Container[str]) -> dict[str, int]:
    """Return the model's inputs by name, each with its padding value.

    These are the names that the tokenizer gives and the forward pass accepts, as in `model(**tokenizer(text))`. Padding
    is the config's token, by which some models find the end of a text. Raises UserError without one.
    """
    kind, about = config.model_type, text_config(config)
    if about.pad_token_id is None and "past_key_values" in accepted and not config.is_encoder_decoder:
        raise UserError(f"this {kind} model needs pad_token_id in config.json to find the end of each text")
    padding = (tokenizer.pad_token_id or 0) if about.pad_token_id is None else about.pad_token_id
    size = getattr(about, "vocab_size", None)
    if not isinstance(padding, int) or padding < 0 or (size and padding >= size):
        raise UserError(f"the padding token is {padding!r} of {size} tokens; correct pad_token_id in config.json")
    values = {"input_ids": padding, "attention_mask": 0, "token_type_ids": 0}
    return {name: value for name, value in values.items() if name in accepted and name in tokenizer.model_input_names}


def check_takes_pairs(config, tokenizer, inputs: Container[str]) -> None:
    """Raise UserError if a slow tokenizer joins two texts without a token between them, or a model lacks token types.

    `inputs`: of the model. Most tokenizers give the second text type 1, for which some models have no embedding.
    """
    alone, pair = (tokenizer.num_special_tokens_to_add(pair=is_pair) for is_pair in (False, True))
    if not tokenizer.is_fast and pair <= alone:
        raise UserError(f"the tokenizer {type(tokenizer).__name__} takes no pairs of texts; use a fast tokenizer")
    size = getattr(text_config(config), "type_vocab_size", 0)  # 0: the model has none, and ignores them
    if "token_type_ids" in inputs and 0 < size <= max(tokenizer("a", "b").get("token_type_ids", [0])):
        raise UserError(
            f"the model takes no pairs of texts: type_vocab_size in config.json is {size}; choose another model"
        )


def text_config(config):
    """Return the config of the text encoder, which is nested in the config of a model that also takes images."""
    return getattr(config, "text_config", config)


def find_unknown_token_ids(config, tokenizer) -> frozenset[int]:
    """Return the ids of added tokens without an embedding, and print some. Raises UserError if others have none."""
    size = getattr(text_config(config), "vocab_size", None)
    if not size:
        return frozenset()
    missing = {token: id for token, id in tokenizer.get_vocab().items() if id >= size}
    added = tokenizer.get_added_vocab()
    if vocabulary := [id for token, id in missing.items() if token not in added]:
        raise UserError(
            f"tokenizer and model don't fit: the tokenizer has token {max(vocabulary)}, the model {size} embeddings"
        )
    if missing:
        names = ", ".join(clean(token) for token in sorted(missing, key=missing.get)[:5])
        say(f"{len(missing)} added tokens have no embedding ({names}); texts containing them get nulls")
    return frozenset(missing.values())
