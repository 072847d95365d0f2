"""Texts -> token ids, exactly as the model's own tokenizer gives them."""

from collections.abc import Sequence
from pathlib import Path

from bench.tables.items import is_unicode
from utils import UserError, first_line

UNLIMITED = 10**9  # and above: the model takes texts of any length
DEFAULT_MAX_LENGTH = 512  # tokens, of such a model: what most encoders take
LONG_TEXT = 10  # characters for each token that may be needed: of longer texts only an end is tried first
# model types whose positions start behind the padding index, see resolve_max_length
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod", "mpnet"}
OFFSET_POSITIONS |= {"data2vec-text", "ibert", "longformer", "esm", "luke"}
# texts on which a tokenizer must agree with its file: cases, accents, digits, spaces, signs, other scripts, nothing
SAMPLES = (
    "A Plain sentence, of 12 words: it's naïve, isn't it?",
    "  two  spaces\tand\na line  ",
    "ÅNGSTRÖM e\u0301 ﬁne 😀👍🏽 don\u2019t “quote”",
    "你好\uff0c世界 שלום مرحبا नमस्ते 1,234.56",
    "http://example.org/a_b?c=1 #tag @name snake_case CamelCase",
    "",
)
TOKENIZER_FILES = "tokenizer.json", "vocab.*", "*.model", "*.spm", "*.tiktoken"  # one of these holds the vocabulary


def load_tokenizer(folder: Path):
    """Loads a model folder's tokenizer; raises UserError where there is none.

    It is the fast one, or the slow one where the folder has no file of a fast one and transformers can't make it fast
    (some SentencePiece models).
    """
    from transformers import AutoTokenizer

    reason = ""
    for fast in (True, False):
        try:
            return AutoTokenizer.from_pretrained(folder, use_fast=fast, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # a bad tokenizer fails in as many ways as there are formats
            reason = first_line(error)
        if (folder / "tokenizer.json").exists():
            break
    if not any(any(folder.glob(name)) for name in TOKENIZER_FILES):
        reason = "no tokenizer.json, vocabulary or SentencePiece model"
    raise UserError(f"{folder} has no tokenizer that can be loaded: {reason}")


def check_tokenizer_file(tokenizer, folder: Path) -> None:
    """Raises UserError where transformers' tokenizer gives other tokens than its own file tokenizer.json.

    The class that tokenizer_config.json names may rebuild what the file says, in another way in each version of
    transformers (its issues 45701 and 47706): nobody can tell then which tokens the model was trained with.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file() or not tokenizer.is_fast:
        return
    import transformers

    both = tokenizer.backend_tokenizer, Tokenizer.from_file(str(file))
    for one in both:
        one.no_padding()
        one.no_truncation()
    for text in SAMPLES:
        found, expected = (one.encode(text).ids for one in both)
        if found != expected:
            raise UserError(
                f"{folder}: transformers {transformers.__version__} gives {len(found)} tokens for {text!r}, "
                f"tokenizer.json {len(expected)}, or others: it goes by the tokenizer_class or an option in "
                "tokenizer_config.json; correct that file, or take the version of transformers that saved it"
            )


def resolve_max_length(config, tokenizer) -> int:
    """Returns the most tokens of a text that the model takes; 512 where neither the model nor its tokenizer says.

    RoBERTa and its relatives number positions from padding_idx + 1 (`create_position_ids_from_input_ids` in
    transformers), so that many of their position embeddings are never used. Raises UserError for an impossible number.
    """
    offset = (config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0
    limits = {"model_max_length": (tokenizer.model_max_length, 0)}
    if getattr(config, "max_position_embeddings", None) not in (None, -1):  # -1: any number (XLNet)
        limits["max_position_embeddings"] = config.max_position_embeddings, offset
    for name, (limit, unused) in limits.items():
        least = tokenizer.num_special_tokens_to_add() + 1 + unused
        if not isinstance(limit, int | float) or limit < least or limit % 1:
            raise UserError(f"{name} is {limit!r}, where a whole number from {least} on is needed")
    max_length = int(min(limit - unused for limit, unused in limits.values()))
    return max_length if max_length < UNLIMITED else DEFAULT_MAX_LENGTH


def tokenize(tokenizer, texts: list[str], max_length: int, names: Sequence[str] = ("input_ids",)) -> dict[str, list]:
    """Returns the token ids of each text, and what else is among the names.

    That may be its `token_type_ids`, and under `lost` how many of its tokens were cut off. Special tokens are included;
    a text is truncated to `max_length`, not padded. One that is no Unicode (half of a surrogate pair in it) has no
    token. Asks a fast tokenizer directly: what transformers adds for each text can't be shared among cores. Of a text
    of more than LONG_TEXT characters for each of 2 x `max_length` tokens only that much of the end that is kept is
    tokenized, where that gives as many tokens: then what the cut changes lies beyond those that are kept, and what is
    lost is estimated. (In whole, a text of 10 MB takes 15 seconds and 2 GB.)
    """

    def truncated(texts: list[str], max_length: int) -> dict[str, list]:
        if not tokenizer.is_fast:
            found = tokenizer(texts, truncation=True, max_length=max_length)
            whole = [len(ids) < max_length for ids in found["input_ids"]]
            found["lost"] = [
                0 if short else len(tokenizer(text)["input_ids"]) - max_length
                for text, short in zip(texts, whole, strict=True)
            ]
            return {name: found[name] for name in names}
        fast = tokenizer.backend_tokenizer
        fast.no_padding()
        fast.enable_truncation(max_length, direction=tokenizer.truncation_side)
        encodings, special = fast.encode_batch_fast(texts), fast.num_special_tokens_to_add(is_pair=False)
        read = {
            "input_ids": lambda encoding: encoding.ids,
            "token_type_ids": lambda encoding: encoding.type_ids,
            "lost": lambda encoding: sum(len(rest.ids) - special for rest in encoding.overflowing),
        }
        return {name: [read[name](encoding) for encoding in encodings] for name in names}

    enough = 2 * max_length
    kept = slice(LONG_TEXT * enough) if tokenizer.truncation_side == "right" else slice(-LONG_TEXT * enough, None)
    given, no_unicode = list(texts), [i for i, text in enumerate(texts) if not is_unicode(text)]
    for i in no_unicode:
        given[i] = ""
    for i, text in enumerate(given):
        if len(text) > LONG_TEXT * enough and len(truncated([text[kept]], enough)["input_ids"][0]) >= enough:
            given[i] = text[kept]
    rows = truncated(given, max_length)
    for i in no_unicode:
        empty(rows, i)
    for i, text in enumerate(texts if "lost" in rows else ()):
        if 0 < len(given[i]) < len(text):
            tokens = len(rows["input_ids"][i])
            rows["lost"][i] = round((tokens + rows["lost"][i]) * len(text) / len(given[i])) - tokens
    return rows | {"item": list(range(len(texts)))}


def tokenize_windows(tokenizer, texts: list[str], max_length: int, names: Sequence[str]) -> dict[str, list]:
    """Returns what tokenize() does, and a text of more than `max_length` tokens in several rows, as windows.

    Two neighbours share the tokens of overlap(). Under `item` is the index of each row's text; `lost` says of a text's
    first window how many tokens are in the others alone. These are the windows of `return_overflowing_tokens`. Raises
    UserError for a slow tokenizer, which doesn't make them.
    """
    if not tokenizer.is_fast:
        raise UserError("this model has no fast tokenizer, which long texts in windows need")
    fast, shared = tokenizer.backend_tokenizer, overlap(max_length)
    fast.no_padding()
    fast.enable_truncation(max_length, stride=shared, direction=tokenizer.truncation_side)
    special = fast.num_special_tokens_to_add(is_pair=False)
    encodings = fast.encode_batch_fast([text if is_unicode(text) else "" for text in texts])
    rows = {name: [] for name in (*names, "item")}
    for i, encoding in enumerate(encodings):
        windows = [encoding, *encoding.overflowing] if is_unicode(texts[i]) else []
        found = {
            "input_ids": [window.ids for window in windows],
            "token_type_ids": [window.type_ids for window in windows],
            "lost": [0] * len(windows),
            "item": [i] * len(windows),
        }
        if windows:
            found["lost"][0] = sum(len(window.ids) - special - shared for window in windows[1:])
        for name in rows:
            rows[name] += found[name]
    return rows


def overlap(max_length: int) -> int:
    """Returns how many tokens two windows of a long text share: a quarter of them, so that no sentence is only cut."""
    return max_length // 4


def empty(rows: dict[str, list], i: int) -> None:
    """Takes a text's tokens away."""
    for name, values in rows.items():
        values[i] = values[i] if name == "item" else 0 if name == "lost" else []
