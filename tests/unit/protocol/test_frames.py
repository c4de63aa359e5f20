"""Frames: any chunking gives the same bodies, and a broken header is found at once."""

from __future__ import annotations

import pytest

from dspool.errors import FrameTooLarge, MalformedFrame
from dspool.protocol import frames
from dspool.protocol.frames import GROWTH, HEADER_BYTES, FrameDecoder, encode_frame, seal_frame

pytestmark = pytest.mark.unit

BODIES = [b"", b"a", b"\x00\x00\x00\x00", b"hello", bytes(range(256))]
STREAM = b"".join(encode_frame(body) for body in BODIES)


def frames_of(decoder: FrameDecoder) -> list[bytes]:
    """What the decoder has to give now."""
    return [bytes(body) for body in iter(decoder.next_frame, None)]


@pytest.fixture(autouse=True)
def _no_spare_buffer() -> None:
    frames._spare.clear()


def receive(decoder: FrameDecoder, data: bytes, most: int = 2**30) -> list[bytes]:
    """As a socket would: at most `most` bytes each time, taking frames in between."""
    bodies: list[bytes] = []
    while data:
        room = decoder.space()
        count = min(len(room), len(data), most)
        assert count, "space() gave no room, which recv_into would take for the end of the pipe"
        room[:count] = data[:count]
        decoder.received(count)
        data = data[count:]
        bodies += frames_of(decoder)
    return bodies


def room_of(decoder: FrameDecoder) -> int:
    """How large the decoder's buffer is."""
    return len(decoder._buffer)


def test_a_frame_is_its_length_and_its_body() -> None:
    assert encode_frame(b"abc") == b"\x00\x00\x00\x03abc"
    assert encode_frame(memoryview(b"")) == b"\x00\x00\x00\x00"


def test_a_body_over_the_cap_is_not_framed() -> None:
    with pytest.raises(FrameTooLarge, match=r"1,001 bytes is over max_frame_bytes=1,000"):
        encode_frame(bytes(1001), 1000)
    assert len(encode_frame(bytes(1000), 1000)) == 1004


def test_no_cap_lets_a_length_through_that_four_bytes_cannot_hold() -> None:
    class Huge(bytearray):
        def __len__(self) -> int:
            return 2**32 + HEADER_BYTES

    with pytest.raises(FrameTooLarge):
        seal_frame(Huge(), 2**40)


@pytest.mark.parametrize("size", range(1, 24))
def test_any_chunk_size_gives_the_same_frames(size: int) -> None:
    decoder = FrameDecoder()
    assert receive(decoder, STREAM, size) == BODIES
    decoder.finish()


def test_a_stream_split_at_any_byte_gives_the_same_frames() -> None:
    for cut in range(len(STREAM) + 1):
        decoder = FrameDecoder()
        decoder.feed(STREAM[:cut])
        bodies = frames_of(decoder)
        decoder.feed(STREAM[cut:])
        assert bodies + frames_of(decoder) == BODIES, cut
        assert decoder.buffered == 0


def test_fed_all_at_once_it_gives_the_frames_one_by_one() -> None:
    decoder = FrameDecoder()
    decoder.feed(STREAM)
    assert decoder.buffered == len(STREAM)
    assert frames_of(decoder) == BODIES
    assert decoder.next_frame() is None


def test_feeding_nothing_changes_nothing() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"")
    assert decoder.next_frame() is None
    decoder.finish()


def test_frames_taken_later_pile_up_and_none_is_lost() -> None:
    decoder = FrameDecoder()
    bodies = [bytes([number % 256]) * 1000 for number in range(300)]
    for body in bodies:
        decoder.feed(encode_frame(body))
    assert frames_of(decoder) == bodies


def test_frames_of_all_sizes_in_a_row_come_out_whole() -> None:
    bodies = [
        bytes([size % 251]) * size for size in (1, 65_531, 65_532, 65_533, 50_000, 50_000, 200_000, 7, 300_000, 0)
    ]
    stream = b"".join(encode_frame(body) for body in bodies)
    for most in (4093, 65_536, 2**30):
        assert receive(FrameDecoder(), stream, most) == bodies


def test_a_frame_that_starts_at_the_end_of_the_buffer_is_moved_to_its_front() -> None:
    decoder = FrameDecoder()
    first, second = bytes(65_536 - 4 - 10), b"x" * 60_000
    stream = encode_frame(first) + encode_frame(second)
    assert receive(decoder, bytes(stream)) == [first, second]
    assert room_of(decoder) == 65_536, "it fits, so nothing grew"


def test_whole_frames_that_nobody_took_are_moved_to_the_front_too() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(bytes(40_000)))
    assert decoder.next_frame() is not None
    decoder.feed(encode_frame(b"a" * 20_000) + encode_frame(b"b" * 9_000))
    assert [len(body) for body in frames_of(decoder)] == [20_000, 9_000]


def test_the_buffer_grows_with_what_came_and_not_with_what_is_claimed() -> None:
    decoder = FrameDecoder()
    receive(decoder, (64 * 2**20).to_bytes(4, "big") + b"x")
    assert room_of(decoder) == 65_536
    receive(decoder, bytes(200_000), 1000)
    assert room_of(decoder) <= GROWTH * 200_005 + 65_536


def test_the_buffer_grows_to_the_frames_own_size_and_not_beyond() -> None:
    decoder = FrameDecoder()
    body = bytes(1_000_000)
    assert receive(decoder, bytes(encode_frame(body))) == [body]
    assert room_of(decoder) == len(body) + HEADER_BYTES


def test_after_a_large_frame_its_memory_is_given_back() -> None:
    decoder = FrameDecoder()
    receive(decoder, bytes(encode_frame(bytes(1_000_000))))
    decoder.space()
    assert room_of(decoder) == 65_536
    assert receive(decoder, STREAM) == BODIES


def test_the_buffer_given_back_last_serves_the_next_large_frame_on_any_pipe() -> None:
    first, second = FrameDecoder(), FrameDecoder()
    receive(first, bytes(encode_frame(bytes(1_000_000))))
    buffer = first._buffer
    first.give_back()
    assert room_of(first) == 65_536
    body = bytes(range(256)) * 3000
    assert receive(second, bytes(encode_frame(body))) == [body]
    assert second._buffer is buffer


def test_no_buffer_is_spare_while_a_pipe_still_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A buffer is given back; 2. there is no memory for a small one, or a handler raises; 3. two would use it."""
    decoder = FrameDecoder()
    receive(decoder, bytes(encode_frame(bytes(1_000_000))))

    def refuse(size: int) -> bytearray:
        raise MemoryError

    monkeypatch.setattr(frames, "bytearray", refuse, raising=False)
    with pytest.raises(MemoryError):
        decoder.give_back()
    assert not frames._spare


def test_a_buffer_several_times_too_large_is_not_used_for_a_smaller_frame() -> None:
    first, second = FrameDecoder(), FrameDecoder()
    receive(first, bytes(encode_frame(bytes(8_000_000))))
    first.give_back()
    receive(second, bytes(encode_frame(bytes(1_000_000))))
    assert room_of(second) == 1_000_000 + HEADER_BYTES


def test_a_buffer_that_is_too_large_to_be_kept_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "LARGEST_SPARE", 1_000_000)
    decoder = FrameDecoder()
    receive(decoder, bytes(encode_frame(bytes(1_000_000))))
    decoder.give_back()
    assert not frames._spare


def test_nothing_is_given_back_while_another_frame_has_begun() -> None:
    decoder = FrameDecoder()
    large = bytes(1_000_000)
    decoder.feed(bytes(encode_frame(large)) + b"\0\0\0")
    assert [len(body) for body in frames_of(decoder)] == [len(large)]
    decoder.give_back()
    decoder.feed(b"\x01a")
    assert list(map(bytes, frames_of(decoder))) == [b"a"]


def test_a_view_that_the_caller_keeps_does_not_stop_the_buffer_from_growing() -> None:
    decoder = FrameDecoder()
    kept = decoder.space()
    body = bytes(range(256)) * 1000
    assert receive(decoder, bytes(encode_frame(body))) == [body]
    assert len(kept) == 65_536


def test_a_frame_is_handed_out_without_a_copy() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(b"abc"))
    body = decoder.next_frame()
    assert body is not None
    assert body.obj is decoder._buffer


def test_a_length_over_the_cap_is_refused_as_soon_as_its_four_bytes_are_there() -> None:
    decoder = FrameDecoder(1000)
    decoder.feed(b"\x00\x00\x03")
    assert decoder.next_frame() is None
    with pytest.raises(FrameTooLarge, match=r"1,001 bytes long; max_frame_bytes=1,000$"):
        decoder.feed(b"\xe9")


def test_it_is_refused_as_well_where_the_bytes_came_by_received() -> None:
    decoder = FrameDecoder(1000)
    decoder.space()[:4] = b"\xff\xff\xff\xff"
    decoder.received(4)
    with pytest.raises(FrameTooLarge, match="4,294,967,295"):
        decoder.next_frame()


def test_a_frame_as_long_as_the_cap_is_taken() -> None:
    decoder = FrameDecoder(1000)
    decoder.feed(encode_frame(bytes(1000)))
    assert frames_of(decoder) == [bytes(1000)]


def test_a_broken_decoder_stays_broken() -> None:
    decoder = FrameDecoder(1000)
    with pytest.raises(FrameTooLarge):
        decoder.feed(b"\xff\xff\xff\xff")
    for attempt in (decoder.next_frame, decoder.finish, lambda: decoder.feed(b""), lambda: decoder.feed(STREAM)):
        with pytest.raises(FrameTooLarge, match="4,294,967,295"):
            attempt()


def test_frames_before_a_broken_one_are_given_first() -> None:
    decoder = FrameDecoder(1000)
    decoder.feed(encode_frame(b"good") + b"\xff\xff\xff\xff")
    body = decoder.next_frame()
    assert body is not None
    assert bytes(body) == b"good"
    with pytest.raises(FrameTooLarge):
        decoder.next_frame()


def test_text_where_a_length_should_be_is_called_a_missing_header() -> None:
    decoder = FrameDecoder()
    with pytest.raises(FrameTooLarge, match=r"text 'Hell': the length header seems to be missing"):
        decoder.feed(b"Hello, world\n")


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_pipe_that_ends_inside_a_frame_says_how_far_it_got(cut: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(b"abc")[:cut])
    assert decoder.next_frame() is None
    with pytest.raises(MalformedFrame, match=f"ended after {cut} of {4 if cut < 4 else 7} bytes"):
        decoder.finish()


def test_a_pipe_may_end_between_frames() -> None:
    decoder = FrameDecoder()
    decoder.finish()
    decoder.feed(STREAM)
    frames_of(decoder)
    decoder.finish()
