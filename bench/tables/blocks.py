"""What the readers of all formats share: chunks of rows, and the contents of compressed files."""

import codecs
import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import BinaryIO

import pyarrow as pa

from bench.tables.storage import Location

CHUNK_ROWS = 10_000  # rows read at a time: a few MB of text
CHUNK_BYTES = 2**24  # text read at a time, if rows are long
HEAD_BYTES = 2**20  # text at the start of a file, from which its number of rows is estimated
ZSTD_BLOCK_BYTES = 2**13  # read at a time from a .zst file; decompressed, it still fits the CPU's cache
ZSTD_BOMB_BYTES = 2**10  # at a time if the text is over 100 times as long: it has at most 32 MiB
BLOCK_BYTES = 2**15  # read at a time from other files
MAX_WINDOW = 2**31  # bytes; zstandard's largest window (--long=31), which Pushshift's dumps use
MAX_LINE = 2**26  # bytes; the longest comments take about 100 KB of JSON
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # the former begins like that of UTF-32
# how a reason begins if a row is not in the file's encoding, and if the row was read but something must be said
BAD_BYTE, NOTE = "byte 0x", "note: "


@dataclass(frozen=True)
class Rows:
    """A chunk of consecutive rows of a file."""

    table: pa.Table
    # row number in `table` -> (line, reason); with a NOTE the row is complete
    bad: dict[int, tuple[int, str]] = field(default_factory=dict)
    bytes_read: int = 0  # of the file, up to the end of this chunk
    skipped: int = 0  # rows skipped between the previous chunk and this one


def read_lines(file: Location, encoding: str = "utf-8") -> Iterator[tuple[bytes, int]]:
    """Yield (a block of whole lines, bytes of the file read so far), see read_blocks."""
    rest, position = [], 0
    for block, position in read_blocks(file, encoding):
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join([*rest, block[:end]]), position
            rest = []
        rest.append(block[end:])
    yield b"".join(rest), position


def read_blocks(file: Location, encoding: str = "utf-8") -> Iterator[tuple[bytes, int]]:
    """Yield (a block of text as UTF-8, bytes of the file read so far) of a plain, .gz or .zst file.

    A byte order mark overrides the encoding. An undecodable byte stays invalid UTF-8. Raises OSError, EOFError,
    zlib.error or ValueError if the file is truncated or corrupt, or has a line above MAX_LINE.
    """
    blocks, length = unpack(file), 0
    first, position = next(((block, position) for block, position in blocks if block), (b"", 0))
    if mark := next(filter(first.startswith, MARKS), b""):
        encoding = MARKS[mark]
    blocks = chain([(first, position)], blocks)
    if codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):
        blocks = to_utf_8(blocks, encoding)
    first, position = next(blocks)
    first = re.sub(rb"^(\xef\xbb\xbf)+", b"", first)  # several, if a program adds one to text that has one
    blocks = chain([(first, position)], blocks)
    for block, position in blocks:
        start, end = block.find(b"\n"), block.rfind(b"\n")
        if length + (start if start >= 0 else len(block)) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE >> 20} MiB")
        length = len(block) - end if end >= 0 else length + len(block)
        if block:  # to readers, an empty one is the end
            yield block, position


def to_utf_8(blocks: Iterator[tuple[bytes, int]], encoding: str) -> Iterator[tuple[bytes, int]]:
    """Decode blocks; an undecodable byte becomes half of a surrogate pair, which is not valid UTF-8 either."""
    decoder, position = codecs.getincrementaldecoder(encoding)("half-surrogates"), 0
    for block, position in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass"), position
    yield decoder.decode(b"", True).encode("utf-8", "surrogatepass"), position


def half_surrogates(error: UnicodeDecodeError) -> tuple[str, int]:
    """Handle undecodable bytes like Python's `surrogateescape`, which leaves out those below 0x80."""
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("half-surrogates", half_surrogates)


def undecoded(content: bytes, encoding: str = "utf-8") -> str:
    """Return a reason that names the first undecodable byte in some of read_blocks' text; empty if there is none."""
    try:
        content.decode()
        return ""
    except UnicodeDecodeError as error:
        byte = content[error.start]
        if half := re.match(rb"\xed([\xb0-\xb3])([\x80-\xbf])", content[error.start :]):  # see half_surrogates
            byte = (half[1][0] & 3) << 6 | half[2][0] & 63
    return f"{BAD_BYTE}{byte:02x} is not valid {encoding.upper()}"


def unpack(file: Location) -> Iterator[tuple[bytes, int]]:
    """Yield (a block of the decompressed file, bytes of the file read so far)."""
    name = file.name.lower()
    with file.open() as opened:
        if name.endswith(".zst"):
            yield from decompress_zstandard(opened)
            return
        content = gzip.GzipFile(fileobj=opened) if name.endswith(".gz") else opened
        while block := content.read(BLOCK_BYTES):
            yield block, opened.tell()


def decompress_zstandard(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Decompress a zstandard file of one or more frames; zstandard's own reader accepts truncated files."""
    import zstandard

    decompressor, frame, step = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW), None, ZSTD_BOMB_BYTES
    try:
        while compressed := file.read(ZSTD_BLOCK_BYTES):
            while compressed:
                frame = frame or decompressor.decompressobj()
                block, compressed = frame.decompress(compressed[:step]), compressed[step:]
                compressed = frame.unused_data + compressed
                yield block, file.tell() - len(compressed)
                step = ZSTD_BLOCK_BYTES if len(block) < 100 * step else ZSTD_BOMB_BYTES
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        if "llocation error" in str(error):
            raise MemoryError(f"its window of up to {MAX_WINDOW >> 30} GiB") from error
        raise ValueError(f"corrupt: {error}") from error
    if frame or not file.tell():
        raise ValueError("truncated" if frame else "empty")


class BlockReader(io.BufferedIOBase):
    """The text of a plain, .gz or .zst file as UTF-8, for TextIOWrapper. `count` is for the caller to reset."""

    def __init__(self, file: Location, encoding: str):
        self.blocks, self.encoding, self.count = read_blocks(file, encoding), encoding, 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1) -> bytes:
        block, _ = next(self.blocks, (b"", 0))
        self.count += len(block)
        if self.count > CHUNK_BYTES + 4 * MAX_LINE:  # a field of MAX_LINE characters may take that
            raise ValueError(f"a row of more than {4 * MAX_LINE >> 20} MiB")
        return block  # may be longer than `size`


def read_head(file: Location, blocks: Iterator[tuple[bytes, int]]) -> tuple[bytes, float]:
    """Return (the first `blocks` of lines of a file, estimated ratio of the whole file's length to theirs)."""
    head, ratio = b"", 1.0
    with contextlib.suppress(OSError, EOFError, ValueError, zlib.error):  # reading the rows will report it
        for lines, position in blocks:
            head, ratio = head + lines, file.info().size / max(position, 1)
            if len(head) >= HEAD_BYTES:
                break
    return head, ratio
