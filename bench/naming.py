"""Names from outside -> similar names, file names, Markdown, Python source, figures. For the terminal see utils.say."""

import html
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from urllib.parse import quote

from utils import clean

LONGEST_LABEL = 60  # characters of a name in a figure or a list
MAX_LISTED = 20


def nearest(name: str, names: Iterable[str], cutoff: float = 0.85) -> str | None:
    """Return the most similar of some names, or None if none has this similarity, see difflib."""
    by_lower_case = {other.lower(): other for other in names}
    return next(map(by_lower_case.get, get_close_matches(name.lower(), by_lower_case, n=1, cutoff=cutoff)), None)


def listed(names: Sequence[str]) -> str:
    """Return names for a message: the first ones, shortened, because a file without a header has texts as names."""
    shown = [figure_text(name) or "''" for name in names[:MAX_LISTED]]
    if len(names) > MAX_LISTED:
        shown.append(f"and {len(names) - MAX_LISTED:,} others")
    return ", ".join(shown) or "none"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def slug(name: str) -> str:
    """Reduce a name to letters, digits, dots and dashes: `RTX 4090` becomes `RTX-4090`."""
    return re.sub(r"(?:[^\w.]|_)+", "-", name).strip("-.")


def file_name(name: str) -> str:
    """Return a valid part of a file name, different for every name: `a b` becomes `a%20b`."""
    name = re.sub(r"[^\w.-]", lambda found: quote(found[0], safe="", errors="surrogatepass"), name)
    return re.sub(r"^\.|~", lambda found: f"%{ord(found[0]):02X}", name) or "%"  # quote() keeps these


def markdown(text: str) -> str:
    """Escape a text for a line of Markdown, so that it can't add HTML, links, math, table cells, headings or lists."""
    text = html.escape(clean(text).strip(), quote=False)
    text = re.sub(r"([\\`*_\[\]|~#$]|(?<=:)/(?=/)|(?<=\bwww)\.)", r"\\\1", text, flags=re.IGNORECASE)
    return re.sub(r"^(\d{1,9}(?=[.)]\s)|(?=[-+]\s|--|==))", r"\1\\", text)


def fence(text: str) -> str:
    """Return more backticks than the text has in a row."""
    return "`" * (1 + max(map(len, re.findall("`+", text)), default=0))


def code_span(text: str) -> str:
    """Return a text as code in a line of Markdown."""
    text = clean(text)
    space = " " if "`" in text or text.startswith(" ") else ""
    return f"{fence(text)}{space}{text}{space}{fence(text)}"


def python_string(text: str) -> str:
    """Return a text as a string in Python source."""
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'


def figure_text(name: str) -> str:
    """Return a name for a figure or a message, shortened. Dollar signs are no math there, see STYLE in figures.py."""
    name = clean(name)
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL // 2]}…{name[-LONGEST_LABEL // 2 :]}"
