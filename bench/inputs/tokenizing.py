"""Texts -> token ids, exactly as the model's own tokenizer gives them."""

from collections.abc import Sequence
from pathlib import Path

from utils import UserError, first_line

UNLIMITED = 10**9  # and above: the model takes texts of any length
DEFAULT_MAX_LENGTH = 512  # tokens, of such a model: what most encoders take
LONG_TEXT = 50_000  # characters: of longer texts the beginning is tried first, see tokenize
# model types whose positions start behind the padding index, see resolve_max_length
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod", "mpnet"}
OFFSET_POSITIONS |= {"data2vec-text", "ibert", "longformer", "esm", "luke"}


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
    if not any(any(folder.glob(name)) for name in ("tokenizer.json", "vocab.*", "*.model")):
        reason = "no tokenizer.json, vocabulary or SentencePiece model"
    raise UserError(f"{folder} has no tokenizer that can be loaded: {reason}")


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
    """Returns the token ids of each text, and, if they are among the names, its `token_type_ids`.

    Special tokens are included; it is truncated to `max_length`, not padded. Asks a fast tokenizer directly: what
    transformers adds for each text can't be shared among cores. Of a text over LONG_TEXT only the beginning is
    tokenized, where that gives at least twice `max_length` tokens: then what the cut changes lies behind the tokens
    that are kept. (In whole, a text of 10 MB takes 15 seconds and 2 GB.)
    """

    def truncated(texts: list[str], max_length: int) -> dict[str, list]:
        if not tokenizer.is_fast:
            found = tokenizer(texts, truncation=True, max_length=max_length)
            return {name: found[name] for name in names}
        fast = tokenizer.backend_tokenizer
        fast.no_padding()
        fast.enable_truncation(max_length, direction=tokenizer.truncation_side)
        encodings = fast.encode_batch_fast(texts)
        attributes = {"input_ids": "ids", "token_type_ids": "type_ids"}
        return {name: [getattr(encoding, attributes[name]) for encoding in encodings] for name in names}

    beginnings = [text[:LONG_TEXT] for text in texts]
    for i, text in enumerate(texts):
        if len(text) > LONG_TEXT and len(truncated([beginnings[i]], 2 * max_length)["input_ids"][0]) < 2 * max_length:
            beginnings[i] = text
    return truncated(beginnings, max_length)


def check_vocabulary(token_ids: list[list[int]], config) -> None:
    """Raises UserError for a token that the model has no embedding of: a GPU would read one out of bounds."""
    highest, size = max((max(ids) for ids in token_ids if ids), default=0), getattr(config, "vocab_size", None)
    if size and highest >= size:
        raise UserError(f"the tokenizer gives token {highest}, the model has {size}: they don't belong together")
