"""File names and Markdown text from any string."""

import html
import re

from utils import clean


def slug(name: str) -> str:
    """Reduce a name to letters, digits, dots and dashes: `RTX 4090` becomes `RTX-4090`."""
    return re.sub(r"(?:[^\w.]|_)+", "-", name).strip("-.")


def file_name(name: str) -> str:
    """Return a valid part of a file name, different for every name: `a b` becomes `a%20b`."""
    return re.sub(r"^\.|[^\w.-]", lambda character: f"%{ord(character[0]):02X}", name) or "%"


def markdown(text: str) -> str:
    """Escape a text for Markdown, so that it can't add HTML, links, pictures or table cells."""
    return re.sub(r"([\\`*_\[\]()!|~#])", r"\\\1", html.escape(clean(text), quote=False))
