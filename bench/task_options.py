"""Options -> what a model is asked for: its task, the task's options, and the columns of an item."""

import os
from argparse import Namespace
from pathlib import Path

from bench.options import CHOICES, ITEM_OPTIONS, TEMPLATE, TRUNCATIONS, VECTOR_OPTIONS, list_of
from utils import UserError, clean, first_line


def text_columns(args: Namespace) -> list[str]:
    """Return the names of the columns that make an item; for --task embedding, --column may name several."""
    if args.task == "embedding":
        return list_of(str.strip)(args.column)
    return [args.column, args.pair_column] if args.pair_column else [args.column]


def task_choice(args: Namespace) -> tuple[str | None, dict]:
    """Return the name of the task, None to choose it by the model's files, and its options, see Task.with_options.

    Raises UserError if options do not fit together.
    """
    for name, choices in CHOICES.items():  # argparse has checked those of the command line
        if getattr(args, name, None) not in (None, *choices):
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(args, name)}: choose from {', '.join(map(str, choices))}")
    for name, needed in ITEM_OPTIONS.items():
        if getattr(args, name) and not getattr(args, needed):
            raise UserError(f"--{name} needs --{needed}".replace("_", "-"))
    if getattr(args, "group_column", None) and not args.pair_column:
        raise UserError("--group-column needs --pair-column")
    if sum(map(bool, (args.task, args.pair_column, args.candidate_labels is not None))) > 1:
        raise UserError("--task, --pair-column and --candidate-labels cannot be combined; give one of them")
    if args.pair_column and args.pair_column == getattr(args, "column", None):
        raise UserError(f"--column and --pair-column both name {args.column!r}; give the columns of two texts")
    if args.pair_column and getattr(args, "long", "cut") != "cut" and args.truncation != "only_first":
        raise UserError(f"--long {args.long} needs --truncation only_first: windows are parts of a pair's first text")
    if args.pair_column:
        return "pairs", {"truncation": args.truncation or TRUNCATIONS[0]}
    if args.candidate_labels is None:
        return args.task, {name: getattr(args, name, None) for name in VECTOR_OPTIONS}
    return "zero-shot", zero_shot_options(args.candidate_labels, args.hypothesis_template, args.multi_label)


def zero_shot_options(candidates: str | list[str], template: str | None, multi_label: bool | None) -> dict:
    """Return the options of zero-shot classification. `candidates`: labels, or the value of --candidate-labels."""
    labels, template = candidates, template or TEMPLATE
    if isinstance(candidates, str):
        labels = read_lines(candidates) if is_file_name(candidates) else candidates.split(",")
    if not all(isinstance(label, str) for label in labels):
        raise UserError("--candidate-labels: a label is not text; give a list of texts")
    labels = [label.strip() for label in labels]
    if not labels or "" in labels:
        raise UserError(f"--candidate-labels: a label is empty in {candidates!r}")
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"--candidate-labels: {repeated[0]!r} is given twice")
    if strange := [label for label in labels if clean(label) != label]:
        raise UserError(f"--candidate-labels: {strange[0]!r} contains a control character or a URL with secrets")
    try:
        fits = "{}" in template and template.format("a") != template.format("b")
    except (ValueError, LookupError, AttributeError):
        fits = False
    if not fits:
        raise UserError(f"--hypothesis-template {template!r} needs {{}} where the label belongs, and no other braces")
    return {"labels": labels, "template": template, "multi_label": bool(multi_label)}


def is_file_name(text: str) -> bool:
    """True if `text` is a file, or can only mean one, which is then missing."""
    is_name = "," not in text and ("/" in text or text.endswith((".txt", ".csv", ".json")))
    return is_name or os.path.exists(text)


def read_lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--candidate-labels: {file} can't be read: {first_line(error)}") from error
