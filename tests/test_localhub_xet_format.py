"""The parsers of the Xet formats: they read what the specification says and refuse the rest."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localhub.xet_format import (
    FileEntry,
    Segment,
    XetFormatError,
    index_xorb,
    parse_shard,
    read_segment,
)
from tests.xet_bytes import SEGMENT, SHA256, WHOLE, XORB, XORB_HASH, pack_chunk, pack_shard

VALID_SHARD = pack_shard(SHA256, [SEGMENT, SEGMENT])


def test_a_shard_parses_to_its_files() -> None:
    assert parse_shard(VALID_SHARD) == [FileEntry(SHA256, "0" * 64, [SEGMENT, SEGMENT])]


@given(st.binary(max_size=400), st.integers(0, len(VALID_SHARD)), st.integers(0, 400))
def test_a_damaged_shard_is_an_error_or_a_shard(garbage: bytes, start: int, cut: int) -> None:
    try:
        files = parse_shard(VALID_SHARD[:start] + garbage + VALID_SHARD[start + cut :])
    except XetFormatError:
        return
    assert all(len(entry.sha256) == 64 and entry.size >= 0 for entry in files)


@settings(deadline=None)
@given(
    data=st.binary(max_size=400),
    start=st.integers(0, len(XORB)),
    cut=st.integers(0, len(XORB)),
    first=st.integers(0, 5),
    end=st.integers(0, 5),
)
def test_a_damaged_xorb_is_an_error_or_a_xorb(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    start: int,
    cut: int,
    first: int,
    end: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(XORB[:start] + data + XORB[start + cut :])
    segment = Segment(XORB_HASH, len(WHOLE), first, end)
    try:
        chunks = list(read_segment(path, index_xorb(path), segment))
    except XetFormatError:
        return
    assert sum(map(len, chunks)) == segment.size


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.integers(0, 2)), min_size=1))
def test_a_xorb_unpacks_to_what_was_packed(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[bytes, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "xorb"
    path.write_bytes(b"".join(pack_chunk(data, scheme) for data, scheme in chunks))
    offsets = index_xorb(path)
    for first in range(len(chunks)):
        wanted = [data for data, _ in chunks[first:]]
        segment = Segment(XORB_HASH, sum(map(len, wanted)), first, len(chunks))
        assert list(read_segment(path, offsets, segment)) == wanted
