"""What the readers of all formats share: chunks of rows, and the contents of compressed files."""

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

CHUNK_ROWS = 10_000  # rows read at a time: a few MB of text
HEAD_BYTES = 2**20  # text at the start of a file, from which its number of rows is estimated
ZSTD_BLOCK_BYTES = 2**13  # read at a time from a .zst file; decompressed, it still fits the CPU's cache
BLOCK_BYTES = 2**15  # read at a time from other files
MAX_WINDOW = 2**31  # bytes; zstandard's largest window (--long=31), which Pushshift's dumps use
MAX_LINE = 2**26  # bytes; the longest comments take about 100 KB of JSON


@dataclass(frozen=True)
class Rows:
    """A chunk of consecutive rows of a file."""

    table: pa.Table
    bad: dict[int, tuple[int, str]] = field(default_factory=dict)  # row number in `table` -> (line, reason)
    bytes_read: int = 0  # of the file, up to the end of this chunk
    skipped: int = 0  # rows skipped between the previous chunk and this one


def read_lines(file: Location) -> Iterator[tuple[bytes, int]]:
    """Yield (a block of whole lines, bytes of the file read so far) of a plain, .gz or .zst file.

    Raises OSError, EOFError, zlib.error or ValueError if it is truncated or corrupt, or has a line above MAX_LINE.
    """
    rest, position = b"", 0
    for block, position in read_blocks(file):
        end = block.rfind(b"\n") + 1
        if end:
            yield rest + block[:end], position
            rest = b""
        rest += block[end:]
        if len(rest) > MAX_LINE:
            raise ValueError(f"corrupt: a line of more than {MAX_LINE >> 20} MiB")
    yield rest, position


def read_blocks(file: Location) -> Iterator[tuple[bytes, int]]:
    """Yield (a block of a plain, .gz or .zst file, bytes of the file read so far). Raises as read_lines."""
    name = file.name.lower()
    with file.open() as opened:
        counting = CountingReader(opened)
        if name.endswith(".zst"):
            yield from decompress_zstandard(counting)
            return
        content = gzip.GzipFile(fileobj=counting) if name.endswith(".gz") else counting
        while block := content.read(BLOCK_BYTES):
            yield block, counting.count


class CountingReader:
    """Counts the bytes read from a file: streams from a bucket have no position."""

    def __init__(self, file: BinaryIO):
        self.file, self.count = file, 0

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.count += len(block)
        return block


def decompress_zstandard(file: CountingReader) -> Iterator[tuple[bytes, int]]:
    """Decompress a zstandard file of one or more frames; zstandard's own reader accepts truncated files."""
    import zstandard

    decompressor, frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW), None
    try:
        while compressed := file.read(ZSTD_BLOCK_BYTES):
            while compressed:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(compressed), file.count
                compressed = frame.unused_data
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        if "llocation error" in str(error):
            raise MemoryError(f"its window of up to {MAX_WINDOW >> 30} GiB") from error
        raise ValueError(f"corrupt: {error}") from error
    if frame or not file.count:
        raise ValueError("truncated" if frame else "empty")


class BlockReader(io.BufferedIOBase):
    """A binary file made of blocks, for TextIOWrapper."""

    def __init__(self, blocks: Iterator[bytes]):
        self.blocks = filter(None, blocks)

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1) -> bytes:
        return next(self.blocks, b"")  # may be longer than `size`


def open_text(file: Location, encoding: str) -> io.TextIOWrapper:
    """Open a plain, .gz or .zst file as text with lines that end in a line feed; undecodable bytes: see PEP 383."""
    encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    blocks = BlockReader(block for block, _ in read_blocks(file))
    return io.TextIOWrapper(blocks, encoding, errors="surrogateescape", newline="\n")


def read_head(file: Location) -> tuple[bytes, float]:
    """Return (the first lines of a file, estimated ratio of the whole file's length to theirs)."""
    head, ratio = b"", 1.0
    with contextlib.suppress(OSError, EOFError, ValueError, zlib.error):  # reading the rows will report it
        for lines, position in read_lines(file):
            head, ratio = head + lines, file.info().size / max(position, 1)
            if len(head) >= HEAD_BYTES:
                break
    return head, ratio
