"""The command line: its parser, options that several scripts share, and commands to print for the user to copy.

Nothing heavy is imported here, so that --help answers at once.
"""

import codecs
import math
import os
import re
import shlex
from argparse import Action, ArgumentError, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.naming import nearest
from utils import CONTROL, clean, without_secrets

PRECISIONS = "fp32", "fp16", "int8"  # of exports
BATCHINGS = "in-order", "sorted", "token-budget"
TASKS = "classification", "embedding"  # what a model may be for
LONG_TEXTS = "cut", "windows", "windows-mean"  # truncate, or combine windows by each label's maximum or mean
TRUNCATIONS = "longest_first", "only_first"  # of pairs of texts; transformers' names
TEMPLATE = "This example is {}."  # of hypotheses; transformers' default
# option that defines an item, besides --column -> the option that it needs
ITEM_OPTIONS = {"pair_column": "pair_column", "truncation": "pair_column", "candidate_labels": "candidate_labels"}
ITEM_OPTIONS |= dict.fromkeys(("hypothesis_template", "multi_label"), "candidate_labels")
CHOICES = {"task": TASKS, "truncation": TRUNCATIONS, "multi_label": (True, False), "device": ("gpu", "cpu")}
VECTOR_OPTIONS = "pooling", "prompt", "prompt_name", "truncate_dim", "normalize"  # of embedding models
TASK_OPTIONS = *ITEM_OPTIONS, "task", *VECTOR_OPTIONS, "threshold"  # all options that choose or change a model's task
CSV_OPTIONS = "delimiter", "encoding", "quoting", "escape"  # how CSV files are read: the fields of a Csv


class Parser(ArgumentParser):
    """An argument parser that shows the script's docstring and reports an error on one line, with exit code 2."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)

    def parse_args(self, *arguments):
        """Parse all arguments; name an unknown one without its value, which may be a token."""
        args, unknown = self.parse_known_args(*arguments)
        if unknown:
            names = [word.split("=")[0] for word in unknown if word.startswith("-")] or ["a value without an option"]
            message = f"unrecognized arguments: {' '.join(names)}"
            if suggestion := nearest(names[0], self._option_string_actions):
                message += f"; did you mean {suggestion}?"
            self.error(message)
        return args

    def _get_value(self, action: Action, text: str):
        """Refuse an empty value, as of an unset shell variable, where it would mean this folder or a default."""
        if not text.strip() and action.default != "" and action.type in (None, Path, hub_name):
            raise ArgumentError(action, "the value is empty")
        return super()._get_value(action, text)

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {clean(message)}\n")


def number_from(kind: type, least: float, most: float = math.inf) -> Callable[[str], float]:
    """Return a parser of finite numbers of a `kind`, int or float, from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            value = math.nan if "_" in text else kind(text)  # Python would read 1_0
        except ValueError:
            value = math.nan
        if not least <= value <= most or value == math.inf:
            noun, form = ("whole number", "") if kind is int else ("number", "g")
            limits = f"of at least {least:{form}}" if most == math.inf else f"from {least:{form}} to {most:{form}}"
            raise ArgumentTypeError(f"{text!r} is not a {noun} {limits}")
        return value

    return parse


int_from, float_from = partial(number_from, int), partial(number_from, float)


def list_of(parse: Callable) -> Callable[[str], list]:
    """Return a parser of comma-separated lists that drops repeated items."""
    return lambda text: list(dict.fromkeys(parse(item) for item in text.split(",")))


def add_text_options(group) -> None:
    """Add the options for reading texts from a file: --column and CSV_OPTIONS."""
    group.add_argument("--column", default="body", help="the text column (default: body)")
    delimiter_help = "CSV delimiter: one character, or 'tab' (default: a comma, or a tab for .tsv files)"
    group.add_argument("--delimiter", type=delimiter, help=delimiter_help)
    encoding_help = "encoding of CSV files, such as cp1252 (default: utf-8)"
    group.add_argument("--encoding", type=encoding, default="utf-8", help=encoding_help)
    quoting_help = "CSV quoting; none: quotes are plain text (default: none for .tsv files, else standard)"
    group.add_argument("--quoting", choices=("standard", "none"), help=quoting_help)
    escape_help = "character before quotes within CSV fields, such as a backslash (default: quotes are doubled)"
    group.add_argument("--escape", type=delimiter, metavar="CHARACTER", help=escape_help)


def delimiter(text: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(character) != 1 or character in '"\n\r':
        raise ArgumentTypeError(f"{text!r} is neither a single character nor 'tab'")
    return character


def encoding(text: str) -> str:
    try:
        "".encode(text)  # fails for codecs of other things than text
        return codecs.lookup(text).name
    except (LookupError, ValueError) as error:
        raise ArgumentTypeError(f"unknown encoding {text!r}; use a name that Python knows, such as cp1252") from error


def batching(text: str) -> str:
    if text not in BATCHINGS:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(BATCHINGS)}")
    return text


def hub_name(text: str) -> str:
    """Turn the address of a model's page on the Hub, or owner/name/, into owner/name or owner/name@revision.

    A slash in a revision is %2F, as in pages' addresses. A local folder, and anything else, is returned unchanged.
    """
    if os.path.isdir(text):
        return text
    page = re.fullmatch(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^?#]+)(?:[?#].*)?", text)
    name = (page[1] if page else text).rstrip("/")
    if page and (parts := re.fullmatch(r"(.+)/(?:tree|commit)/([^/]+)", name)):
        name = f"{parts[1]}@{parts[2]}"
    repo, at, revision = name.removesuffix("@main").partition("@")
    return f"{repo}{at}{revision.replace('/', '%2F')}"


def add_task_options(group, vectors: bool = True) -> None:
    """Add TASK_OPTIONS, without VECTOR_OPTIONS if `vectors` is False."""
    add = group.add_argument
    pair_help = "column of the second text, for models that compare two texts (NLI, rerankers)"
    add("--pair-column", metavar="COLUMN", help=pair_help)
    add("--truncation", choices=TRUNCATIONS, help=f"which text of a pair is truncated (default: {TRUNCATIONS[0]})")
    labels_help = "zero-shot classification by an NLI model: comma-separated labels, or a file with a label per line"
    add("--candidate-labels", metavar="LIST|FILE", help=labels_help)
    add("--hypothesis-template", metavar="TEXT", help=f"sentence about a label (default: {TEMPLATE!r})")
    add("--multi-label", action="store_true", help="score each candidate label by itself, as several may apply")
    if vectors:
        add_vector_options(group)
    add("--task", choices=TASKS, help="task of the model, if its files suggest another one")
    threshold_help = "probability above which a label counts as predicted when decisions are compared: a number, or a"
    threshold_help += " JSON file {label: number}"
    add("--threshold", metavar="NUMBER|FILE", help=f"{threshold_help} (default: 0.5)")


def add_original(group) -> None:
    original_help = "original of a MODEL that holds only ONNX, to compare the answers with"
    group.add_argument("--original", metavar="MODEL", type=hub_name, help=f"{original_help} (default: do not compare)")


def add_vector_options(group) -> None:
    """Add VECTOR_OPTIONS."""
    add = group.add_argument
    pooling_help = "pooling of a model without modules.json (default: mean; decoders: last token)"
    add("--pooling", choices=("mean", "cls"), help=pooling_help)
    prompt = group.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="text to put before each text, such as 'query: '")
    prompt.add_argument("--prompt-name", metavar="NAME", help="name of one of the model's own prompts")
    add("--truncate-dim", type=int_from(1), metavar="N", help="keep only the first N dimensions")
    add("--normalize", action="store_true", help="scale vectors to length 1, after truncating")


def command(*words: object, **options: object) -> str:
    """Return a command line to copy, quoted for a POSIX shell.

    Options that are None, False or empty are left out; True is a flag, and lists become comma lists. Secrets in URLs,
    and words that the scripts refuse because of control characters, become `...`.
    """
    line = list(words)
    for name, value in options.items():
        if value is None or value is False or value in ("", []):
            continue
        option = f"--{name.replace('_', '-')}"
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if value is True:
            line.append(option)
        else:
            line += [f"{option}={text}"] if text.startswith("-") else [option, text]
    words = map(without_secrets, map(str, line))
    return shlex.join("..." if CONTROL.search(word) else word for word in words)
