"""Files and folders that appear whole or not at all, digests of their contents, and JSON."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from xxhash import xxh3_64

from utils import CACHE, RunError, UserError, first_line

LONGEST_NAME = 255  # bytes, on most file systems
BLOCK_BYTES = 2**20  # hashed at a time


def check_writable(folder: Path) -> None:
    """Create `folder` if needed. Raises UserError if no file can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        remedy = "set BENCHMARK_CACHE to another folder" if folder == CACHE else "choose another one"
        raise UserError(f"can't write to folder {folder}: {error.strerror}; {remedy}") from error


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` at the end of the block, or vanishes if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if error.strerror and not error.filename:  # of a full disk
            error.filename = str(path)
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Create a temporary folder that becomes `folder` at the end of the block, or vanishes if the block fails.

    With `replace` an older `folder` is replaced; otherwise raises RunError if one exists by then.
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
            raise RunError(f"can't create folder {folder}: {error.strerror}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def make_once(folder: Path, make: Callable[[Path], object]) -> None:
    """Fill `folder` by calling `make` on a temporary one, unless it exists or another run creates it meanwhile."""
    if folder.exists():
        return
    try:
        with new_folder(folder) as temporary:
            make(temporary)
    except RunError:
        if not folder.exists():
            raise


def digest(content: Iterable[bytes | Path]) -> str:
    """Return 16 hexadecimal digits for byte strings, and for names and contents of files, in this order."""
    total = xxh3_64()
    for part in content:
        single = xxh3_64(part if isinstance(part, bytes) else os.fsencode(part.name))
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    single.update(block)
        total.update(single.digest())
    return total.hexdigest()


def read_json(file: Path) -> dict:
    """Return the object in a JSON file. Raises UserError if there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} can't be read: it holds a {type(content).__name__}, not an object")
    return content
