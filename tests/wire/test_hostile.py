"""Strangers and broken peers against a real host in a process of its own: it closes them, stays small, and serves the others (I16, I18)."""

import asyncio
import contextlib
import random
import socket
import struct

import msgpack
import pytest
from host_actors import Box
from host_harness import PARTITIONS, QUICK, HostProcess, run

from actorgrid import grid
from actorgrid.ids import partition_of
from actorgrid.wire import messages as m
from actorgrid.wire.framing import frame

DEEP = b"\x91" * 100_000 + b"\x90"
MEMORY_BYTES_MAX = 80 << 20


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with HostProcess(tmp_path_factory.mktemp("hostile"), handshake_timeout_s=0.5) as process:
        yield process


def pack(*fields):
    return frame(msgpack.packb(list(fields)))


HELLO = pack(1, m.MAGIC, 1, 1, "", "client", b"c" * 16, b"")


def call_frame(args=b"\x90", extra=b"\xc0", address="Box\0a", method="look"):
    call = b"\x96" + msgpack.packb(1) + msgpack.packb(address) + msgpack.packb(method) + msgpack.packb(1000) + args + extra
    partition = msgpack.packb(partition_of(address, PARTITIONS))
    return frame(b"\x92\x04\x91\x96" + partition + b"\xc4\x00\x00\x00\x00\x91" + call)


def noise(seed, size=5000):
    return random.Random(seed).randbytes(size)


BEFORE_THE_HANDSHAKE = {
    "random bytes": noise(1),
    "random frame": frame(noise(2, 1000)),
    "http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "huge length": b"\xff\xff\xff\xff" + b"x" * 100,
    "length above the handshake's": (5000).to_bytes(4, "big") + b"x" * 100,
    "zero length": b"\x00\x00\x00\x00",
    "deep nesting": frame(b"\x91" * 4000),
    "wrong magic": pack(1, "othergrid", 1, 1, "", "client", b"c" * 16),
    "wrong version": pack(1, m.MAGIC, 7, 9, "", "client", b"c" * 16),
    "wrong grid": pack(1, m.MAGIC, 1, 1, "someone-elses", "client", b"c" * 16),
    "wrong role": pack(1, m.MAGIC, 1, 1, "", "root", b"c" * 16),
    "short client id": pack(1, m.MAGIC, 1, 1, "", "client", b"c"),
    "long credential": pack(1, m.MAGIC, 1, 1, "", "client", b"c" * 16, b"x" * 3000),
    "calls first": call_frame(),
    "admin first": pack(8, 1, "status", {}),
    "ping first": pack(10, 1),
    "map first": pack(6, 0),
}
AFTER_THE_HANDSHAKE = {
    "random bytes": noise(3),
    "random frame": frame(noise(4, 5000)),
    "random calls": frame(b"\x92\x04" + noise(5, 5000)),
    "huge length": b"\xff\xff\xff\xff",
    "zero length": b"\x00\x00\x00\x00",
    "empty payloads": frame(b"\x90"),
    "one byte": frame(b"\x04"),
    "unknown kind": pack(77, 1),
    "a second hello": HELLO,
    "a reply": pack(5, []),
    "deep arguments": call_frame(DEEP),
    "deep extra": call_frame(b"\x90", b"\x81\xa1z" + DEEP),
    "deep admin": frame(b"\x94\x08\x01\xa6status\x81\xa1a" + DEEP),
    "deep frame": frame(DEEP),
    "huge list of groups": frame(b"\x92\x04\xdd\xff\xff\xff\xff"),
    "huge list of calls": frame(b"\x92\x04\x91\x96\x01\xc4\x00\x00\x00\x00\xdd\xff\xff\xff\xff"),
    "huge map": frame(b"\x94\x08\x01\xa6status\xdf\xff\xff\xff\xff"),
    "huge string": frame(b"\x94\x08\x01\xdb\xff\xff\xff\xff"),
    "huge bytes": frame(b"\x92\x04\x91\x96\x01\xc6\xff\xff\xff\xff"),
    "a map as a map's key": frame(b"\x94\x08\x01\xa6status\x81\xa1a\x81\x80\x01"),
    "bad utf-8": frame(b"\x94\x08\x01\xa1\xff\x80"),
    "another's name": frame(msgpack.packb([4, [[1, b"d" * 16, 0, 0, 0, [[1, "Box\0a", "look", 1000, []]]]]])),
}


async def good_client(host):
    async with grid.connect(f"127.0.0.1:{host.port}", settings=QUICK) as client:
        before = (await client.get(Box, "good").look())[0]
        assert await client.get(Box, "good").add(1) == before + 1


@contextlib.asynccontextmanager
async def greeted(host):
    """A connection after its handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    try:
        writer.write(HELLO)
        await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def ends(host, data, timeout_s=3.0, hello=b""):
    """Send, and wait until the host has closed; gives what it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    try:
        async with asyncio.timeout(timeout_s):
            if hello:
                writer.write(hello)
                await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
                return await reader.read()
            return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("name", BEFORE_THE_HANDSHAKE)
def test_a_stranger_is_refused_and_the_host_serves_on(host, name):
    async def main():
        answer = await ends(host, BEFORE_THE_HANDSHAKE[name])
        if answer:
            refused = m.decode_handshake_answer(answer[4:])
            assert isinstance(refused, m.Refused)
            assert refused.error == ("AccessDeniedError" if name == "wrong grid" else "ProtocolError")
        await good_client(host)

    run(main)


@pytest.mark.parametrize("name", AFTER_THE_HANDSHAKE)
def test_a_peer_that_breaks_the_protocol_is_cut_off_and_the_host_serves_on(host, name):
    async def main():
        before = host.rss_bytes()
        answer = await ends(host, AFTER_THE_HANDSHAKE[name], hello=HELLO)
        if answer:
            assert b"ProtocolError" in answer, answer[:200]
        await good_client(host)
        assert host.rss_bytes() - before < MEMORY_BYTES_MAX

    run(main)


def test_arguments_nested_to_the_decoders_own_limit_are_one_refused_call(host):
    async def main():
        for depth in (50, 200, 400, 600, 800, 900, 950):
            async with greeted(host) as (reader, writer):
                writer.write(call_frame(b"\x91" * depth + b"\x90", method="add"))
                async with asyncio.timeout(3):
                    answer = await reader.read(65536)
                assert b"InvalidArgumentError" in answer or b"ProtocolError" in answer, (depth, answer)
        await good_client(host)

    run(main)


def test_half_a_frame_and_then_silence_costs_only_what_was_sent(host):
    async def main():
        before = host.rss_bytes()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(50):
                _, writer = await stack.enter_async_context(greeted(host))
                writer.write((16 << 20).to_bytes(4, "big") + b"x" * 1000)
            await good_client(host)
            assert host.rss_bytes() - before < 20 << 20
        await good_client(host)

    run(main)


def test_a_slow_handshake_is_cut_off_in_time(host):
    async def main():
        reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
        begin = asyncio.get_running_loop().time()

        async def drip():
            with contextlib.suppress(ConnectionError):
                for byte in HELLO:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(3):
            with contextlib.suppress(ConnectionError):
                assert b"no handshake within 0.5 s" in await reader.read()
        assert 0.3 < asyncio.get_running_loop().time() - begin < 2
        dripping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await dripping
        writer.close()
        await good_client(host)

    run(main)


def test_hundreds_of_half_open_connections_do_not_stop_a_good_client(host):
    async def main():
        before = host.rss_bytes()
        sockets = []
        for number in range(500):
            each = socket.create_connection(("127.0.0.1", host.port))
            if number % 2:
                each.sendall(HELLO[: 1 + number % 20])
            sockets.append(each)
        begin = asyncio.get_running_loop().time()
        await good_client(host)
        assert asyncio.get_running_loop().time() - begin < 1
        assert host.rss_bytes() - before < 20 << 20
        for each in sockets:
            # reset, not close
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()
        await good_client(host)

    run(main)


def test_a_peer_that_never_reads_its_answers_is_held_back_and_the_host_stays_small(host):
    async def main():
        async with grid.connect(f"127.0.0.1:{host.port}", settings=QUICK) as client:
            await client.get(Box, "big").tag({"x" * 100})
            assert await client.get(Box, "big").repeat(10) == b"0123456789"
        before = host.rss_bytes()
        greedy = socket.create_connection(("127.0.0.1", host.port))
        greedy.sendall(HELLO)
        greedy.settimeout(1)
        greedy.settimeout(0.3)
        asked = call_frame(b"\x91\xcd\xc3\x50", address="Box\0big", method="repeat") * 2000  # 100 MB of answers
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(500):
                await asyncio.to_thread(greedy.sendall, asked)
                sent += 1
        assert sent < 500, "the host took everything, and keeps 50 GB of answers"
        await good_client(host)
        assert host.rss_bytes() - before < 150 << 20
        greedy.close()

    run(main, 30)


def test_random_mutations_of_good_frames_harm_nobody(host, request):
    async def main():
        rng = random.Random(request.config.getoption("--seed"))
        good = [call_frame(), call_frame(b"\x91\x05", method="add"), pack(8, 1, "status", {}), pack(6, 0), pack(10, 3)]
        for _ in range(60):
            data = bytearray(b"".join(rng.choices(good, k=4)))
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            async with greeted(host) as (reader, writer):
                with contextlib.suppress(ConnectionError):
                    writer.write(data)
                    writer.write_eof()
                    async with asyncio.timeout(2):
                        await reader.read()
        await good_client(host)
        assert host.alive()

    run(main, 30)
