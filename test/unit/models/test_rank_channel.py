"""The way of plans to other ranks: frames arrive whole and in order, strangers are dropped, a lost peer is noticed."""

from __future__ import annotations

import queue
import socket
import threading

import pytest

from sglang.srt.distributed.channel import FollowerChannel, LeaderChannel

WAIT = 10.0


def connect(leader: LeaderChannel, ranks: list[int]) -> list[FollowerChannel]:
    accepting = threading.Thread(target=leader.accept, args=(len(ranks), WAIT))
    accepting.start()
    found = [FollowerChannel("127.0.0.1", leader.port, leader.secret, rank) for rank in ranks]
    accepting.join(WAIT)
    return found


@pytest.fixture
def leader():
    channel = LeaderChannel("127.0.0.1")
    yield channel
    channel.close()


def test_every_follower_gets_every_frame_and_the_end(leader):
    followers = connect(leader, [1, 2])
    frames = [b"a", b"b" * 100_000, b"\0" * 3]
    sender = threading.Thread(target=lambda: [leader.send(frame) for frame in frames])
    sender.start()
    for follower in followers:
        assert [follower.receive() for _ in frames] == frames
    sender.join(WAIT)
    leader.close()
    leader.close()
    assert [follower.receive() for follower in followers] == [None, None]


@pytest.mark.parametrize("hello", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(36)])
def test_stranger_is_dropped_and_the_ranks_still_meet(leader, hello):
    with socket.create_connection(("127.0.0.1", leader.port)) as stranger:
        stranger.sendall(hello)
        stranger.shutdown(socket.SHUT_WR)
        (follower,) = connect(leader, [1])
        leader.send(b"plan")
        assert follower.receive() == b"plan"
        stranger.settimeout(WAIT)
        try:
            assert stranger.recv(1) == b""  # nothing of the run reaches it
        except ConnectionResetError:
            pass


def test_leader_stops_listening(leader):
    connect(leader, [1])
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", leader.port), WAIT).close()


def test_missing_rank_is_an_error(leader):
    with pytest.raises(TimeoutError, match="1 ranks did not connect"):
        leader.accept(1, 0.05)


def test_leader_learns_who_is_gone_and_why(leader):
    followers = connect(leader, [1, 2])
    reasons: queue.Queue[str] = queue.Queue()
    leader.watch(reasons.put)
    followers[1].say_last_words("OutOfMemoryError: too big")
    assert reasons.get(timeout=WAIT) == "Rank 2 is gone: OutOfMemoryError: too big"


def test_silent_death_of_a_follower_is_noticed(leader):
    followers = connect(leader, [3])
    reasons: queue.Queue[str] = queue.Queue()
    leader.watch(reasons.put)
    followers[0]._connection.close()
    assert reasons.get(timeout=WAIT).startswith("Rank 3 is gone: its process")


def test_end_of_the_server_is_no_loss(leader):
    (follower,) = connect(leader, [1])
    reasons: queue.Queue[str] = queue.Queue()
    leader.watch(reasons.put)
    leader.close()
    assert follower.receive() is None
    follower._connection.close()
    with pytest.raises(queue.Empty):
        reasons.get(timeout=0.2)


def test_follower_notices_the_death_of_rank_0(leader, monkeypatch):
    monkeypatch.setattr("sglang.srt.distributed.channel.GOODBYE_SECONDS", 0.0)
    (follower,) = connect(leader, [1])
    reasons: queue.Queue[str] = queue.Queue()
    follower.watch(reasons.put)
    for connection in leader._followers.values():
        connection.close()
    assert reasons.get(timeout=WAIT) == "Rank 0 is gone"
    with pytest.raises(ConnectionError):
        follower.receive()
