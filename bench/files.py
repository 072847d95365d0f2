"""Files and folders that appear whole or not at all, digests of what is in them, and names for them."""

import contextlib
import html
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from xxhash import xxh3_64

from utils import RunError, UserError, clean

LONGEST_NAME = 255  # bytes, on most file systems


def check_writable(folder: Path) -> None:
    """Makes `folder` if need be; raises UserError if no file can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"nothing can be saved in {folder}: {error.strerror}") from error


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that becomes `path` at the end of the block, or vanishes if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Makes a temporary folder that becomes `folder` at the end of the block, or vanishes if the block fails.

    With `replace` it takes the place of an older one, else RunError is raised if there is a `folder` by then.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if replace and folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError as error:
            raise RunError(f"{folder} can't be made: {error.strerror}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def make_once(folder: Path, make: Callable[[Path], object]) -> None:
    """Fills `folder` by calling `make` on a temporary one, unless it is there, or another run makes it meanwhile."""
    if folder.exists():
        return
    try:
        with new_folder(folder) as temporary:
            make(temporary)
    except RunError:
        if not folder.exists():
            raise


def digest(content: Iterable[bytes | Path]) -> str:
    """Returns 16 hexadecimal digits for byte strings, and names and contents of files, in this order."""
    total = xxh3_64()
    for part in content:
        single = xxh3_64(part if isinstance(part, bytes) else part.name.encode())
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(2**20):
                    single.update(block)
        total.update(single.digest())
    return total.hexdigest()


def markdown(text: str) -> str:
    """Escapes a text for Markdown, so that it brings no HTML, links, pictures or table cells."""
    return re.sub(r"([\\`*_\[\]()!|~#])", r"\\\1", html.escape(clean(text), quote=False))


def slug(name: str) -> str:
    """Turns a name into letters, digits, dots and dashes: `RTX 4090` into `RTX-4090`."""
    return re.sub(r"(?:[^\w.]|_)+", "-", name).strip("-.")


def file_name(name: str) -> str:
    """Turns a name into a part of a file name, each into another: `a b` into `a%20b`."""
    return re.sub(r"^\.|[^\w.-]", lambda character: f"%{ord(character[0]):02X}", name) or "%"
