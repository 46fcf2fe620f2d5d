"""The network between simulated machines: streams, as TCP gives them, over links that are slow, cut, or come back.

A connection keeps its bytes in order; what is sent on different connections overtakes. A link is one direction between two machines. What
is on its way when a link is cut, or is sent while it is, waits (TCP sends it again) and arrives late after the heal, unless the connection
was given up meanwhile: then the other side may still get the old bytes first, and hears of the end after them. Packets that get lost show
as what TCP makes of them: a pause, or a reset.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from actorgrid.testing.simulation.loop import SimLoop
from actorgrid.testing.simulation.world import World

#: What a kernel takes before a sender notices that the receiver does not read.
KERNEL_BUFFER_BYTES: Final = 256 * 1024
#: A lost packet is sent again after so long, at most.
RETRANSMIT_S: Final = 0.2
CONNECT_AGAIN_S: Final = 1.0
FIN: Final = "fin"
RESET: Final = "reset"


class Traffic(NamedTuple):
    """What a link does to what is on it.

    :ivar latency_s: least time of a piece; :ivar jitter_s: what is added at most
    :ivar loss: share of pieces that are sent again, after up to `RETRANSMIT_S`
    :ivar reset: share of pieces at which the connection breaks
    :ivar split: share of pieces that arrive in two parts, cut anywhere
    """

    latency_s: float = 0.00005
    jitter_s: float = 0.0002
    loss: float = 0.0
    reset: float = 0.0
    split: float = 0.01


class _Pipe:
    """One direction of a connection."""

    def __init__(self, source: str, target: str) -> None:
        self.link = (source, target)
        self.to: SimTransport | None = None
        self.waiting: deque[tuple[int, bytes | str]] = deque()  # (when it arrives, what)
        self.bytes = 0
        self.last_ns = 0
        self.is_held = False  # the link is cut: nothing is on its way


class SimSocketName:
    """As much of a listening socket as a host looks at."""

    def __init__(self, name: tuple[str, int]) -> None:
        self._name = name

    def getsockname(self) -> tuple[str, int]:
        return self._name


class SimServer:
    """A listening socket."""

    def __init__(self, network: Network, loop: SimLoop, make: Callable[[], Any], name: tuple[str, int]) -> None:
        self.loop = loop
        self.make = make
        self.name = name
        self.sockets = [SimSocketName(name)]
        self._network = network

    def close(self) -> None:
        """Take no more connections."""
        self._network.unlisten(self)


class SimTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: Network, loop: SimLoop, peername: tuple[str, int], out: _Pipe, into: _Pipe) -> None:
        super().__init__()
        self.loop = loop
        self._network = network
        self._peername = peername
        self._out = out
        self._in = into
        into.to = self
        self._protocol: Any = None
        self.peer: SimTransport = self  # until both are there
        self._is_closing = False
        self._is_lost = False
        self._is_reading = True
        self._is_write_paused = False
        self._high, self._low = 64 * 1024, 16 * 1024
        loop.transports[self] = None

    # -- what a process does with it

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._peername if name == "peername" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._network.reads_again(self._in)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high if high is not None else 64 * 1024
        self._low = low if low is not None else self._high // 4

    def get_write_buffer_size(self) -> int:
        return max(0, self._out.bytes - KERNEL_BUFFER_BYTES)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or not data:
            return
        self._network.send(self._out, bytes(data))
        if not self._is_write_paused and self.get_write_buffer_size() > self._high:
            self._is_write_paused = True
            self._protocol.pause_writing()

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._network.send(self._out, FIN)
            self.loop.call_soon(self._lost, None)

    def abort(self) -> None:
        if not self._is_lost:
            if not self._is_closing:
                self._network.send(self._out, RESET)
            self._is_closing = True
            self.loop.call_soon(self._lost, None)

    # -- what the network does with it

    def opened(self, protocol: Any) -> None:
        """The connection stands."""
        self._protocol = protocol
        protocol.connection_made(self)

    @property
    def may_receive(self) -> bool:
        """Whether the process would take something now."""
        return (self._is_reading or self._is_closing) and self._protocol is not None and not self.loop.is_paused

    def received(self, what: bytes | str) -> None:
        """Something arrived; called in the loop."""
        if self._is_lost or self._protocol is None:
            return
        if type(what) is bytes:
            if not self._is_closing:
                self._protocol.data_received(what)
        elif what == FIN:
            if not self._is_closing and not self._protocol.eof_received():
                self.close()
        else:
            self._is_closing = True
            self._lost(ConnectionResetError(104, "Connection reset by peer"))

    def drained(self) -> None:
        """The other side has taken something."""
        if self._is_write_paused and self.get_write_buffer_size() <= self._low:
            self._is_write_paused = False
            if not self._is_lost:
                self.loop.call_soon(self._protocol.resume_writing)

    def _lost(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        self.loop.transports.pop(self, None)
        if self._protocol is not None:
            self._protocol.connection_lost(error)

    def process_died(self, *, silently: bool) -> None:
        """Its process is gone. The kernel says so to the other side, unless the machine is gone too."""
        self._is_lost = self._is_closing = True
        if not silently:
            self._network.send(self._out, RESET if self._in.waiting else FIN)


class Network:
    """All links.

    :ivar traffic: of every link that has none of its own in `traffic_of`
    :ivar cut: links on which nothing arrives; :ivar gone: machines without power
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.traffic = Traffic()
        self.traffic_of: dict[tuple[str, str], Traffic] = {}
        self.cut: dict[tuple[str, str], None] = {}
        self.gone: dict[str, None] = {}
        self.address_of: dict[str, str] = {}  # machine -> address
        self._machine_of: dict[str, str] = {}
        self._servers: dict[tuple[str, int], SimServer] = {}
        self._held: dict[_Pipe, None] = {}
        self._waiting_connects: list[Callable[[], None]] = []
        self._rng: random.Random = world.stream("network")
        self._ports = 40_000

    def add_machine(self, machine: str, address: str) -> None:
        """A machine with its address."""
        self.address_of[machine] = address
        self._machine_of[address] = machine

    # -- cuts

    def cut_link(self, source: str, target: str) -> None:
        """Nothing that `source` sends reaches `target` any more."""
        self.cut[source, target] = None

    def heal_link(self, source: str, target: str) -> None:
        """What waits arrives late, after TCP's patience, and new connections go through."""
        if (source, target) not in self.cut:
            return
        del self.cut[source, target]
        self._release(lambda link: link == (source, target))

    def _release(self, is_open: Callable[[tuple[str, str]], bool]) -> None:
        for pipe in [pipe for pipe in self._held if is_open(pipe.link)]:
            del self._held[pipe]
            pipe.is_held = False
            late_ns = self.world.now_ns + int(self._rng.random() * RETRANSMIT_S * 1e9)
            pipe.waiting = deque((max(late_ns, when_ns), what) for when_ns, what in pipe.waiting)
            pipe.last_ns = max(pipe.last_ns, late_ns)
            self.world.counts["bytes arrived late after a cut"] += pipe.bytes > 0
            self._schedule(pipe)
        waiting, self._waiting_connects = self._waiting_connects, []
        for again in waiting:
            self.world.after(self._rng.random() * CONNECT_AGAIN_S, again)

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self.cut

    # -- connections

    def listen(self, loop: SimLoop, make: Callable[[], Any], address: str, port: int) -> SimServer:
        """Take connections.

        :raises OSError: the port is taken
        """
        name = (address, port)
        known = self._servers.get(name)
        if known is not None and not known.loop.is_dead:
            raise OSError(98, "Address already in use")
        server = self._servers[name] = SimServer(self, loop, make, name)
        loop.servers[server] = None
        return server

    def unlisten(self, server: SimServer) -> None:
        """Take no more connections."""
        if self._servers.get(server.name) is server:
            del self._servers[server.name]
        server.loop.servers.pop(server, None)

    async def connect(self, loop: SimLoop, make: Callable[[], Any], address: str, port: int) -> tuple[SimTransport, Any]:
        """Connect from a process on `loop`.

        :raises ConnectionRefusedError: nobody listens there
        """
        opened: asyncio.Future[tuple[SimTransport, Any]] = loop.create_future()
        self._try_to_connect(loop, make, (address, port), opened)
        return await opened

    def _try_to_connect(self, loop: SimLoop, make: Callable[[], Any], name: tuple[str, int], opened: asyncio.Future[Any]) -> None:
        """The first packet leaves; on a link that is cut, or to a machine that is gone, it is sent again and again."""
        target = self._machine_of.get(name[0], name[0])
        source = loop.machine
        if loop.is_dead or opened.done():
            return
        if self.is_cut(source, target) or self.is_cut(target, source) or target in self.gone:
            self._waiting_connects.append(lambda: self._try_to_connect(loop, make, name, opened))
            return
        self.world.after(self._latency_s((source, target)), self._connect_arrives, loop, make, name, opened, source, target)

    def _connect_arrives(
        self, loop: SimLoop, make: Callable[[], Any], name: tuple[str, int], opened: asyncio.Future[Any], source: str, target: str
    ) -> None:
        if loop.is_dead or opened.done():
            return
        back_s = self._latency_s((target, source))
        server = self._servers.get(name)
        if server is None or server.loop.is_dead:
            self.world.after(back_s, self._refused, loop, opened, name)
            return
        there, back = _Pipe(source, target), _Pipe(target, source)
        self._ports += 1
        ours = SimTransport(self, loop, name, there, back)
        theirs = SimTransport(self, server.loop, (self.address_of.get(source, source), self._ports), back, there)
        ours.peer, theirs.peer = theirs, ours
        server.loop.call_soon(self._open, theirs, server.make)
        self.world.after(back_s, self._accepted, loop, make, ours, opened)

    def _refused(self, loop: SimLoop, opened: asyncio.Future[Any], name: tuple[str, int]) -> None:
        def refuse() -> None:
            if not opened.done():
                opened.set_exception(ConnectionRefusedError(111, f"Connect call failed {name}"))

        if not loop.is_dead:
            loop.call_soon(refuse)

    def _accepted(self, loop: SimLoop, make: Callable[[], Any], transport: SimTransport, opened: asyncio.Future[Any]) -> None:
        def accept() -> None:
            if opened.done():
                transport.abort()
                return
            opened.set_result((transport, self._open(transport, make)))

        if not loop.is_dead:
            loop.call_soon(accept)

    def _open(self, transport: SimTransport, make: Callable[[], Any]) -> Any:
        protocol = make()
        transport.opened(protocol)
        self._schedule(transport._in)
        return protocol

    # -- bytes

    def _latency_s(self, link: tuple[str, str]) -> float:
        traffic = self.traffic_of.get(link, self.traffic)
        latency_s = traffic.latency_s + self._rng.random() * traffic.jitter_s
        if traffic.loss and self._rng.random() < traffic.loss:
            self.world.counts["packets lost and sent again"] += 1
            latency_s += self._rng.random() * RETRANSMIT_S
        return latency_s

    def send(self, pipe: _Pipe, what: bytes | str) -> None:
        """`what` leaves a process."""
        traffic = self.traffic_of.get(pipe.link, self.traffic)
        if traffic.reset and type(what) is bytes and self._rng.random() < traffic.reset:
            self.world.counts["connections broken"] += 1
            what = RESET
        pieces = [what]
        if type(what) is bytes and traffic.split and len(what) > 1 and self._rng.random() < traffic.split:
            middle = self._rng.randrange(1, len(what))
            pieces = [what[:middle], what[middle:]]
            self.world.counts["frames torn in two"] += 1
        for piece in pieces:
            when_ns = max(pipe.last_ns, self.world.now_ns + int(self._latency_s(pipe.link) * 1e9))
            pipe.last_ns = when_ns
            pipe.waiting.append((when_ns, piece))
            pipe.bytes += len(piece) if type(piece) is bytes else 0
            if len(pipe.waiting) == 1:
                self._schedule(pipe)

    def _schedule(self, pipe: _Pipe) -> None:
        if pipe.waiting and not pipe.is_held:
            self.world.at(pipe.waiting[0][0], self._arrive, pipe)

    def reads_again(self, pipe: _Pipe) -> None:
        """The receiver takes what waits for it."""
        self._schedule(pipe)

    def _arrive(self, pipe: _Pipe) -> None:
        """Hand over what is due."""
        to = pipe.to
        if to is None or not pipe.waiting or pipe.is_held or pipe.waiting[0][0] > self.world.now_ns:
            return
        if pipe.link in self.cut or pipe.link[1] in self.gone:
            pipe.is_held = True
            self._held[pipe] = None
            return
        if to.loop.is_dead:
            self._meets_the_dead(pipe, to)
            return
        if not to.may_receive:
            return  # who reads again asks again
        _, what = pipe.waiting.popleft()
        if isinstance(what, bytes):
            while pipe.waiting and pipe.waiting[0][0] <= self.world.now_ns and isinstance(more := pipe.waiting[0][1], bytes):
                what += more
                pipe.waiting.popleft()
            pipe.bytes -= len(what)
        self.world.happened(what)
        to.loop.call_soon(to.received, what)
        to.peer.drained()
        self._schedule(pipe)

    def _meets_the_dead(self, pipe: _Pipe, to: SimTransport) -> None:
        """The process is gone and its machine is there: the kernel says that it knows no such connection."""
        pipe.waiting.clear()
        pipe.bytes = 0
        if not to.peer.loop.is_dead:
            self.send(to.peer._in, RESET)

    # -- processes and machines that end

    def process_died(self, loop: SimLoop) -> None:
        """The kernel closes what the process had open."""
        for server in list(loop.servers):
            self.unlisten(server)
        for transport in list(loop.transports):
            transport.process_died(silently=loop.machine in self.gone)

    def machine_is_gone(self, machine: str) -> None:
        """No power: nothing it was sent is answered, and nobody is told."""
        self.gone[machine] = None

    def machine_is_back(self, machine: str) -> None:
        """It answers again, and knows none of its old connections."""
        self.gone.pop(machine, None)
        self._release(lambda link: link[1] == machine)

    def resumed(self, loop: SimLoop) -> None:
        """The process reads again."""
        for transport in list(loop.transports):
            self._schedule(transport._in)
