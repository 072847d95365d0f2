"""Texts -> token ids, exactly as the model's own tokenizer gives them."""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path

from bench.options import TRUNCATIONS
from bench.tables.items import Item, count_characters, is_unicode, item_of, parts_of
from utils import UserError, first_line

UNLIMITED = 10**9  # a limit from here on means that the model takes texts of any length
DEFAULT_MAX_LENGTH = 512  # tokens, for a model without a limit: what most encoders take
CHARACTERS_PER_TOKEN = 10  # longer texts are cut to this many characters per token before tokenizing
# model types whose positions start after the padding index, see resolve_max_length
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod", "mpnet"}
OFFSET_POSITIONS |= {"data2vec-text", "ibert", "longformer", "esm", "luke"}
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


def resolve_max_length(config, tokenizer, default: int | None = DEFAULT_MAX_LENGTH) -> int:
    """Return the model's limit of tokens per text; the `default` if neither the model nor its tokenizer has one.

    RoBERTa and its relatives number positions from padding_idx + 1 (`create_position_ids_from_input_ids` in
    transformers), so the first position embeddings are never used. Raises UserError for an impossible limit or none.
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
    if max_length >= UNLIMITED and default is None:
        raise UserError("the model has no limit of tokens; set one as model_max_length in tokenizer_config.json")
    return max_length if max_length < UNLIMITED else default


def tokenize(
    tokenizer,
    items: list[Item],
    max_length: int,
    names: Sequence[str] = ("input_ids",),
    truncation: str = TRUNCATIONS[0],
) -> dict[str, list]:
    """Return rows, one for each item: name -> list [items], for the `names` and for `item`, the item's index.

    Names are `input_ids`, `token_type_ids` and `lost`, the number of tokens that truncation removed. Special tokens are
    included; nothing is padded. An item is a text or a pair of texts, for which `truncation` is one of TRUNCATIONS. An
    item that is not Unicode (half of a surrogate pair), or whose first text has no room, has no tokens. A fast
    tokenizer is called directly, because what transformers adds per text runs on one core only. A text longer than
    CHARACTERS_PER_TOKEN x 2 x `max_length` characters is cut to that length, on the side that truncation removes,
    before tokenizing. If the rest has fewer than 2 x `max_length` tokens, the whole text is tokenized instead. After
    such a cut, `lost` is an estimate. (A whole text of 10 MB takes 15 seconds and 2 GB.)
    """

    def truncated(items: list[Item], max_length: int) -> dict[str, list]:
        if not tokenizer.is_fast:
            encoded = call_tokenizer(tokenizer, items, truncation=truncation, max_length=max_length)
            encoded["lost"] = [
                0 if len(ids) < max_length else len(call_tokenizer(tokenizer, [item])["input_ids"][0]) - max_length
                for item, ids in zip(items, encoded["input_ids"], strict=True)
            ]
            return {name: encoded[name] for name in names}
        fast = tokenizer.backend_tokenizer
        fast.no_padding()
        fast.enable_truncation(max_length, strategy=truncation, direction=tokenizer.truncation_side)
        encodings = encode(fast, items)
        read = {
            "input_ids": lambda: [encoding.ids for encoding in encodings],
            "token_type_ids": lambda: [encoding.type_ids for encoding in encodings],
            "lost": lambda: count_lost(fast, items, encodings, max_length),
        }
        return {name: read[name]() for name in names}

    enough = 2 * max_length
    longest = CHARACTERS_PER_TOKEN * enough
    kept = slice(longest) if tokenizer.truncation_side == "right" else slice(-longest, None)

    def fills_twice(text: str) -> bool:
        return len(truncated([text[kept]], enough)["input_ids"][0]) >= enough

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def shortened(item: Item) -> Item:
        if count_characters(item) <= longest:
            return item
        parts = parts_of(item)
        cut = [part[kept] if len(part) > longest and fills_twice(part) else part for part in parts]
        if len(parts) > 1 and all(map(fills_twice, parts)):  # the text with more tokens may keep one more
            first_is_longer = count(parts[0]) > count(parts[1])
            if first_is_longer != (count(cut[0]) > count(cut[1])):
                whole = 0 if first_is_longer else 1
                cut[whole] = parts[whole]
        return item_of(cut)

    invalid = invalid_items(tokenizer, items, max_length, truncation)
    given = [item_of("" for _ in parts_of(item)) if i in invalid else shortened(item) for i, item in enumerate(items)]
    rows = truncated(given, max_length)
    for i in invalid:
        clear_row(rows, i)
    for i, item in enumerate(items if "lost" in rows else ()):
        if given[i] is not item and i not in invalid:
            tokens = len(rows["input_ids"][i])
            ratio = count_characters(item) / count_characters(given[i])
            rows["lost"][i] = round((tokens + rows["lost"][i]) * ratio) - tokens
    return rows | {"item": list(range(len(items)))}


def encode(fast, items: list[Item]) -> list:
    """Call encode_batch_fast(), with less to normalize in ASCII. `fast`: a tokenizer of tokenizers.

    BERT's normalizer looks for accents and Chinese characters, which takes a fifth of the time of all.
    """
    from tokenizers.normalizers import BertNormalizer

    normalizer = fast.normalizer
    if not isinstance(normalizer, BertNormalizer):
        return fast.encode_batch_fast(items)
    is_ascii = [all(map(str.isascii, parts_of(item))) for item in items]
    encodings = iter(fast.encode_batch_fast([item for item, plain in zip(items, is_ascii, strict=True) if not plain]))
    options = {"clean_text": normalizer.clean_text, "lowercase": normalizer.lowercase}
    try:
        fast.normalizer = BertNormalizer(handle_chinese_chars=False, strip_accents=False, **options)
        ascii_encodings = iter(fast.encode_batch_fast(list(compress(items, is_ascii))))
    finally:
        fast.normalizer = normalizer
    return [next(ascii_encodings if plain else encodings) for plain in is_ascii]


def call_tokenizer(tokenizer, items: list[Item], **options):
    """Call a tokenizer as transformers documents it, for texts or for pairs of texts."""
    return tokenizer(*map(list, zip(*map(parts_of, items), strict=True)), **options)


def count_lost(fast, items: list[Item], encodings: list, max_length: int) -> list[int]:
    """Return the number of tokens that truncation removed from each item. `fast`: a tokenizer of tokenizers."""
    special = fast.num_special_tokens_to_add(is_pair=False)
    truncated = (encoding.overflowing if len(encoding) == max_length else () for encoding in encodings)
    lost = [sum(len(rest) - special for rest in pieces) for pieces in truncated]
    pairs = [i for i, count in enumerate(lost) if count and not isinstance(items[i], str)]
    if pairs:  # each piece of one text is combined with each of the other
        fast.no_truncation()
        for i, whole in zip(pairs, fast.encode_batch_fast([items[i] for i in pairs]), strict=True):
            lost[i] = len(whole.ids) - len(encodings[i].ids)
    return lost


def invalid_items(tokenizer, items: list[Item], max_length: int, truncation: str, room: int = 1) -> set[int]:
    """Return the indices of the items that have no tokens.

    These are not Unicode, or a second text that must not be truncated leaves less `room` than this for the first.
    """
    invalid = {i for i, item in enumerate(items) if not is_unicode(item)}
    seconds = {item[1]: i for i, item in enumerate(items) if i not in invalid and not isinstance(item, str)}
    if truncation != "only_first" or not seconds:
        return invalid
    tokens = tokenizer(list(seconds), add_special_tokens=False)["input_ids"]
    most = max_length - tokenizer.num_special_tokens_to_add(pair=True) - room
    long = {second for second, ids in zip(seconds, tokens, strict=True) if len(ids) > most}
    return invalid | {i for i, item in enumerate(items) if item[1] in long}


def tokenize_windows(tokenizer, items: list[Item], max_length: int, names: Sequence[str]) -> dict[str, list]:
    """Return rows as tokenize() does, but several overlapping ones, the windows, for an item above `max_length` tokens.

    The windows are those of `return_overflowing_tokens`; neighbours share overlap() tokens. Each window of a pair has
    the whole second text. `lost` of an item's first window counts the tokens that only its other windows have.
    """
    if not tokenizer.is_fast:
        raise UserError("--long windows needs a fast tokenizer, which this model lacks")
    fast, shared = tokenizer.backend_tokenizer, overlap(max_length)
    invalid = invalid_items(tokenizer, items, max_length, "only_first", room=shared + 1)
    fast.no_padding()
    fast.enable_truncation(max_length, stride=shared, strategy="only_first", direction=tokenizer.truncation_side)
    given = [item_of("" for _ in parts_of(item)) if i in invalid else item for i, item in enumerate(items)]
    rows = {name: [] for name in (*names, "item")}
    for i, encoding in enumerate(encode(fast, given)):
        windows = [] if i in invalid else [encoding, *encoding.overflowing]
        columns = {
            "input_ids": [window.ids for window in windows],
            "token_type_ids": [window.type_ids for window in windows],
            "lost": [0] * len(windows),
            "item": [i] * len(windows),
        }
        if windows:
            columns["lost"][0] = sum(window.sequence_ids.count(0) - shared for window in windows[1:])
        for name in rows:
            rows[name] += columns[name]
    return rows


def overlap(max_length: int) -> int:
    """Return the number of tokens that neighbouring windows share: a quarter, so that most sentences are whole once."""
    return max_length // 4


def clear_row(rows: dict[str, list], i: int) -> None:
    """Remove the tokens of row i: the model can't answer this text."""
    for name, values in rows.items():
        values[i] = values[i] if name in ("item", "part") else 0 if name == "lost" else []
