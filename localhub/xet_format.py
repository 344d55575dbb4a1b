"""The two binary formats of the Xet protocol that an upload consists of: xorbs and shards.

A xorb is a run of compressed chunks, each behind an eight-byte header. A shard says which chunks
of which xorbs make up each file. All integers are little-endian.

Sources: the Xet protocol specification, "Xorb Formation & Serialization Format" and "MDB Shard
File Format Specification" (huggingface.co/docs/xet), and what hf_xet 1.8 sends.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lz4.frame import LZ4FrameDecompressor

# Limits of the specification and its reference implementation (`MAX_XORB_CHUNKS`).
MAX_CHUNK_BYTES = 128 * 1024
MAX_XORB_BYTES = 64 * 1024**2
MAX_XORB_CHUNKS = 8 * 1024

_SHARD_TAG = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
_SHARD_HEADER = struct.Struct("<32sQQ")  # tag, version, size of the footer
_FILE_HEADER = struct.Struct("<32sIIQ")  # Xet hash, flags, number of segments, unused
_SEGMENT = struct.Struct("<32s4I")  # xorb hash, flags, unpacked bytes, first chunk, end chunk
_ENTRY_BYTES = 48  # every entry of a shard has this size
_SHARD_VERSION = 2
_WITH_VERIFICATION = 1 << 31
_WITH_METADATA = 1 << 30
_BOOKEND = b"\xff" * 32

_CHUNK_HEADER_BYTES = 8
_STORED, _LZ4, _GROUPED_LZ4 = range(3)


class XetFormatError(ValueError):
    """An uploaded xorb or shard is not what the specification says it should be."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The chunks `[first, end)` of a xorb, `size` bytes when unpacked."""

    xorb: str
    size: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file as the concatenation of its segments, and the sha256 that must come out.

    `xet_hash` is the client's name for it, which is not recomputed.
    """

    sha256: str
    xet_hash: str
    segments: list[Segment]

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)


def parse_shard(data: bytes) -> list[FileEntry]:
    """The files of an uploaded shard.

    The xorb section behind them serves deduplication only and is not read.

    Raises `XetFormatError` when the shard is malformed or a file comes without its sha256.
    """
    tag, version, _ = _read(_SHARD_HEADER, data, 0)
    if tag != _SHARD_TAG or version != _SHARD_VERSION:
        raise XetFormatError(f"not a shard of version {_SHARD_VERSION}")
    files: list[FileEntry] = []
    offset = _ENTRY_BYTES
    while True:
        xet_hash, flags, count, _ = _read(_FILE_HEADER, data, offset)
        offset += _ENTRY_BYTES
        if xet_hash == _BOOKEND:
            return files
        if not flags & _WITH_METADATA:
            raise XetFormatError(f"file {_hex(xet_hash)} has no sha256 in its metadata")
        end = offset + count * _ENTRY_BYTES
        metadata = end + (count * _ENTRY_BYTES if flags & _WITH_VERIFICATION else 0)
        sha256, *_ = _read(_SEGMENT, data, metadata)  # laid out alike: a hash and 16 bytes
        segments = [
            Segment(_hex(xorb), size, first, last)
            for xorb, _, size, first, last in _SEGMENT.iter_unpack(data[offset:end])
        ]
        files.append(FileEntry(_hex(sha256), _hex(xet_hash), segments))
        offset = metadata + _ENTRY_BYTES


def index_xorb(path: Path) -> list[int]:
    """The byte offset of each chunk in a xorb, and last the offset of its end.

    Reads the chunk headers only. Raises `XetFormatError` when one is not valid, when the last
    chunk is cut short, or when there are more than `MAX_XORB_CHUNKS`.
    """
    offsets = [0]
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while offsets[-1] < end or end == 0:
            file.seek(offsets[-1])
            _, packed, _ = _chunk_header(file.read(_CHUNK_HEADER_BYTES))
            offsets.append(offsets[-1] + _CHUNK_HEADER_BYTES + packed)
            if len(offsets) > MAX_XORB_CHUNKS + 1:
                raise XetFormatError(f"the xorb has more than {MAX_XORB_CHUNKS} chunks")
    if offsets[-1] != end:
        raise XetFormatError(f"the xorb ends inside a chunk: {end} bytes of {offsets[-1]}")
    return offsets


def read_segment(path: Path, offsets: list[int], segment: Segment) -> Iterator[bytes]:
    """The unpacked chunks of a segment, read from its xorb, whose `index_xorb` is `offsets`.

    Raises `XetFormatError` when the xorb has no such chunks, when one does not unpack to the size
    in its header, or when together they are not of the size that the shard declares.
    """
    if not segment.first < segment.end < len(offsets):
        raise XetFormatError(
            f"xorb {segment.xorb} has {len(offsets) - 1} chunks, "
            f"the shard refers to {segment.first} to {segment.end}"
        )
    left = segment.size
    with path.open("rb") as file:
        file.seek(offsets[segment.first])
        for _ in range(segment.first, segment.end):
            scheme, packed, size = _chunk_header(file.read(_CHUNK_HEADER_BYTES))
            left -= size
            if left < 0:
                break
            yield _unpack_chunk(scheme, file.read(packed), size)
    if left:
        raise XetFormatError(f"a segment of xorb {segment.xorb} is not of its declared size")


def _chunk_header(header: bytes) -> tuple[int, int, int]:
    """Compression scheme, size in the xorb and size when unpacked of one chunk."""
    if len(header) != _CHUNK_HEADER_BYTES:
        raise XetFormatError("the xorb ends inside a chunk header")
    version, scheme = header[0], header[4]
    packed = int.from_bytes(header[1:4], "little")
    size = int.from_bytes(header[5:8], "little")
    if version != 0 or scheme > _GROUPED_LZ4:
        raise XetFormatError(f"unknown chunk version {version} or compression scheme {scheme}")
    if not 0 < size <= MAX_CHUNK_BYTES or packed > 2 * MAX_CHUNK_BYTES:
        raise XetFormatError(f"a chunk of {size} bytes packed into {packed} is out of bounds")
    return scheme, packed, size


def _unpack_chunk(scheme: int, data: bytes, size: int) -> bytes:
    if scheme == _STORED:
        unpacked = data
    else:
        try:
            # One byte more than announced, so that a frame which holds more shows itself.
            unpacked = LZ4FrameDecompressor().decompress(data, max_length=size + 1)
        except RuntimeError as error:  # what lz4 raises for a damaged frame
            raise XetFormatError(f"a chunk is not a valid LZ4 frame: {error}") from error
    if len(unpacked) != size:
        raise XetFormatError("a chunk has another size than its header says")
    return _ungroup(unpacked) if scheme == _GROUPED_LZ4 else unpacked


def _ungroup(grouped: bytes) -> bytes:
    """Undo byte grouping: first all bytes at positions 0 mod 4, then 1 mod 4, 2 and 3."""
    plain = bytearray(len(grouped))
    start = 0
    for position in range(4):
        size = len(range(position, len(grouped), 4))
        plain[position::4] = grouped[start : start + size]
        start += size
    return bytes(plain)


def _hex(digest: bytes) -> str:
    """The string form of a hash: four little-endian 64-bit numbers in hex (spec, "CAS API")."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def _read(layout: struct.Struct, shard: bytes, offset: int) -> tuple[Any, ...]:
    if offset + layout.size > len(shard):
        raise XetFormatError("the shard ends early")
    return layout.unpack_from(shard, offset)
