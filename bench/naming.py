"""Names for files, and text for Markdown."""

import html
import re

from utils import clean


def slug(name: str) -> str:
    """Turns a name into letters, digits, dots and dashes: `RTX 4090` into `RTX-4090`."""
    return re.sub(r"(?:[^\w.]|_)+", "-", name).strip("-.")


def file_name(name: str) -> str:
    """Turns a name into a part of a file name, each into another: `a b` into `a%20b`."""
    return re.sub(r"^\.|[^\w.-]", lambda character: f"%{ord(character[0]):02X}", name) or "%"


def markdown(text: str) -> str:
    """Escapes a text for Markdown, so that it brings no HTML, links, pictures or table cells."""
    return re.sub(r"([\\`*_\[\]()!|~#])", r"\\\1", html.escape(clean(text), quote=False))
