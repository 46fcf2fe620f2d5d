"""Frames on a byte stream, however it is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorgrid.errors import PayloadTooLargeError, ProtocolError
from actorgrid.wire import messages
from actorgrid.wire.framing import FrameReader, array_header, frame, frames_of

PAYLOADS = st.lists(st.binary(min_size=1, max_size=200), max_size=12)


@given(PAYLOADS, st.data())
def test_a_stream_gives_the_same_payloads_wherever_it_is_cut(payloads, data):
    stream = b"".join(map(frame, payloads))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = FrameReader(1000)
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:stop])
    assert found == payloads
    assert reader.buffered_bytes == 0


@given(PAYLOADS)
def test_a_stream_may_come_byte_by_byte(payloads):
    reader = FrameReader(1000)
    found = []
    for byte in b"".join(map(frame, payloads)):
        found += reader.feed(bytes([byte]))
    assert found == payloads


@pytest.mark.parametrize("length", [0, 1001, 1 << 31, 0xFFFFFFFF])
@pytest.mark.parametrize("cut", [True, False])
def test_a_length_outside_the_limits_is_refused_before_anything_is_kept(length, cut):
    reader = FrameReader(1000)
    header = length.to_bytes(4, "big")
    if cut:
        assert reader.feed(header[:3]) == []
        header = header[3:]
    with pytest.raises(ProtocolError, match=str(length)):
        reader.feed(header + b"x" * 10)
    assert reader.buffered_bytes < 20


def test_a_reader_holds_no_more_than_one_frame():
    reader = FrameReader(1000)
    for _ in range(100):
        reader.feed(frame(b"x" * 1000))
        reader.feed(frame(b"y" * 1000)[:500])
        reader.feed(frame(b"y" * 1000)[500:])
        assert reader.buffered_bytes == 0
    reader.feed(frame(b"x" * 1000)[:-1])
    assert reader.buffered_bytes == 1003


def test_the_longest_frame_allowed_is_taken():
    reader = FrameReader(1000)
    assert reader.feed(frame(b"x" * 1000)) == [b"x" * 1000]


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=60))
def test_items_are_spread_over_frames_within_the_limit_and_in_order(values):
    items = [messages.encode((i, 0, value)) for i, value in enumerate(values)]
    frames = frames_of(messages.KIND_REPLIES, items, 400)
    found = []
    for each in frames:
        (payload,) = FrameReader(400).feed(each)
        decoded = messages.CLIENT_DECODERS[messages.KIND_REPLIES](payload)
        found += [reply.correlation for reply in decoded.replies]
    assert found == list(range(len(values)))
    # as few as possible: no two neighbours would have fitted into one
    sizes = [len(each) for each in frames]
    assert all(a + b > 400 - 24 for a, b in itertools.pairwise(sizes))


def test_an_item_larger_than_a_frame_is_refused():
    with pytest.raises(PayloadTooLargeError, match="401 bytes"):
        frames_of(messages.KIND_REPLIES, [b"x" * 401], 400)
    assert frames_of(messages.KIND_REPLIES, [], 400) == []


@pytest.mark.parametrize("size", [0, 1, 15, 16, 65535, 65536, 70000])
def test_array_headers_are_those_of_messagepack(size):
    import msgpack

    assert array_header(size) == msgpack.Packer().pack_array_header(size)
