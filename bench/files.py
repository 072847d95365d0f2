"""Files and folders that appear whole or not at all, digests of their contents, and what is read back from them."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from xxhash import xxh3_64

from utils import CACHE, RunError, UserError, first_line, say

LONGEST_NAME = 255  # bytes, on most file systems
TEMPORARY = re.compile(r"\.swiftsure-[0-9a-f]{16}\.tmp")  # names that no user gives


def check_writable(folder: Path) -> None:
    """Create `folder` if needed. Raises UserError if no file can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        remedy = "set BENCHMARK_CACHE to another folder" if folder == CACHE else "choose another one"
        raise UserError(f"can't write to folder {folder}: {error.strerror}; {remedy}") from error


def temporary_path(folder: Path) -> Path:
    return folder / f".swiftsure-{secrets.token_hex(8)}.tmp"


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` at the end of the block, or vanishes if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path.parent)
    try:
        with temporary.open("xb") as file:
            lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.strerror and not error.filename:  # of a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Create a temporary folder that becomes `folder` at the end of the block, or vanishes if the block fails.

    With `replace` an older `folder` is replaced; otherwise raises RunError if one exists by then. The temporary folder
    is locked: one without a lock was left by a killed run, and is removed.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    temporary = temporary_path(folder.parent)
    old = temporary.with_suffix(".old")
    temporary.mkdir()
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        lock(descriptor)
        yield temporary
        if replace and os.path.lexists(folder):
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError as error:
            raise RunError(f"can't create folder {folder}: {error.strerror}") from error
    finally:
        if os.path.lexists(old) and not folder.exists():
            old.rename(folder)
        if old.is_symlink():
            old.unlink()
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        os.close(descriptor)


def lock(file: BinaryIO | int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks: then nobody else gets one either
        fcntl.flock(file, fcntl.LOCK_EX)


def remove_leftovers(parent: Path) -> None:
    """Remove what killed runs of new_file and new_folder left, except for a folder that was about to be replaced."""
    for path in parent.glob(".swiftsure-*"):
        if path.suffix == ".old":
            say(f"{path} is left from a killed run, which was replacing it: move it back, or delete it")
        elif TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # in use, or without locks
                stack.callback(os.close, left := os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir() and any(path.iterdir()):  # an empty one may be about to be locked
                    shutil.rmtree(path)
                elif path.is_file() and path.stat().st_size:
                    path.unlink()


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


def append_line(path: Path, text: str) -> None:
    """Append one or several whole lines in one write. Raises OSError.

    Several processes may append to one file. A line cut short by a crash or a full disk is ended first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(errno.EEXIST, "exists and is not a regular file")
    content = text.encode() + b"\n"
    with path.open("ab+", buffering=0) as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            content = content if file.read(1) == b"\n" else b"\n" + content
        written = file.write(content)
        if written < len(content):
            if file.tell() == os.fstat(file.fileno()).st_size:  # a partial line could pass for a complete one
                file.truncate(file.tell() - written)
            raise OSError(errno.ENOSPC, "No space left on device")


def digest(content: Iterable[bytes | Path]) -> str:
    """Return 16 hexadecimal digits for byte strings, and for names and contents of files, in this order."""
    total = xxh3_64()
    for part in content:
        total.update(xxh3_64(part if isinstance(part, bytes) else os.fsencode(part.name)).digest())
        if isinstance(part, Path):
            with part.open("rb") as file:
                total.update(hashlib.file_digest(file, xxh3_64).digest())
    return total.hexdigest()


def read_json(file: Path, types: dict | None = None) -> dict:
    """Return the object in a JSON file, one of ours if it has `types`, see parse_object. Raises UserError."""
    try:
        if file.exists() and not file.is_file() and file.parent != Path("/dev/fd"):  # of a shell's <(...)
            raise ValueError("not a regular file")
        return parse_object(file.read_bytes(), types)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read: {first_line(error)}") from error


def parse_object(content: bytes, types: dict | None = None) -> dict:
    """Return the object in JSON. Raises ValueError if there is none, or it is not as we have written it.

    `types`: key -> type, such as `int`, or `int | None` if the key may be missing. Lists hold only text, and no number
    is infinite or nan.
    """
    value = json.loads(content.decode())
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    if types:
        json.dumps(value, allow_nan=False)  # raises ValueError for nan and infinity
    for key, kind in (types or {}).items():
        found = value.get(key)
        items = found if isinstance(found, list) else []
        if not isinstance(found, kind) or not all(isinstance(item, str) for item in items):
            raise ValueError(f"{key!r} is missing or has another type")
    return value


def read_array(file: Path, shape: tuple):
    """Return the float64 array of this shape that np.save wrote; None if the file is missing or differs."""
    import numpy as np

    with contextlib.suppress(Exception):  # damaged files fail in many ways
        array = np.load(file) if file.is_file() else None
        return array if (array.shape, array.dtype) == (shape, np.float64) else None
