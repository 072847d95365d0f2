"""What every script shares: errors, the command line, signals and printing.

Nothing heavy is imported here, so that every `--help` is instant.
"""

import atexit
import contextlib
import math
import os
import re
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("BENCHMARK_CACHE", ROOT / ".cache"))  # random-roberta-base, token ids, references
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # no row, card or line of output holds these
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT  # that end a script


class UserError(Exception):
    """Wrong usage or input: the scripts print its one line and exit with its code."""

    code = 2


class RunError(UserError):
    """Something that went wrong on the way, through no fault of the input."""

    code = 1


class Parser(ArgumentParser):
    """An argument parser that shows the script's docstring, and whose errors are one line with exit code 2."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)

    def parse_args(self, *arguments):
        """Parses all arguments; an unknown one is named without its value, which may be a token."""
        args, unknown = self.parse_known_args(*arguments)
        if unknown:
            names = [word.split("=")[0] for word in unknown if word.startswith("-")] or ["a word too many"]
            near = nearest(names[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(names)}" + f"; did you mean {near}?" * bool(near))
        return args

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {clean(message)}\n")


def int_from(least: int, most: float = math.inf) -> Callable[[str], int]:
    """Makes a parser of whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.strip().isdecimal() or not least <= int(text) <= most:
            end = "on" if most == math.inf else f"to {most}"
            raise ArgumentTypeError(f"{text!r} is not a whole number from {least} {end}")
        return int(text)

    return parse


def list_of(parse: Callable) -> Callable[[str], list]:
    """Makes a parser of comma lists; of equal items the first stays."""
    return lambda text: list(dict.fromkeys(parse(item) for item in text.split(",")))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Returns which of some names was probably meant; None if none is like it."""
    known = {other.lower(): other for other in names}
    return next((known[like] for like in get_close_matches(name.lower(), known, n=1, cutoff=0.85)), None)


def say(line: str = "") -> None:
    """Prints a line on standard error."""
    print(line, file=sys.stderr, flush=True)


def clean(text: str) -> str:
    """Replaces line breaks, escape codes and half surrogates by spaces."""
    return CONTROL.sub(" ", text)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, with those that it announces by a colon; else the error's type."""
    line = ""
    for line in accumulate(str(error).strip().splitlines(), "{} {}".format):
        if not line.endswith(":"):
            break
    return clean((line or type(error).__name__)[:300])


def stop(number: int, _) -> NoReturn:
    """Handles a signal: ends the script so that everything half-made is cleaned up; a second signal does nothing."""
    ignore_signals()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def open_standard_streams() -> None:
    """Opens to nothing what is closed (`2>&-`): else the next file that is opened would get what is printed."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a script and exits with what `main` returns.

    A UserError, or what the system refuses, is one line; Ctrl-C is code 130, a reader who has gone (`| head`) 141.
    """
    script, message = Path(sys.argv[0]).name, ""
    open_standard_streams()
    sys.stdout.reconfigure(errors="backslashreplace")  # for text that the terminal can't show
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell or nohup has it
            signal.signal(number, stop)
    try:
        if CONTROL.search("".join(sys.argv[1:])):
            raise UserError("an argument has a line break, a control character or bytes that are no UTF-8")
        code = main()
        sys.stdout.flush()
    except UserError as error:
        code, message = error.code, clean(str(error))
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except OSError as error:  # a full disk, a terminal or a reader that is gone
        code, message = (141, "") if isinstance(error, BrokenPipeError) else (1, first_line(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes the rest when it ends
    atexit.register(ignore_signals)  # called first of all that is registered: what ends now ends in order
    with contextlib.suppress(OSError):
        if message:
            say(f"{script}: {message}")
    sys.exit(code)
