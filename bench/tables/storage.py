"""Files and folders, local or in a bucket: whatever pyarrow and fsspec can read and write."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from bench.files import check_writable, new_file
from utils import RunError, UserError, first_line

READ_AHEAD = 2**23  # bytes fetched from a bucket at once: each request takes about 50 ms
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # first bytes of a Git LFS pointer
UNQUOTED_SCHEMES = "s3", "gs", "gcs", "abfs", "abfss"  # pyarrow turns %20 into a space in these URIs
CONCURRENT_FILES = 16  # files opened at the same time
FINGERPRINT_BYTES = 2**20  # read at each end of a file
ETAG = re.compile("etag|blob|md5|checksum|generation|modif|created", re.IGNORECASE)  # keys of fsspec's details


@dataclass(frozen=True)
class Location:
    """A file or folder, local or in a bucket."""

    path: str  # in the file system
    scheme: str = ""  # `s3://` or the like; empty for local files
    filesystem: FileSystem = field(default_factory=LocalFileSystem, compare=False, repr=False)

    def __str__(self) -> str:
        return self.scheme + self.path

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self.path.rstrip('/')}/{name}", self.scheme, self.filesystem)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        return None if self.scheme else Path(self.path)

    def info(self) -> FileInfo:
        return self.filesystem.get_file_info(os.fsencode(self.path))  # a local name may not be valid UTF-8

    def is_file(self) -> bool:
        """True for a regular file (not a directory, FIFO or device). Raises OSError."""
        return self.info().type == FileType.File

    def identity(self) -> tuple:
        """Return what a file has in common with links to it. Raises OSError."""
        status = self.local.stat() if self.local else None
        return (status.st_dev, status.st_ino) if status else (self.path,)

    def open(self) -> BinaryIO:
        """Open a file for reading from start to end. Raises OSError."""
        if self.local:
            return self.local.open("rb")  # about 5% faster than pyarrow
        return io.BufferedReader(self.open_seekable(), READ_AHEAD)

    def open_seekable(self) -> pa.NativeFile:
        """Open a file for reading at any position. Raises OSError."""
        return self.filesystem.open_input_file(os.fsencode(self.path))

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()

    def stamp(self) -> tuple[int, int | str | None]:
        """Return a file's size, and when it was modified, or else its ETag or the like, if known. Raises OSError."""
        info, handler = self.info(), getattr(self.filesystem, "handler", None)
        if info.mtime_ns is not None or not handler:
            return info.size, info.mtime_ns
        details = sorted(handler.fs.info(self.path).items())
        return info.size, ", ".join(f"{key} {value}" for key, value in details if value and ETAG.search(key)) or None

    def forget_listings(self) -> None:
        """Drop what fsspec has cached, so that stamp() sees changes."""
        if handler := getattr(self.filesystem, "handler", None):
            handler.fs.invalidate_cache()

    def fingerprint(self) -> list[bytes]:
        """Return a file's size, first MiB and last MiB, which identify it. Raises OSError."""
        with self.open_seekable() as file:
            size, head = file.size(), file.read(FINGERPRINT_BYTES)
            file.seek(max(size - FINGERPRINT_BYTES, 0))
            return [b"%d" % size, head, file.read(FINGERPRINT_BYTES)]

    def files(self, recursive: bool = False) -> list["Location"]:
        """Return the files in a folder, sorted by path; empty if the folder does not exist. Raises OSError."""
        if self.local:
            folders = walk(self.path) if recursive else islice(walk(self.path), 1)
            paths = [os.path.join(folder, name) for folder, names in folders for name in names]
        else:
            selector = FileSelector(self.path, allow_not_found=True, recursive=recursive)
            paths = [info.path for info in self.filesystem.get_file_info(selector) if info.type == FileType.File]
        return [Location(path, self.scheme, self.filesystem) for path in sorted(paths)]

    def is_in(self, folder: "Location") -> bool:
        """True for `folder` itself and for everything in it; links are followed."""
        inner, outer = (os.path.realpath(item.path) if item.local else str(item) for item in (self, folder))
        return f"{inner}/".startswith(f"{outer}/")

    def parts_below(self, folder: "Location") -> tuple[str, ...]:
        """Return the path components below `folder`, ending in the file name."""
        return tuple(self.path[len(folder.path.rstrip("/")) :].split("/")[1:])

    def folders_below(self, root: "Location") -> list[str]:
        """Return the folders of this file below `root`, after those directly above that are like `year=2024`."""
        folders, below = self.path.split("/")[:-1], len(self.parts_below(root)[:-1])
        above = folders[: len(folders) - below]
        named = list(takewhile(lambda folder: "=" in folder, reversed(above)))
        return [os.fsencode(name).decode(errors="replace") for name in named[::-1] + folders[len(above) :]]

    @contextlib.contextmanager
    def new_file(self) -> Iterator[BinaryIO]:
        """Open a file that appears complete at the end of the block, or not at all if the block fails.

        A file for a bucket is kept in memory until then. Raises OSError.
        """
        if self.local:
            with new_file(self.local) as file:
                yield file
            return
        yield (content := io.BytesIO())
        with self.filesystem.open_output_stream(self.path, compression=None) as stream:
            stream.write(content.getbuffer())

    def delete(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(os.fsencode(self.path))

    def check_writable(self) -> None:
        """Create a local folder if needed. Raises UserError if no file can be created in it."""
        if self.local:
            check_writable(self.local)


def walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its files) for `root` and all folders below. Raises OSError.

    Links are followed, which pyarrow does too, but each folder is visited once. Links come last in each.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    visited = set()
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        subfolders.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        if (real := os.path.realpath(folder)) in visited:
            subfolders.clear()
            continue
        visited.add(real)
        yield folder, names


def locate(text: str | Path | Location) -> Location:
    """Return the location of a path or of a URI such as `s3://bucket/folder` or `hf://datasets/owner/name`.

    Names are taken verbatim: a space is a space, and %20 is not. A URI may end in options of pyarrow's file systems
    (`?endpoint_override=...`). Raises UserError if the file system is unknown or cannot be reached.
    """
    if isinstance(text, Location):
        return text
    scheme, separator, rest = str(text).partition("://")
    if not separator:
        return Location(os.path.abspath(text))
    name, question_mark, options = rest.partition("?")
    if scheme in UNQUOTED_SCHEMES:
        if ":" in name.split("/")[0] and "@" in name.partition("/")[2]:  # else read as a port and a folder
            raise UserError(f"{text}: a secret in an address can't contain a slash; set it in the environment")
        name = quote(name, safe="/:@")
    try:
        filesystem, path = FileSystem.from_uri(f"{scheme}://{name}{question_mark}{options}")
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise UserError(f"{text} can't be reached: {first_line(error)}") from error
    if isinstance(filesystem, LocalFileSystem):
        return Location(path)
    return Location(path.rstrip("/"), f"{scheme}://", filesystem)


def check_not_lfs_pointer(file: Location) -> None:
    """Raise UserError if a file is only a Git LFS pointer."""
    with file.open_seekable() as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")


@contextlib.contextmanager
def saving(target: Location) -> Iterator[None]:
    """Turn errors of writing to `target` into a RunError that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{target} can't be written: {first_line(error)}") from error
