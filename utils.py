"""What every script shares: errors, signals and printing. It imports nothing heavy."""

import atexit
import contextlib
import errno
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import NoReturn, TextIO

ROOT = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("BENCHMARK_CACHE") or ROOT / ".cache")  # random-roberta-base, references
# never in a row, a card or a line of output; the last two ranges reverse the text behind them on a screen
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
USER = re.compile(r"://(?:[^/\s@]*:\S{,1000}|[^/\s@]{,1000})@")  # of a URL; a secret may contain slashes
# a URL up to its question mark; and its query up to the last of the quotes around it, punctuation, or the line's end
QUERY = r"""(?m)(?:(?<=(['"]))|(?<![\w.+'"-]))([\w.+-]+://[^?\n]{,1000}?\?)(?=\S)(?!\.{3}(?!\w))(?:.+(?=\1)|.+?(?=[:;,)]\s|$))"""
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT  # each ends a script


class UserError(Exception):
    """Wrong usage or input: a script prints the message on one line and exits with `code`."""

    code = 2

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class RunError(UserError):
    """A failure that is not the input's fault."""

    code = 1


def say(line: object = "", file: TextIO | None = None) -> None:
    """Print a line on standard error, or into `file`, whatever the names in it contain."""
    print(clean(str(line)), file=file or sys.stderr, flush=True)


def clean(text: str) -> str:
    """Replace line breaks, control characters and lone surrogates by spaces, and secrets in URLs by `...`."""
    return CONTROL.sub(" ", without_secrets(text))


def without_secrets(text: str) -> str:
    """Replace the user, the password and the query of URLs: `s3://KEY:SECRET@bucket` becomes `s3://...@bucket`."""
    return re.sub(QUERY, r"\2...", USER.sub("://...@", text)) if "://" in text else text


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, with the next if it ends in a colon, or the error's type."""
    line = ""
    for line in accumulate(str(error).strip().splitlines(), "{} {}".format):
        if not line.endswith(":"):
            break
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
        line += f"; free some space, or set TMPDIR if {tempfile.gettempdir()} is full"
    return clean((line or type(error).__name__)[:3000])[:300]


def stop(number: int, _) -> NoReturn:
    """Handle a signal: end the script in a way that cleans up; further signals are ignored."""
    ignore_signals()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def open_standard_streams() -> None:
    """Reopen closed standard streams (`2>&-`) on /dev/null: else the next opened file would receive our output."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


def environment_problem() -> str:
    """Return why no script can work in this environment, and what to do; empty if there is no reason."""
    if sys.flags.optimize > 1:
        return "transformers needs docstrings: unset PYTHONOPTIMIZE, or set it to 1; do not run python -OO"
    try:
        os.getcwd()
    except OSError as error:
        return f"the working directory cannot be used ({error.strerror}): change to another one"
    try:
        tempfile.gettempdir()
    except OSError:
        return "no folder for temporary files can be written to: set TMPDIR to one with free space"
    return ""


def before_imports(parse_arguments: Callable) -> None:
    """Do what cannot wait for the imports that follow, which take seconds: --help, Ctrl-C, and refusals."""
    if environment_problem():
        run(parse_arguments)  # reports it
    if {"-h", "--help"} & set(sys.argv):
        parse_arguments()
    for name in [name for name in os.environ if name.startswith("TQDM_") and name != "TQDM_DISABLE"]:
        del os.environ[name]  # tqdm can't be imported with one that it can't read
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # modules being imported could catch an exception


def run(main: Callable[[], int]) -> NoReturn:
    """Run a script and exit with the code that `main` returns.

    A UserError or OSError is reported on one line. Exit code 130 is for Ctrl-C, 141 for a closed pipe (`| head`).
    """
    message = ""
    open_standard_streams()
    sys.stdout.reconfigure(errors="backslashreplace")  # for characters that the terminal can't show
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # by a shell or nohup
            signal.signal(number, stop)
    try:
        if CONTROL.search("".join(sys.argv[1:])):
            raise UserError("an argument contains a line break, a control character or invalid UTF-8")
        if problem := environment_problem():
            raise UserError(problem)
        code = main()
        sys.stdout.flush()
    except UserError as error:
        code, message = error.code, str(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except OSError as error:  # a full disk, a closed terminal or pipe
        code, message = (141, "") if isinstance(error, BrokenPipeError) else (1, first_line(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left when it ends
    atexit.register(ignore_signals)  # runs first at exit, so that signals don't disturb the others
    with contextlib.suppress(OSError):
        if message:
            say(f"{Path(sys.argv[0]).name}: {message}")
    sys.exit(code)
