"""What may happen to a simulated grid: one method for each verb of a plan.

A deed that does not apply (to kill what does not run) is counted as skipped. Damage that nobody can survive twice, such as an empty disk,
is done only while every partition has all its voters in sync elsewhere: what is lost beyond that is lost by anybody.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from actorgrid import ambient
from actorgrid.client.admin import ask
from actorgrid.errors import ActorGridError, HostUnavailableError
from actorgrid.settings import WireSettings
from actorgrid.storage import keys
from actorgrid.testing.simulation import SimCluster
from actorgrid.testing.simulation.cluster import CLUSTER_ID
from actorgrid.testing.simulation.disk import EIO, ENOSPC, SimDisk
from actorgrid.testing.simulation.network import Traffic
from actorgrid.testing.simulation.processes import SimHost
from tests.simulation.callers import Callers
from tests.simulation.plan import Step

TRAFFIC = {
    "calm": Traffic(),
    "slow": Traffic(latency_s=0.01, jitter_s=0.08),
    "lossy": Traffic(jitter_s=0.002, loss=0.05),
    "resets": Traffic(reset=0.01),
    "torn": Traffic(split=0.6),
}
OPERATOR_TIMEOUT_S = 5.0
ASK_AGAIN_S = 0.5
#: A grid that looks whole so long after damage was done or read is whole.
MENDED_S = 10.0
COPY_BEGINS_S = 4.0
COPY_LOOK_S = 0.0005
INTENTS = ("pause", "restart", "remove_data", "remove_node")


class Deeds:
    """Does the steps of a plan.

    :ivar damaged: hosts whose disk was damaged, until the grid is whole again
    :ivar latent: of those with damage that shows only when it is read: how often damage had been read there before
    :ivar since_s: when damage was last done to a host, or read there
    :ivar retired: how many replicas a host has retired, as the judge sees it
    """

    def __init__(self, cluster: SimCluster, callers: Callers) -> None:
        self.cluster = cluster
        self.callers = callers
        self.counts = cluster.world.counts
        self.damaged: list[str] = []
        self.is_calm = False
        self.asking = 0  # operators who ask until it is done
        self.latent: dict[str, int] = {}
        self.retired: Counter[str] = Counter()
        self.since_s: dict[str, float] = {}
        self.drained: dict[str, None] = {}
        self.images: dict[str, Any] = {}
        self.swapped: dict[tuple[str, str], None] = {}
        self.before_damage: Callable[[str], None] = lambda host: None
        self.usual_delays: dict[str, Callable[[], float]] = {}

    def do(self, step: Step) -> None:
        """Do it now."""
        done = getattr(self, "do_" + step.verb.replace("-", "_"))(*step.arguments)
        self.cluster.world.note(f"{'DEED' if done else 'skipped'} {step}")
        self.counts[f"{step.verb}{'' if done else ' (skipped)'}"] += 1

    def _host(self, name: str) -> SimHost | None:
        return self.cluster.hosts.get(name)

    # -- processes

    def do_kill(self, name: str) -> bool:
        host = self._host(name)
        if host is None or not host.is_up:
            return False
        host.is_wanted = False
        host.kill()
        return True

    def do_start(self, name: str) -> bool:
        host = self._host(name)
        if host is None or host.is_up:
            return False
        self.cluster.network.machine_is_back(name)
        host.start()
        return True

    def do_stop(self, name: str) -> bool:
        host = self._host(name)
        if host is None or host.host is None or host.process is None or host.host.state != "serving":
            return False
        process = host.process
        host.is_wanted = False
        process.start(host.leave_and_stop)
        return True

    def do_pause(self, name: str) -> bool:
        host = self._host(name)
        if host is None or host.process is None:
            return False
        host.process.pause()
        return True

    def do_resume(self, name: str) -> bool:
        host = self._host(name)
        if host is None or host.process is None or not host.process.loop.is_paused:
            return False
        host.process.resume()
        return True

    def do_kill_in_copy(self, name: str) -> bool:
        """Kill it as soon as it has a part of a copy, if that is soon."""
        host = self._host(name)
        if host is None or not host.is_up:
            return False
        until_s = self.cluster.now_s + COPY_BEGINS_S

        def look() -> None:
            if host.is_up and host.disk.has_any(False, keys.COPYING_PREFIX):
                self.counts["killed in a copy"] += self.do_kill(name)
            elif self.cluster.now_s < until_s and not self.is_calm:
                self.cluster.world.after(COPY_LOOK_S, look)

        look()
        return True

    def do_lose_power(self, name: str) -> bool:
        host = self._host(name)
        if host is None:
            return False
        host.is_wanted = False
        self.cluster.network.machine_is_gone(name)
        host.disk.lose_power(self.cluster.world.stream(f"power {name} {self.cluster.world.now_ns}"), tear=True)
        host.kill()
        return True

    def do_kill_client(self, number: str) -> bool:
        return self.callers.kill_client(f"client-{number}")

    # -- network

    def do_cut(self, source: str, target: str) -> bool:
        self.cluster.network.cut_link(source, target)
        return True

    def do_isolate(self, name: str) -> bool:
        for other in list(self.cluster.network.address_of):
            if other != name:
                self.do_cut(name, other)
                self.do_cut(other, name)
        return True

    def do_leave_alone(self, name: str) -> bool:
        """No other host hears it or is heard by it; clients are."""
        for other in self.cluster.hosts:
            if other != name:
                self.do_cut(name, other)
                self.do_cut(other, name)
        return True

    def do_heal(self, source: str, target: str = "") -> bool:
        """One link, or all of one machine."""
        network = self.cluster.network
        links = [(source, target)] if target else [link for link in network.cut if source in link]
        found = [link for link in links if link in network.cut]
        for link in found:
            network.heal_link(*link)
        return bool(found)

    def do_traffic(self, kind: str) -> bool:
        self.cluster.network.traffic = TRAFFIC[kind]
        return True

    # -- disks

    def do_disk_eio(self, name: str, times: str) -> bool:
        return self._disk_fails(name, "eio", times)

    def do_disk_enospc(self, name: str, times: str) -> bool:
        return self._disk_fails(name, "enospc", times)

    def _disk_fails(self, name: str, kind: str, times: str) -> bool:
        host = self._host(name)
        if host is None:
            return False
        rng = self.cluster.world.stream(f"faults {name} {self.cluster.world.now_ns}")
        host.disk.fail_with({"eio": EIO, "enospc": ENOSPC}[kind], rng, int(times), only_syncs=rng.random() < 0.5)
        return True

    def do_disk_stall(self, name: str) -> bool:
        host = self._host(name)
        if host is None:
            return False
        host.disk.stall()
        return True

    def do_disk_slow(self, name: str, seconds: str) -> bool:
        host = self._host(name)
        if host is None:
            return False
        rng, usual = self.cluster.world.stream(f"slow {name}"), self.usual_delays.setdefault(name, host.disk.sync_delay_s)
        host.disk.sync_delay_s = lambda: usual() + rng.random() * float(seconds)
        return True

    def do_disk_heal(self, name: str) -> bool:
        host = self._host(name)
        if host is None:
            return False
        host.disk.heal()
        host.disk.resume()
        host.disk.sync_delay_s = self.usual_delays.pop(name, host.disk.sync_delay_s)
        return True

    def _disk(self, name: str) -> SimDisk:
        return self.cluster.hosts[name].disk

    def _may_damage(self, name: str) -> bool:
        """Whether the grid can do without all that `name` has: nothing else is damaged, and of every partition a write quorum of the other
        voters has everything, also what is not committed.
        """
        if self.damaged and self.is_whole():
            # Damage that nobody has read yet is still there; the store is put aside when somebody does.
            self.damaged = [each for each in self.damaged if self._is_unread(each) or self.cluster.now_s - self.since_s[each] < MENDED_S]
        if self.damaged or self.swapped:
            return False
        for partition in range(self.cluster.partition_count + 1):
            found = self.cluster.configuration_of(partition)
            if found is None:
                return False
            _, voters, lag = found
            having = [host for host in voters if host != name and lag.get(host, 1) == 0]
            if len(having) < len(voters) // 2 + 1:
                return False
        return True

    def is_whole(self) -> bool:
        """Whether every partition is served by as many voters as it should have, all of them up and in sync."""
        for partition in range(self.cluster.partition_count + 1):
            found = self.cluster.configuration_of(partition)
            if found is None:
                return False
            _, members, lag = found
            if len(members) != self.cluster.replica_set_size or any(lag.get(host, 1) for host in members):
                return False
        return True

    def _is_unread(self, name: str) -> bool:
        return self._read_damage(name) <= self.latent.get(name, -1)

    def has_retired(self, name: str) -> None:
        """A host has found damage in a replica; others hear of that a little later."""
        self.retired[name] += 1
        self.since_s[name] = self.cluster.now_s

    def _read_damage(self, name: str) -> int:
        """How often damage was read on this host: a store was put aside, or a replica retired."""
        return len(self._disk(name).asides) + self.retired[name]

    def _damage(self, name: str, doing: Callable[[SimHost], Any], *, is_latent: bool = False) -> bool:
        """The host dies, and something happens to its disk before it starts again."""
        host = self._host(name)
        if host is None or not self._may_damage(name):
            return False
        self.before_damage(name)
        self.do_kill(name)
        self.damaged.append(name)
        self.since_s[name] = self.cluster.now_s
        done = doing(host) is not False
        self.latent.pop(name, None)
        if is_latent and done:
            self.latent[name] = self._read_damage(name)
        return done

    def do_disk_wipe(self, name: str) -> bool:
        return self._damage(name, lambda host: host.disk.wipe())

    def do_disk_flip(self, name: str) -> bool:
        rng = self.cluster.world.stream(f"flip {self.cluster.world.now_ns}")
        return self._damage(name, lambda host: host.disk.flip(rng, log=rng.random() < 0.5) is not None, is_latent=True)

    def do_disk_flip_log(self, name: str) -> bool:
        rng = self.cluster.world.stream(f"flip {self.cluster.world.now_ns}")
        return self._damage(name, lambda host: host.disk.flip_undetected(rng) is not None, is_latent=True)

    def do_disk_image(self, name: str) -> bool:
        host = self._host(name)
        if host is None or any(name in pair for pair in self.swapped):
            return False
        self.images[name] = host.disk.image()
        return True

    def do_disk_old(self, name: str) -> bool:
        image = self.images.get(name)
        if image is None:
            return False
        return self._damage(name, lambda host: host.disk.put_back(image))

    def do_disk_swap(self, name: str, other: str) -> bool:
        """Two hosts get each other's disks: each refuses what is not its own. The second time they have their own again."""
        first, second = self._host(name), self._host(other)
        if first is None or second is None or first.is_up or second.is_up:
            return False
        pair = (min(name, other), max(name, other))
        is_back = pair in self.swapped
        if not is_back and (self.damaged or self.swapped):
            return False
        images = first.disk.image(), second.disk.image()
        first.disk.put_back(images[1])
        second.disk.put_back(images[0])
        if is_back:
            del self.swapped[pair]
        else:
            self.swapped[pair] = None
        return True

    def do_date(self, name: str, seconds: str) -> bool:
        host = self._host(name)
        if host is None:
            return False
        host.date_offset_ns = int(float(seconds) * 1e9)
        if host.process is not None:
            host.process.loop.date_offset_ns = host.date_offset_ns
        return True

    # -- operators

    def _host_to_ask(self) -> SimHost | None:
        return next((each for each in self.cluster.hosts.values() if each.host is not None), None)

    def _ask(self, verb: str, **arguments: Any) -> bool:
        """As an operator who does not wait; once all is calm, as one who asks until it is done."""
        if self._host_to_ask() is None:
            return False
        persists = self.is_calm

        async def asking() -> None:
            while (host := self._host_to_ask()) is not None or persists:
                try:
                    if host is None:
                        raise HostUnavailableError("no host runs")
                    await ask(
                        host.config.address,
                        host.config.port,
                        verb,
                        arguments,
                        client_id=ambient.new_client_id(),
                        cluster_id=CLUSTER_ID,
                        wire=WireSettings(),
                        timeout_s=OPERATOR_TIMEOUT_S,
                    )
                    self.counts[f"{verb} was done"] += 1
                    break
                except ActorGridError as error:
                    self.counts[f"{verb}: {type(error).__name__}"] += 1
                if not persists:
                    break
                await asyncio.sleep(ASK_AGAIN_S)
            self.asking -= persists

        self.asking += persists
        self.cluster.spawn_operator(asking)
        return True

    def do_drain(self, node: str, intent: str) -> bool:
        self.drained[node] = None
        return self._ask("drain", node=node, intent=intent)

    def do_undrain(self, node: str) -> bool:
        self.drained.pop(node, None)
        return self._ask("undrain", node=node)

    def do_add_host(self) -> bool:
        self.cluster.add_host()
        return True

    def do_rebalance(self) -> bool:
        return self._ask("rebalance")

    def do_freeze(self) -> bool:
        return self._ask("freeze", reason="a step of the plan")

    def do_unfreeze(self) -> bool:
        return self._ask("unfreeze")

    # -- the end of all faults

    def calm(self) -> None:
        """Heal everything, and start what does not run."""
        self.is_calm = True
        network = self.cluster.network
        network.traffic = TRAFFIC["calm"]
        for link in list(network.cut):
            network.heal_link(*link)
        for first, second in list(self.swapped):
            for name in (first, second):
                self.do_kill(name)
            self.do_disk_swap(first, second)
        for name, host in self.cluster.hosts.items():
            self.do_disk_heal(name)
            if host.process is not None and host.process.loop.is_paused:
                host.process.resume()
            self.do_start(name)
            host.is_wanted = True
