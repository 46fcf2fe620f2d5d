"""Who sees processes die, on Ray: the kernel's word on the host's own node, the Ray worker's record everywhere else.

When a process ends, the kernel closes its sockets, its raylet reads the end of the worker's Unix socket and writes the worker's
record in the control store: seen by the other hosts 2 to 8 ms after the process has ended. No proof is had, and the election time-out
decides, when a whole node is lost, while the control store is away, and for a process on another node that ended at its own
or Ray's request (it says good-bye first, and runs on for a while).

This module must not: take what Ray says of an *actor* or a *node* for proof, or wait for the control store on the host's loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time

from actorgrid.cluster import ray_api
from actorgrid.host.supervision import LocalSupervisor, ProcessName

log = logging.getLogger(__name__)

#: What a question to the control store may take: hundreds of times its usual time, and well below the 0.5 s that a host is promised.
ANSWER_WAIT_S = 0.25
#: Proofs kept: more processes than die while anybody still asks for them.
PROOFS_MAX = 1024

_Question = tuple[str, "concurrent.futures.Future[bool]"]


class RaySupervisor:
    """`actorgrid.host.supervision.Supervisor` for a host that is a Ray actor. Make it in the actor's process; ask it from one loop."""

    def __init__(self) -> None:
        worker_id, node_id, address = ray_api.own_worker()
        # Processes of one node share a raylet and with it a machine; of other nodes the kernel is not asked, even if it is the same one.
        self._kernel = LocalSupervisor(realm=node_id, worker=worker_id)
        self.process_id = self._kernel.process_id
        self._proofs: dict[str, None] = {}
        self._closed = False
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._asking_since: float | None = time.monotonic()  # None: the thread is free
        # A daemon and no executor, which would be joined when the process exits, and that may hang with the control store.
        threading.Thread(target=self._answer, args=(ray_api.WorkerRecords(address),), name="actorgrid-supervision", daemon=True).start()

    async def is_dead(self, host: str, process_id: str) -> bool:
        """See `actorgrid.host.supervision.Supervisor.is_dead`."""
        if process_id in self._proofs:
            return not self._closed
        name = ProcessName.parse(process_id)
        if name is None or self._closed:
            return False
        ended, source = self._kernel.look(name), "kernel"
        if ended is None:
            ended, source = await self._ask(name.worker), "ray"
        if ended:
            log.info("process ended: host=%s process=%s source=%s", host, process_id, source)
            self._proofs[process_id] = None
            if len(self._proofs) > PROOFS_MAX:
                del self._proofs[next(iter(self._proofs))]
        return ended

    def close(self) -> None:
        """See `actorgrid.host.supervision.Supervisor.close`. The thread ends once the control store has answered it."""
        self._closed = True
        self._questions.put(None)

    async def _ask(self, worker_id: str) -> bool:
        since = self._asking_since
        if not worker_id or (since is not None and time.monotonic() - since > ANSWER_WAIT_S):
            return False  # no worker of Ray, or the control store does not answer anyway
        answer: concurrent.futures.Future[bool] = concurrent.futures.Future()
        self._questions.put((worker_id, answer))
        waiting = asyncio.wrap_future(answer)
        try:
            await asyncio.wait({waiting}, timeout=ANSWER_WAIT_S)
            return waiting.done() and waiting.result()
        finally:
            waiting.cancel()  # a question that was not put yet is dropped

    def _answer(self, records: ray_api.WorkerRecords) -> None:
        try:
            records.connect()
        except Exception:
            log.exception("connecting to ray's control store failed")
        self._asking_since = None
        failing = False
        while (question := self._questions.get()) is not None:
            worker_id, answer = question
            if not answer.set_running_or_notify_cancel():
                continue
            self._asking_since = time.monotonic()
            try:
                ended, failing = records.saw_end(worker_id), False
            except Exception:
                if not failing:  # once, not fifty times a second
                    log.exception("asking ray's control store failed: worker=%s", worker_id)
                ended, failing = False, True
            self._asking_since = None
            answer.set_result(ended)
