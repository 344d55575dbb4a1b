"""Xorbs and shards as the Xet specification lays them out, made without the code under test."""

import hashlib
import struct

import lz4.frame
import numpy as np

from localhub.xet_format import Segment


def bfloat16(seed: int, count: int) -> bytes:
    """Weights as a model has them: their bytes compress only when grouped."""
    weights = np.random.default_rng(seed).standard_normal(count, dtype=np.float32) * 0.02
    return (weights.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def pack_chunk(data: bytes, scheme: int) -> bytes:
    body = data
    if scheme == 2:
        body = b"".join(data[position::4] for position in range(4))
    if scheme:
        body = lz4.frame.compress(body)
    sizes = len(body).to_bytes(3, "little"), len(data).to_bytes(3, "little")
    return bytes([0]) + sizes[0] + bytes([scheme]) + sizes[1] + body


def pack_hash(hexadecimal: str) -> bytes:
    return struct.pack("<4Q", *(int(hexadecimal[i : i + 16], 16) for i in range(0, 64, 16)))


def pack_shard(sha256: str | None, segments: list[Segment]) -> bytes:
    tag = b"HFRepoMetaData\0" + bytes(
        [85, 105, 103, 69, 106, 123, 129, 87, 131, 165, 189, 217, 92, 205, 209, 74, 169]
    )
    flags = (1 << 31) | ((1 << 30) if sha256 else 0)
    bookend = b"\xff" * 32 + bytes(16)
    return b"".join(
        [
            tag + struct.pack("<QQ", 2, 0),
            bytes(32) + struct.pack("<IIQ", flags, len(segments), 0),
            *(pack_hash(s.xorb) + struct.pack("<4I", 0, s.size, s.first, s.end) for s in segments),
            bytes(48 * len(segments)),
            pack_hash(sha256) + bytes(16) if sha256 else b"",
            bookend,
            bookend,
        ]
    )


CHUNKS = [b"plain bytes", b"text " * 5000, bfloat16(3, 30_000) + b"odd"]
WHOLE = b"".join(CHUNKS)
SHA256 = hashlib.sha256(WHOLE).hexdigest()
XORB = b"".join(pack_chunk(data, scheme) for scheme, data in enumerate(CHUNKS))
XORB_HASH = "0123456789abcdef" * 4
SEGMENT = Segment(XORB_HASH, len(WHOLE), 0, 3)
