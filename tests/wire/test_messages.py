"""Every message there and back, and the plain msgpack package as the other implementation."""

import contextlib

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorgrid.errors import AccessDeniedError, NotPrimaryError, ProtocolError, from_wire, to_wire
from actorgrid.wire import messages as m
from actorgrid.wire.handshake import accept_hello, read_hello

counters = st.integers(0, 2**64 - 1)
names = st.text(max_size=40)
addresses = st.text(min_size=1, max_size=60)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=10)
    | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
raws = values.map(lambda value: msgspec.Raw(msgpack.packb(value)))
paths = st.lists(counters, max_size=5).map(tuple)
extras = st.none() | st.builds(
    m.CallExtra,
    number=st.none() | counters,
    path=paths,
    chain=st.lists(addresses, max_size=3).map(tuple),
    key=st.none() | st.text(max_size=20),
    again=st.booleans(),
    any_replica=st.booleans(),
)
calls = st.builds(m.Call, counters, addresses, names, counters, raws, extras)
groups = st.builds(m.CallGroup, counters, st.binary(max_size=16), counters, counters, counters, st.lists(calls, max_size=3))
batches = st.builds(
    m.Batch,
    counters,
    counters,
    counters,
    counters,
    names,
    counters,
    st.lists(addresses, min_size=1, max_size=3),
    st.lists(raws, max_size=3),
)
host_infos = st.builds(m.HostInfo, names, names, st.integers(0, 65535))
maps = st.builds(
    m.MapMessage,
    counters,
    names,
    st.lists(host_infos, max_size=3),
    st.lists(st.integers(-1, 5), max_size=8),
    st.lists(counters, max_size=8),
    st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=8),
)
details = st.dictionaries(st.text(max_size=8), values, max_size=3)

TO_A_HOST = {
    m.KIND_CALLS: st.builds(m.Calls, st.lists(groups, max_size=3)),
    m.KIND_GET_MAP: st.builds(m.GetMap, counters),
    m.KIND_ADMIN: st.builds(m.Admin, counters, names, details),
    m.KIND_PING: st.builds(m.Ping, counters),
    m.KIND_PONG: st.builds(m.Pong, counters),
    m.KIND_BATCHES: st.builds(m.Batches, st.lists(batches, max_size=3)),
}
TO_A_CLIENT = {
    m.KIND_REPLIES: st.builds(m.Replies, st.lists(st.builds(m.Reply, counters, st.sampled_from([0, 1]), raws, counters), max_size=4)),
    m.KIND_MAP: maps,
    m.KIND_ADMIN_REPLY: st.builds(m.AdminReply, counters, st.sampled_from([0, 1]), raws),
    m.KIND_PING: st.builds(m.Ping, counters),
    m.KIND_PONG: st.builds(m.Pong, counters),
    m.KIND_GOODBYE: st.builds(m.Goodbye, names),
    m.KIND_REFUSED: st.builds(m.Refused, names, names, details),
    m.KIND_BATCH_REPLIES: st.builds(
        m.BatchReplies,
        st.lists(st.builds(m.BatchReply, counters, st.sampled_from([0, 1]), counters, raws, st.lists(counters, max_size=3)), max_size=3),
    ),
}
HELLOS = st.builds(m.Hello, names, counters, counters, names, names, st.binary(max_size=16), st.binary(max_size=50))
WELCOMES = st.builds(m.Welcome, counters, names, names, counters, counters, maps)


def plain(value):
    """As the plain package sees it."""
    return msgpack.unpackb(m.encode(value), strict_map_key=False)


@pytest.mark.parametrize(("kind", "strategy", "decoders"), [
    *[(kind, strategy, m.HOST_DECODERS) for kind, strategy in TO_A_HOST.items()],
    *[(kind, strategy, m.CLIENT_DECODERS) for kind, strategy in TO_A_CLIENT.items()],
])  # fmt: skip
def test_every_message_comes_back_as_it_went_also_through_the_plain_package(kind, strategy, decoders):
    @given(strategy)
    def check(message):
        payload = m.encode(message)
        assert payload[1] == kind, "the second byte tells the kind"
        again = decoders[kind](payload)
        assert plain(again) == plain(message)
        assert type(again) is type(message)
        # another implementation takes it apart and puts it together in its own way
        assert plain(decoders[kind](msgpack.packb(msgpack.unpackb(payload, strict_map_key=False)))) == plain(message)

    check()


def test_every_kind_that_is_decoded_is_tested():
    assert set(m.HOST_DECODERS) == set(TO_A_HOST)
    assert set(m.CLIENT_DECODERS) == set(TO_A_CLIENT)


@given(HELLOS)
def test_a_hello_comes_back_as_it_went(hello):
    assert plain(m.decode_hello(m.encode(hello))) == plain(hello)


@given(WELCOMES)
def test_a_welcome_comes_back_as_it_went(welcome):
    assert plain(m.decode_handshake_answer(m.encode(welcome))) == plain(welcome)


def test_calls_written_with_the_plain_package_are_read_as_documented():
    payload = msgpack.packb([4, [[3, b"", 1, 2, 5, [[7, "Account\0alice", "deposit", 5000, [100, "x"]]]],
                                 [4, b"c" * 16, 0, 0, 0, [[8, "Account\0b", "get", 1, [],
                                  {"path": [0, 1], "number": 3, "again": True, "new": 1}]]]]])  # fmt: skip
    message = m.HOST_DECODERS[m.KIND_CALLS](payload)
    first, second = message.groups
    assert (first.partition, first.client_id, first.lowest, first.lowest_anywhere, first.since_lsn) == (3, b"", 1, 2, 5)
    call = first.calls[0]
    assert (call.correlation, call.address, call.method, call.timeout_ms) == (7, "Account\0alice", "deposit", 5000)
    assert msgpack.unpackb(bytes(call.args)) == [100, "x"]
    assert second.calls[0].extra == m.CallExtra(number=3, path=(0, 1), again=True)


def test_a_newer_release_may_append_fields_to_every_message():
    for payload, decode in [
        ([1, m.MAGIC, 1, 2, "c", "client", b"c" * 16, b"", "new"], m.decode_hello),
        ([4, [[1, b"", 0, 0, 0, [[1, "a", "b", 1, [], None, "new"]], "new"]], "new"], m.HOST_DECODERS[4]),
        ([10, 5, "new"], m.HOST_DECODERS[10]),
        ([5, [[1, 0, "result", 7, "new"]], "new"], m.CLIENT_DECODERS[5]),
        ([7, 1, "grid", [], [-1], [3], [[]], "new"], m.CLIENT_DECODERS[7]),
    ]:
        decode(msgpack.packb(payload))


def test_what_a_release_without_replication_sends_is_understood():
    hosts = [["a", "h", 1]]
    message = m.CLIENT_DECODERS[m.KIND_MAP](msgpack.packb([7, 3, "grid", hosts, [0, -1]]))
    assert (message.epochs, message.secondaries) == ([], [])
    (reply,) = m.CLIENT_DECODERS[m.KIND_REPLIES](msgpack.packb([5, [[1, 0, "result"]]])).replies
    assert reply.lsn == 0
    welcome = m.decode_handshake_answer(msgpack.packb([2, 1, "grid", "a", 1, 4096, [7, 3, "grid", hosts, [0]], {1: 9}]))
    assert (welcome.map.epochs, welcome.positions) == ([], {1: 9})


def test_what_such_a_release_reads_stands_where_it_was():
    """It ignores what follows, so the new elements are at the end, and a call says nothing new unless it is a read of any replica."""
    assert plain(m.MapMessage(3, "grid", [], [-1], [5], [[]]))[:5] == [7, 3, "grid", [], [-1]]
    assert plain(m.Replies([m.Reply(1, 0, msgspec.Raw(b"\x05"), 9)])) == [5, [[1, 0, 5, 9]]]
    assert plain(m.CallExtra(again=True)) == {"again": True}
    assert plain(m.CallExtra(any_replica=True)) == {"any_replica": True}


def test_the_epoch_of_a_primary_travels_with_the_refusal_where_it_is_known():
    name, message, details = to_wire(NotPrimaryError("moved", partition=3, primary="a@h:1", epoch=9))
    assert details == {"retry_after_s": 0.0, "partition": 3, "primary": "a@h:1", "epoch": 9}
    again = from_wire(name, message, details)
    assert isinstance(again, NotPrimaryError)
    assert (again.partition, again.primary, again.epoch) == (3, "a@h:1", 9)
    assert "epoch" not in to_wire(NotPrimaryError("moved"))[2]
    assert from_wire(name, message, {"partition": 3}).epoch == 0


@pytest.mark.parametrize("payload", [
    [7, 1, "grid", [], [-1], [-1]], [7, 1, "grid", [], [-1], ["x"]], [7, 1, "grid", [], [-1], [], [1]],
    [7, 1, "grid", [], [-1], [], [[0] * 257]], [5, [[1, 0, "result", -1]]], [5, [[1, 0, "result", "x"]]],
])  # fmt: skip
def test_answers_out_of_bounds_are_refused(payload):
    with pytest.raises(msgspec.MsgspecError):
        m.CLIENT_DECODERS[payload[0]](msgpack.packb(payload))


@pytest.mark.parametrize("payload", [
    [4, [[1, b"x" * 17, 0, 0, 0, []]]],
    [4, [[-1, b"", 0, 0, 0, []]]],
    [4, [[1, b"", 0, 0, 0, [[1, "", "m", 1, []]]]]],
    [4, [[1, b"", 0, 0, 0, [[1, "a" * 1601, "m", 1, []]]]]],
    [4, [[1, b"", 0, 0, 0, [[1, "a", "m" * 257, 1, []]]]]],
    [4, [[1, b"", 0, 0, 0, [[1, "a", "m", -1, []]]]]],
    [4, [[1, b"", 0, 0, 0, [[1, "a", "m", 1, [], {"path": [0] * 65}]]]]],
    [4, [[1, b"", 0, 0, 0, [[1, "a", "m", 1, [], {"chain": ["a"] * 65}]]]]],
    [4, [[1, b"", 0, 0, 0, [[1, "a", "m", 1, [], {"key": "k" * 513}]]]]],
    [4, [[1, b"", 0, 0, 0, [[1, "a", "m", 1, [], {"number": -1}]]]]],
    [13, [[1, 1, 0, 0, "m", 1, [], [[]]]]],
    [13, [[1, 1, 0, 0, "m", 1, [""], [[]]]]],
    [13, [[1, 1, 0, 0, "m", 1, ["a"] * 4097, [[]]]]],
    [13, [[1, 1, 0, 0, "m", -1, ["a"], [[]]]]],
    [13, [[1, 1, 0, 0, "m", 1, ["a"], 1]]],
    [4, "x"], [4], [], [6, "x"], [8, 1, "v", [1]], [10, -1], {"a": 1}, 7, [99, 1],
])  # fmt: skip
def test_messages_out_of_bounds_are_refused(payload):
    with pytest.raises(msgspec.MsgspecError):
        m.HOST_DECODERS[payload[0] if isinstance(payload, list) and payload and payload[0] in m.HOST_DECODERS else 4](
            msgpack.packb(payload)
        )


@given(st.binary(max_size=80), st.sampled_from(sorted(m.HOST_DECODERS)))
def test_random_bytes_raise_decoding_errors_and_nothing_else(data, kind):
    for decode in (m.HOST_DECODERS[kind], m.decode_hello, m.decode_handshake_answer):
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            decode(b"\x92" + bytes([kind]) + data)


# -- the handshake's rules


def hello(**changes):
    fields = {"magic": m.MAGIC, "version_oldest": 1, "version_newest": 1, "cluster_id": "", "role": "client", "client_id": b"c" * 16}
    return m.Hello(**{**fields, **changes})


@pytest.mark.parametrize(("changes", "error", "words"), [
    ({"version_oldest": 3, "version_newest": 4}, ProtocolError, "no common protocol version"),
    ({"version_oldest": 0, "version_newest": 0}, ProtocolError, "no common protocol version"),
    ({"role": "admin"}, ProtocolError, "role 'admin'"),
    ({"client_id": b"short"}, ProtocolError, "5 bytes"),
    ({"client_id": b""}, ProtocolError, "0 bytes"),
    ({"cluster_id": "other"}, AccessDeniedError, "other"),
])  # fmt: skip
def test_a_handshake_that_does_not_fit_is_refused_with_the_reason(changes, error, words):
    with pytest.raises(error, match=words):
        accept_hello(hello(**changes), "mine")


@pytest.mark.parametrize(("oldest", "newest", "chosen"), [(1, 1, 1), (0, 1, 1), (1, 2, 2), (2, 2, 2), (0, 9, 2)])
def test_the_newest_version_both_speak_is_chosen(oldest, newest, chosen):
    assert accept_hello(hello(version_oldest=oldest, version_newest=newest, cluster_id="mine"), "mine") == chosen


@pytest.mark.parametrize("payload", [b"", b"\x00", b"GET / HTTP/1.1\r\n", msgpack.packb([4, []]),
                                     msgpack.packb([1, "other", 1, 1, "", "client", b"c" * 16]),
                                     b"\x91" * 4000, msgpack.packb({"a": 1})])  # fmt: skip
def test_a_first_frame_that_is_no_hello_is_refused(payload):
    with pytest.raises(ProtocolError, match="no handshake"):
        read_hello(payload)
