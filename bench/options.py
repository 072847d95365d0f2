"""Options that several scripts share, and the commands that scripts print for the user to copy.

Nothing heavy is imported here, so that --help answers at once.
"""

import codecs
import shlex
from argparse import ArgumentTypeError
from collections.abc import Callable

from utils import CONTROL, without_secrets

PRECISIONS = "fp32", "fp16", "int8"  # of exports
BATCHINGS = "in-order", "sorted", "token-budget"
LONG_TEXTS = "cut", "windows", "windows-mean"  # truncate, or combine windows by each label's maximum or mean


def add_text_options(group) -> None:
    """Add the options that say how texts are read from a file: --column, --delimiter and --encoding."""
    group.add_argument("--column", default="body", help="the text column (default: body)")
    group.add_argument("--delimiter", type=delimiter, help="of CSV files: a character, or tab (default: by file name)")
    group.add_argument("--encoding", type=encoding, default="utf-8", help="of CSV files (default: utf-8)")


def delimiter(text: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(character) != 1 or character in '"\n\r':
        raise ArgumentTypeError(f"{text!r} is neither a single character nor 'tab'")
    return character


def encoding(text: str) -> str:
    try:
        return codecs.lookup(text).name
    except LookupError as error:
        raise ArgumentTypeError(f"unknown encoding {text!r}; use a name that Python knows, such as cp1252") from error


def batching(text: str) -> str:
    if text not in BATCHINGS:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(BATCHINGS)}")
    return text


def add_threshold(group) -> None:
    threshold_help = "probability above which a label is predicted: a number, or a JSON file {label: number}"
    group.add_argument("--threshold", metavar="NUMBER|FILE", help=f"{threshold_help} (default: 0.5)")


def float_from(least: float, most: float = float("inf")) -> Callable[[str], float]:
    """Make an argparse type for finite numbers from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most or value == float("inf"):
            limits = f"of at least {least:g}" if most == float("inf") else f"from {least:g} to {most:g}"
            raise ArgumentTypeError(f"{text!r} is not a number {limits}")
        return value

    return parse


def command(*words: object, **options: object) -> str:
    """Return a command line to copy, quoted for a POSIX shell.

    Options that are None, False or empty are left out; True is a flag, and lists become comma lists. Secrets in URLs,
    and words that the scripts refuse because of control characters, become `...`.
    """
    line = list(words)
    for name, value in options.items():
        if value is None or value is False or value in ("", []):
            continue
        line.append(f"--{name.replace('_', '-')}")
        if value is not True:
            line.append(",".join(map(str, value)) if isinstance(value, list | tuple) else value)
    words = map(without_secrets, map(str, line))
    return shlex.join("..." if CONTROL.search(word) else word for word in words)
