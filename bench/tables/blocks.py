"""What all formats share: the Rows that they give, and the bytes of compressed files."""

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa

from bench.tables.storage import Location

N_ROWS = 10_000  # that are handed on at once: a few MB of text
HEAD_BYTES = 2**20  # of text at the beginning of a file, from which its rows are estimated
PIECE_BYTES = 2**13  # of a zstandard file, decompressed at a time: so few that the result stays in the CPU's cache
BLOCK_BYTES = 2**18  # of any other file
MAX_WINDOW = 2**31  # bytes, the largest that zstandard has (--long=31), which Pushshift's dumps need
MAX_LINE = 2**26  # bytes; the longest comments have about 100 KB of JSON


@dataclass(frozen=True)
class Rows:
    """Some rows of a file.

    bad: number of a row in `table` -> (its line, why it can't be read); its values are null. bytes_read: how far the
    file is read. passed_over: rows of the file between those before and these, which nobody wants.
    """

    table: pa.Table
    bad: dict[int, tuple[int, str]] = field(default_factory=dict)
    bytes_read: int = 0
    passed_over: int = 0


def read_lines(file: Location) -> Iterator[tuple[bytes, int]]:
    """Yields (a block of whole lines, bytes of the file that were read so far) of a plain, .gz or .zst file.

    Raises OSError, EOFError, zlib.error or ValueError if it is truncated, corrupt, or has a line above MAX_LINE.
    """
    rest, position = b"", 0
    for text, position in read_blocks(file):
        end = text.rfind(b"\n") + 1
        if end:
            yield rest + text[:end], position
            rest = b""
        rest += text[end:]
        if len(rest) > MAX_LINE:
            raise ValueError(f"corrupt: a line of more than {MAX_LINE >> 20} MiB")
    yield rest, position


def read_blocks(file: Location) -> Iterator[tuple[bytes, int]]:
    """Yields (a block of a plain, .gz or .zst file, bytes of the file that were read so far). Raises as read_lines."""
    name = file.name.lower()
    with file.open() as opened:
        counting = CountingReader(opened)
        if name.endswith(".zst"):
            yield from decompress_zstandard(counting)
            return
        unpacked = gzip.GzipFile(fileobj=counting) if name.endswith(".gz") else counting
        while block := unpacked.read(BLOCK_BYTES):
            yield block, counting.count


class CountingReader:
    """Counts what is read of a binary file: one in a bucket doesn't know its position."""

    def __init__(self, file: BinaryIO):
        self.file, self.count = file, 0

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.count += len(block)
        return block


def decompress_zstandard(file: CountingReader) -> Iterator[tuple[bytes, int]]:
    """Decompresses a zstandard file of one or more frames."""
    import zstandard  # whose stream reader would take a truncated file for a whole one

    decompressor, frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW), None
    try:
        while piece := file.read(PIECE_BYTES):
            while piece:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(piece), file.count
                piece = frame.unused_data
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        if "llocation error" in str(error):
            raise MemoryError(f"its window of up to {MAX_WINDOW >> 30} GiB") from error
        raise ValueError(f"corrupt: {error}") from error
    if frame or not file.count:
        raise ValueError("truncated" if frame else "empty")


class BlockReader(io.RawIOBase):
    """A binary file of blocks that come one after another."""

    def __init__(self, blocks: Iterator[bytes]):
        self.blocks, self.rest = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self.rest:
            if (block := next(self.blocks, None)) is None:
                return 0
            self.rest = memoryview(block)
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def open_text(file: Location, encoding: str) -> io.TextIOWrapper:
    """Opens a plain, .gz or .zst file as text, whose lines end in a line feed."""
    blocks = io.BufferedReader(BlockReader(block for block, _ in read_blocks(file)), BLOCK_BYTES)
    encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    return io.TextIOWrapper(blocks, encoding, errors="surrogateescape", newline="\n")


def read_head(file: Location) -> tuple[bytes, float]:
    """Returns (the first lines of a file, how many times as long the whole file is, about)."""
    head, times = b"", 1.0
    with contextlib.suppress(OSError, EOFError, ValueError, zlib.error):  # it is said when the rows are read
        for lines, position in read_lines(file):
            head, times = head + lines, file.size() / max(position, 1)
            if len(head) >= HEAD_BYTES:
                break
    return head, times
