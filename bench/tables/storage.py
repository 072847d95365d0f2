"""Files and folders, on this machine or in a bucket: whatever pyarrow and fsspec can read and write."""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from bench.files import check_writable, new_file
from utils import RunError, UserError, first_line

READ_AHEAD = 2**23  # bytes of a file in a bucket that are fetched at once: a request takes some 50 ms
POINTER = b"version https://git-lfs.github.com/spec/"  # how a Git LFS pointer begins
QUOTED = "s3", "gs", "gcs", "abfs", "abfss"  # whose URIs pyarrow itself reads; the others fsspec
CONCURRENT_FILES = 16  # files that are looked at together
ENDS = 2**20  # bytes at the beginning and at the end of a file that stand for all of it


@dataclass(frozen=True)
class Location:
    """A file or folder: its `path` in a file system, whose `scheme` is `s3://` or the like; nothing on this machine."""

    path: str
    scheme: str = ""
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
        """The path on this machine; None in a bucket."""
        return None if self.scheme else Path(self.path)

    def is_file(self) -> bool:
        """Says whether it is a file that can be read, no pipe and no folder. Raises OSError."""
        return os.path.isfile(self.path) if self.local else self.info().type == FileType.File

    def exists(self) -> bool:
        return os.path.lexists(self.path) if self.local else self.info().type != FileType.NotFound

    def is_folder(self) -> bool:
        return os.path.isdir(self.path) if self.local else self.info().type == FileType.Directory

    def size(self) -> int:
        return self.local.stat().st_size if self.local else self.info().size

    def info(self) -> FileInfo:
        return self.filesystem.get_file_info(self.path)

    def open(self) -> BinaryIO:
        """Opens a file to be read from its beginning. Raises OSError."""
        if self.local:
            return self.local.open("rb")
        return self.filesystem.open_input_stream(self.path, compression=None, buffer_size=READ_AHEAD)

    def read(self) -> bytes:
        """Reads a small file. Raises OSError."""
        with self.open() as file:
            return file.read()

    def open_anywhere(self) -> BinaryIO:
        """Opens a file of which some splits are read. Raises OSError."""
        return self.local.open("rb") if self.local else self.filesystem.open_input_file(self.path)

    def ends(self) -> list[bytes]:
        """Reads what tells a file from another: its size, its beginning and its end. Raises OSError."""
        with self.open_anywhere() as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            beginning = file.read(ENDS)
            file.seek(max(size - ENDS, 0))
            return [b"%d" % size, beginning, file.read(ENDS)]

    def files(self, recursive: bool = False) -> list["Location"]:
        """Lists what is in a folder and is no folder, in the order of paths; nothing where the folder isn't there."""
        if self.local:
            tree = walk(self.path) if recursive else islice(walk(self.path), 1)
            paths = [os.path.join(folder, name) for folder, names in tree for name in names]
        else:
            found = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True, recursive=recursive))
            paths = [one.path for one in found if one.type == FileType.File]
        return [Location(path, self.scheme, self.filesystem) for path in sorted(paths)]

    def is_in(self, folder: "Location") -> bool:
        """Says whether this is a folder, or in it, wherever links lead."""
        own, other = (os.path.realpath(one.path) if one.local else str(one) for one in (self, folder))
        return f"{own}/".startswith(f"{other}/")

    def parts_below(self, folder: "Location") -> tuple[str, ...]:
        """Returns the names of the folders between `folder` and this file, and the file's own; for `folder` nothing."""
        return tuple(self.path[len(folder.path.rstrip("/")) :].split("/")[1:])

    @contextlib.contextmanager
    def new_file(self) -> Iterator[BinaryIO]:
        """Opens a file that is there at the end of the block, whole, or not at all if the block fails.

        In a bucket it is kept in memory until then, and sent at once. Raises OSError.
        """
        if self.local:
            with new_file(self.local) as file:
                yield file
            return
        yield (content := io.BytesIO())
        with self.filesystem.open_output_stream(self.path, compression=None) as stream:
            stream.write(content.getbuffer())

    def delete(self) -> None:
        """Deletes a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path)

    def check_writable(self) -> None:
        """Raises UserError if no file can be made in this folder, which is made if need be."""
        if self.local:
            check_writable(self.local)


def walk(top: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (a folder below `top`, names of its files), wherever links lead, but each folder once. Raises OSError."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    seen = set()
    for folder, inner, names in os.walk(top, onerror=fail, followlinks=True):
        inner.sort()
        if os.path.realpath(folder) in seen:
            inner.clear()
            continue
        seen.add(os.path.realpath(folder))
        yield folder, names


def locate(text: str | Path | Location) -> Location:
    """Returns the location of a path, or of `s3://bucket/folder`, `hf://datasets/owner/name` or the like.

    Names are taken as they are: a space is a space, and %20 is no space. The options that pyarrow's file systems know
    may stand behind a question mark (`?endpoint_override=...`). Raises UserError if there is no such file system, or if
    it can't be reached.
    """
    if isinstance(text, Location):
        return text
    scheme, mark, rest = str(text).partition("://")
    if not mark:
        return Location(os.path.abspath(text))
    name, question, options = rest.partition("?")
    if scheme in QUOTED:
        name = quote(name, safe="/:@")
    try:
        filesystem, path = FileSystem.from_uri(f"{scheme}://{name}{question}{options}")
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise UserError(f"{text} can't be reached: {first_line(error)}") from error
    if isinstance(filesystem, LocalFileSystem):
        return Location(path)
    return Location(path.rstrip("/"), f"{scheme}://", filesystem)


def check_no_pointer(file: Location) -> None:
    """Raises UserError if a Git LFS pointer is in the place of a file."""
    with file.open_anywhere() as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise UserError(f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` where it is from")


@contextlib.contextmanager
def saving(place: Location) -> Iterator[None]:
    """Turns the errors of a bucket into a RunError that names the place."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{place} can't be written: {first_line(error)}") from error
