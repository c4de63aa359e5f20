"""Records of a template's control socket: whole, typed, with their descriptors or none of them."""

from __future__ import annotations

import array
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dspool.errors import MalformedFrame
from dspool.protocol.messages import ErrorInfo
from dspool.protocol.records import (
    DescriptorsLost,
    Exited,
    Fork,
    Forked,
    Importing,
    Prepare,
    Prepared,
    Record,
    Refused,
    Unprepared,
    receive_record,
    send_record,
)

pytestmark = pytest.mark.unit

RECORDS: list[Record] = [
    Prepare(["/a"], ["json"], True),
    Fork(1),
    Importing("json"),
    Prepared("two threads"),
    Unprepared(ErrorInfo("boot_error", "no luck")),
    Forked(1, 4711),
    Refused(2, errno=24),
    Exited(1, None, 9, 12_345),
]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@contextmanager
def no_free_descriptor_but(number: int) -> Iterator[None]:
    """This process can open `number` more file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probes = [os.dup(0) for _ in range(number + 1)]
    for fd in probes:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (sorted(probes)[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_arrives_as_it_was_sent(record: Record, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    send_record(ours, record)
    assert receive_record(theirs) == (record, [])


def test_records_do_not_run_together(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    for record in RECORDS:
        send_record(ours, record)
    assert [receive_record(theirs) for _ in RECORDS] == [(record, []) for record in RECORDS]


def test_the_end_is_none_and_nothing_yet_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        receive_record(theirs)
    ours.close()
    assert receive_record(theirs) is None


def test_as_many_descriptors_as_a_worker_can_have_arrive_close_on_exec(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    read_fd, write_fd = os.pipe()
    send_record(ours, Fork(1), [write_fd] * 133)
    received = receive_record(theirs)
    assert received is not None
    record, fds = received
    assert (record, len(fds)) == (Fork(1), 133)
    assert not any(os.get_inheritable(fd) for fd in fds)
    os.close(write_fd)
    os.write(fds[0], b"x")
    assert os.read(read_fd, 1) == b"x"
    for fd in (read_fd, *fds):
        os.close(fd)


def test_descriptors_that_do_not_all_fit_are_closed_and_the_record_says_whose_they_were(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    read_fd, write_fd = os.pipe()
    send_record(ours, Fork(7), [write_fd] * 5)
    with no_free_descriptor_but(2), pytest.raises(DescriptorsLost) as caught:
        receive_record(theirs)
    assert caught.value.record == Fork(7)
    assert caught.value.strerror == "Too many open files"
    os.close(write_fd)
    assert os.read(read_fd, 1) == b"", "a copy of the write end is still open"
    os.close(read_fd)
    send_record(ours, Fork(8))
    assert receive_record(theirs) == (Fork(8), [])


@pytest.mark.parametrize(
    "body",
    [b"\xc0", b"\xc1", b"\xff" * 9, b"\x83\xa4type\xa6Forke\xba", b"\x82\xa4type\xa8Prepared\xa6" + b"\x91" * 9000],
    ids=["no object", "no message", "noise", "no text", "deep"],
)
def test_a_body_that_is_no_record_is_an_error_and_its_descriptors_are_closed(
    pair: tuple[socket.socket, socket.socket], body: bytes
) -> None:
    ours, theirs = pair
    read_fd, write_fd = os.pipe()
    ours.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write_fd]))])
    os.close(write_fd)
    with pytest.raises(MalformedFrame, match="can't be read"):
        receive_record(theirs)
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)


def test_what_else_comes_beside_a_record_is_ignored(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # the kernel adds credentials to each record
    send_record(ours, Fork(1))
    assert receive_record(theirs) == (Fork(1), [])
