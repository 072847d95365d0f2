"""Texts -> token ids, exactly as the model's own tokenizer gives them."""

from collections.abc import Sequence
from pathlib import Path

from bench.tables.items import is_unicode
from utils import UserError, first_line

UNLIMITED = 10**9  # a limit from here on means that the model takes texts of any length
DEFAULT_MAX_LENGTH = 512  # tokens, for a model without a limit: what most encoders take
CHARACTERS_PER_TOKEN = 10  # longer texts are cut to this many characters per token before tokenizing
# model types whose positions start after the padding index, see resolve_max_length
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod", "mpnet"}
OFFSET_POSITIONS |= {"data2vec-text", "ibert", "longformer", "esm", "luke"}
# a tokenizer must agree with its file on these: case, accents, digits, spaces, signs, other scripts, the empty text
SAMPLES = (
    "A Plain sentence, of 12 words: it's naïve, isn't it?",
    "  two  spaces\tand\na line  ",
    "ÅNGSTRÖM e\u0301 ﬁne 😀👍🏽 don\u2019t “quote”",
    "你好\uff0c世界 שלום مرحبا नमस्ते 1,234.56",
    "http://example.org/a_b?c=1 #tag @name snake_case CamelCase",
    "",
)
TOKENIZER_FILES = "tokenizer.json", "vocab.*", "*.model", "*.spm", "*.tiktoken"  # one of these has the vocabulary


def load_tokenizer(folder: Path):
    """Load the tokenizer of a model's folder. Raises UserError if there is none.

    The slow tokenizer is the fallback for SentencePiece models without tokenizer.json that transformers can't convert.
    """
    from transformers import AutoTokenizer

    reason = ""
    for fast in (True, False):
        try:
            return AutoTokenizer.from_pretrained(folder, use_fast=fast, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # each format fails in its own way
            reason = first_line(error)
        if (folder / "tokenizer.json").exists():
            break
    if not any(any(folder.glob(name)) for name in TOKENIZER_FILES):
        reason = "no tokenizer.json, vocabulary or SentencePiece model"
    raise UserError(f"the tokenizer of {folder} can't be loaded: {reason}")


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


def resolve_max_length(config, tokenizer) -> int:
    """Return the model's limit of tokens per text; 512 if neither the model nor its tokenizer has one.

    RoBERTa and its relatives number positions from padding_idx + 1 (`create_position_ids_from_input_ids` in
    transformers), so the first position embeddings are never used. Raises UserError for an impossible limit.
    """
    offset = (config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0
    limits = {"model_max_length": (tokenizer.model_max_length, 0)}
    if getattr(config, "max_position_embeddings", None) not in (None, -1):  # -1: any number (XLNet)
        limits["max_position_embeddings"] = config.max_position_embeddings, offset
    for name, (limit, unused) in limits.items():
        least = tokenizer.num_special_tokens_to_add() + 1 + unused
        if not isinstance(limit, int | float) or limit < least or limit % 1:
            raise UserError(f"{name} is {limit!r}; it must be a whole number of at least {least}")
    max_length = int(min(limit - unused for limit, unused in limits.values()))
    return max_length if max_length < UNLIMITED else DEFAULT_MAX_LENGTH


def tokenize(tokenizer, texts: list[str], max_length: int, names: Sequence[str] = ("input_ids",)) -> dict[str, list]:
    """Return rows, one for each text: name -> list [texts], for the `names` and for `item`, the text's index.

    Names are `input_ids`, `token_type_ids` and `lost`, the number of tokens that truncation removed. Special tokens are
    included; nothing is padded. A text that is not Unicode (half of a surrogate pair) has no tokens. A fast tokenizer
    is called directly, because what transformers adds per text runs on one core only. Texts longer than
    CHARACTERS_PER_TOKEN x 2 x `max_length` characters are cut to that length, on the side that truncation removes,
    before tokenizing. If the rest has fewer than 2 x `max_length` tokens, the whole text is tokenized instead. After
    such a cut, `lost` is an estimate. (A whole text of 10 MB takes 15 seconds and 2 GB.)
    """

    def truncated(texts: list[str], max_length: int) -> dict[str, list]:
        if not tokenizer.is_fast:
            encoded = tokenizer(texts, truncation=True, max_length=max_length)
            whole = [len(ids) < max_length for ids in encoded["input_ids"]]
            encoded["lost"] = [
                0 if short else len(tokenizer(text)["input_ids"]) - max_length
                for text, short in zip(texts, whole, strict=True)
            ]
            return {name: encoded[name] for name in names}
        fast = tokenizer.backend_tokenizer
        fast.no_padding()
        fast.enable_truncation(max_length, direction=tokenizer.truncation_side)
        encodings = fast.encode_batch_fast(texts)
        special = fast.num_special_tokens_to_add(is_pair=False)
        read = {
            "input_ids": lambda encoding: encoding.ids,
            "token_type_ids": lambda encoding: encoding.type_ids,
            "lost": lambda encoding: sum(len(rest.ids) - special for rest in encoding.overflowing),
        }
        return {name: [read[name](encoding) for encoding in encodings] for name in names}

    enough = 2 * max_length
    longest = CHARACTERS_PER_TOKEN * enough
    kept = slice(longest) if tokenizer.truncation_side == "right" else slice(-longest, None)
    given = list(texts)
    invalid = [i for i, text in enumerate(texts) if not is_unicode(text)]
    for i in invalid:
        given[i] = ""
    for i, text in enumerate(given):
        if len(text) > longest and len(truncated([text[kept]], enough)["input_ids"][0]) >= enough:
            given[i] = text[kept]
    rows = truncated(given, max_length)
    for i in invalid:
        clear_row(rows, i)
    for i, text in enumerate(texts if "lost" in rows else ()):
        if 0 < len(given[i]) < len(text):
            tokens = len(rows["input_ids"][i])
            rows["lost"][i] = round((tokens + rows["lost"][i]) * len(text) / len(given[i])) - tokens
    return rows | {"item": list(range(len(texts)))}


def tokenize_windows(tokenizer, texts: list[str], max_length: int, names: Sequence[str]) -> dict[str, list]:
    """Return rows as tokenize() does, but several overlapping ones, the windows, for a text above `max_length` tokens.

    The windows are those of `return_overflowing_tokens`; neighbours share overlap() tokens. `lost` of a text's first
    window counts the tokens that only its other windows have. Raises UserError for a slow tokenizer.
    """
    if not tokenizer.is_fast:
        raise UserError("--long windows needs a fast tokenizer, which this model lacks")
    fast, shared = tokenizer.backend_tokenizer, overlap(max_length)
    fast.no_padding()
    fast.enable_truncation(max_length, stride=shared, direction=tokenizer.truncation_side)
    special = fast.num_special_tokens_to_add(is_pair=False)
    encodings = fast.encode_batch_fast([text if is_unicode(text) else "" for text in texts])
    rows = {name: [] for name in (*names, "item")}
    for i, encoding in enumerate(encodings):
        windows = [encoding, *encoding.overflowing] if is_unicode(texts[i]) else []
        columns = {
            "input_ids": [window.ids for window in windows],
            "token_type_ids": [window.type_ids for window in windows],
            "lost": [0] * len(windows),
            "item": [i] * len(windows),
        }
        if windows:
            columns["lost"][0] = sum(len(window.ids) - special - shared for window in windows[1:])
        for name in rows:
            rows[name] += columns[name]
    return rows


def overlap(max_length: int) -> int:
    """Return the number of tokens that neighbouring windows share: a quarter, so that most sentences are whole once."""
    return max_length // 4


def clear_row(rows: dict[str, list], i: int) -> None:
    """Remove the tokens of row i: the model can't answer this text."""
    for name, values in rows.items():
        values[i] = values[i] if name == "item" else 0 if name == "lost" else []
