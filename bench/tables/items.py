"""Items: what a model answers at once, a text or several texts that belong together."""

import json
import re
from collections.abc import Iterable, Sequence

import pyarrow as pa
from xxhash import xxh3_64

from bench.files import digest

Item = str | tuple[str, ...]  # a tuple: the texts of several columns, such as a pair
# placeholders of Reddit and its archives for comments that are gone
REMOVALS = {
    "deleted": re.compile(r"\[ ?(deleted( by user)?|unavailable) ?\]", re.IGNORECASE),
    "removed": re.compile(r"\[ ?removed( by (reddit|moderator)[^\[\]\n]*)? ?\]", re.IGNORECASE),
}


def parts_of(item: Item) -> tuple[str, ...]:
    return (item,) if isinstance(item, str) else item


def item_of(parts: Iterable[str]) -> Item:
    """Return the item of some texts: the text if there is one only, otherwise their tuple."""
    item = tuple(parts)
    return item if len(item) > 1 else item[0]


def count_characters(item: Item) -> int:
    return len(item) if isinstance(item, str) else sum(map(len, item))


def is_unicode(item: Item) -> bool:
    """True if no text has half of a surrogate pair, which no tokenizer takes."""
    try:
        "".join(parts_of(item)).encode()
    except UnicodeEncodeError:
        return False
    return True


def digest_items(items: Iterable[Item]) -> str:
    """Return 16 hexadecimal digits for items in this order."""
    return digest(map(item_bytes, items))


def item_bytes(item: Item) -> bytes:
    return (item if isinstance(item, str) else json.dumps(item)).encode()


def hash_item(item: Item) -> int:
    """Return 32 bits by which an item is known again; it cannot be told from them."""
    return xxh3_64(item_bytes(item)).intdigest() & 0xFFFFFFFF


def items_of(table: pa.Table, columns: Sequence[str]) -> list[Item | None]:
    """Return the item of each row, from one text column or several; None if a row lacks one of the texts."""
    values = [table[name].cast(pa.string()).to_pylist() for name in columns]
    rows = zip(*values, strict=True)
    return [item_of(row) if all(map(has_text, row)) else None for row in rows]


def has_text(value: str | None) -> bool:
    """True for more than white space, unless it is a placeholder for a removed comment."""
    return value is not None and bool(value.strip()) and removal(value) is None


def removal(text: str) -> str | None:
    """Return `deleted` or `removed` for a placeholder in REMOVALS; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    return next((kind for kind, pattern in REMOVALS.items() if pattern.fullmatch(text.strip())), None)
