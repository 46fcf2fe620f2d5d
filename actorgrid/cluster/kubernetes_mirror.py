"""Kubernetes' objects as the API server has them: one daemon thread for each kind lists it, watches from there, and begins again.

After a 410 the objects are listed anew, after anything else the watch goes on where it was, with pauses that grow. Every call has an
end: a list `LIST_S` a page, a watch `WATCH_S`, which the API server is asked to end itself. Nothing is believed of a kind before its
first list is complete.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from actorgrid import ambient
from actorgrid.cluster import kubernetes_api, kubernetes_notices
from actorgrid.cluster.kubernetes_api import FORBIDDEN, GONE, KubernetesApi, KubernetesError, Query, Watching
from actorgrid.cluster.kubernetes_notices import Claim, Machine, Pod, Seen, StatefulSet

log = logging.getLogger(__name__)

#: Of one watch, after which the API server is asked for the next one. A server that hangs with its connections open is noticed after this
#: and `kubernetes_api.WATCH_SLACK_S`; until then it could not say anything new either.
WATCH_S: Final = 20
#: Of one page of a list.
LIST_S: Final = 5.0
#: An API server that has just started forbids everything until it has read the roles: only what is forbidden for so long is believed, ...
FORBIDDEN_FIRST_S: Final = 5.0
#: ... and for so long if it was allowed before, since what was seen then may have been asked for.
FORBIDDEN_LATER_S: Final = 60.0
#: What is not allowed is tried again, since rights can be given while this runs.
FORBIDDEN_AGAIN_S: Final = 60.0
BACKOFF_S: Final = 0.2
#: One watcher a grid asks so often while the API server is away.
BACKOFF_MAX_S: Final = 5.0

Thing = TypeVar("Thing")


class Mirrors:
    """The objects of all kinds, as the API server has them."""

    def __init__(self, api: KubernetesApi, namespace: str, name: str, counters: dict[str, int], wake: Callable[[], None]) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._counters = counters
        self._lock = threading.Lock()
        self._lost: dict[str, str] = {}  # by kind: why the API server cannot be asked
        self._is_lost = False
        self._has_stopped = False
        self._answers = 0  # how often a kind could be read again
        self._moved = threading.Condition(self._lock)
        self._statefulset = _Mirror(self, "statefulsets", self._statefulset_query, lambda thing: _statefulset_of(thing, name), wake)
        self._pods = _Mirror(self, "pods", self._pods_query, lambda thing: _pod_of(thing, name), wake)
        self._claims = _Mirror(
            self, "persistentvolumeclaims", self._claims_query, lambda thing: _claim_of(thing, name), wake, is_optional=True
        )
        self._machines = _Mirror(self, "nodes", kubernetes_api.nodes_query, _machine_of, wake, is_optional=True)
        self._all: tuple[_Mirror[Any], ...] = (self._statefulset, self._pods, self._claims, self._machines)

    def start(self) -> None:
        for mirror in self._all:
            mirror.thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the threads; whether all have ended in time."""
        with self._moved:
            self._has_stopped = True
            self._moved.notify_all()
        until_s = ambient.monotonic() + timeout_s
        for mirror in self._all:
            mirror.interrupt()
        for mirror in self._all:
            while mirror.thread.is_alive() and ambient.monotonic() < until_s:
                mirror.thread.join(0.1)
                mirror.interrupt()  # it may have opened its watch a moment later
        return not any(mirror.thread.is_alive() for mirror in self._all)

    def has_stopped(self) -> bool:
        with self._lock:
            return self._has_stopped

    def pause(self, seconds: float, *, is_for_good: bool = False) -> None:
        """Sleep, but not beyond the stop, nor, unless it `is_for_good`, after the API server has answered another thread."""
        with self._moved:
            before = self._answers
            self._moved.wait_for(lambda: self._has_stopped or (self._answers != before and not is_for_good), seconds)

    def seen(self) -> Seen | None:
        """What is known; None: not all of it has been listed yet."""
        if not all(mirror.is_complete for mirror in self._all):
            return None
        return _seen(self._statefulset.things(), self._pods.things(), self._claims.things(), self._machines.things())

    def look_afresh(self) -> Seen | None:
        """What the API server says at this moment; None: it does not."""
        try:
            found = [mirror.list_apart() for mirror in self._all]
        except KubernetesError as error:
            log.debug("no fresh look error=%s", error)
            return None
        statefulset, pods, claims, machines = found
        return _seen(statefulset, pods, claims, machines)

    # -- for each of them

    @property
    def api(self) -> KubernetesApi:
        return self._api

    def count(self, what: str) -> None:
        with self._lock:
            self._counters[what] += 1

    def note(self, what: str, trouble: str) -> None:
        """One kind cannot be read, or can be again (empty): logged with the first one, and once all can."""
        with self._lock:
            was_lost = self._lost.pop(what, "")
            if trouble:
                self._lost[what] = trouble
            elif was_lost:
                self._answers += 1
                self._moved.notify_all()
            if trouble and not self._is_lost:
                self._is_lost = True
                log.warning("kubernetes api server is away, there are no notices of it until it is back what=%s error=%s", what, trouble)
            elif not self._lost and self._is_lost:
                self._is_lost = False
                log.info("kubernetes api server is back")

    def _selector(self) -> str:
        """Labels of the pods, as the StatefulSet has them."""
        things, _ = self._api.list_all(self._statefulset_query(), LIST_S)
        labels = things[0].get("spec", {}).get("selector", {}).get("matchLabels") if things else None
        if not labels:
            raise KubernetesError(f"there is no StatefulSet {self._name} with labels for its pods in namespace {self._namespace}")
        return ",".join(f"{label}={value}" for label, value in sorted(labels.items()))

    def _statefulset_query(self) -> Query:
        return kubernetes_api.stateful_set_query(self._namespace, self._name)

    def _pods_query(self) -> Query:
        return kubernetes_api.pods_query(self._namespace, self._selector())

    def _claims_query(self) -> Query:
        return kubernetes_api.claims_query(self._namespace, self._selector())


class _Mirror(Generic[Thing]):
    """The objects of one kind, and the thread that keeps them.

    :param what: for logs
    :param query: what is listed; may ask the API server itself
    :param read: of an object what is needed; None: it is of no interest
    :param is_optional: without the right to read it, the others go on without it
    """

    def __init__(
        self,
        owner: Mirrors,
        what: str,
        query: Callable[[], Query],
        read: Callable[[dict[str, Any]], Thing | None],
        wake: Callable[[], None],
        *,
        is_optional: bool = False,
    ) -> None:
        self.is_complete = False
        self.thread = threading.Thread(target=self._run, name="kubernetes watch", daemon=True)
        self._owner = owner
        self._what = what
        self._make_query = query
        self._query: Query | None = None
        self._read = read
        self._wake = wake
        self._is_optional = is_optional
        self._things: dict[str, Thing] | None = {}  # None: not allowed
        self._forbidden_s: float | None = None  # since when it has been forbidden
        self._version = ""
        self._opened: Watching | None = None
        self._lock = threading.Lock()

    def things(self) -> list[Thing] | None:
        with self._lock:
            return list(self._things.values()) if self._things is not None else None

    def list_apart(self) -> list[Thing] | None:
        """As they are at this moment; what is mirrored goes on by itself. None: reading them is not allowed.

        :raises KubernetesError: no answer
        """
        query = self._query
        if self.things() is None or query is None:
            return None
        found, _ = self._list(query)
        return list(found.values())

    def interrupt(self) -> None:
        """End the watch that is open, if any."""
        opened = self._opened
        if opened is not None:
            opened.close()

    def _run(self) -> None:
        failures = 0
        while not self._owner.has_stopped():
            began_s = ambient.monotonic()
            was_listed = bool(self._version)
            try:
                if not was_listed:
                    self._list_all()
                    failures = 0
                self._follow()
            except KubernetesError as error:
                if self._owner.has_stopped():
                    return
                if error.status == GONE:
                    self._owner.count("gone")
                    self._version = ""
                    if was_listed:  # too far behind: what was missed comes with a new list, at once
                        continue
                else:
                    self._fail(error)
            except Exception:
                # An object of a kind we do not know, or our own mistake: the thread must not end for it.
                log.exception("objects of kubernetes were not understood, listed again what=%s", self._what)
                self._version = ""
            else:
                if ambient.monotonic() - began_s >= BACKOFF_S:
                    failures = 0
                    continue
                # A watch that ends as soon as it begins is no watch.
            failures += 1
            jitter = 0.5 + ambient.new_random().random() / 2
            self._owner.pause(jitter * min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(failures - 1, 10)))

    def _fail(self, error: KubernetesError) -> None:
        self._owner.count("errors")
        if error.status != FORBIDDEN:
            self._forbidden_s = None
        elif self._is_optional and self._is_forbidden_for_long():
            self._do_without(error)
            return
        self._owner.note(self._what, f"{error}")
        if error.status:
            self._version = ""  # an answer, and no good one: begin anew with a list

    def _is_forbidden_for_long(self) -> bool:
        now_s = ambient.monotonic()
        since_s = self._forbidden_s = now_s if self._forbidden_s is None else self._forbidden_s
        was_allowed = self.is_complete and self.things() is not None
        return now_s - since_s >= (FORBIDDEN_LATER_S if was_allowed else FORBIDDEN_FIRST_S)

    def _do_without(self, error: KubernetesError) -> None:
        with self._lock:
            is_new, self._things = self._things is not None, None
        if is_new:
            log.warning("kubernetes does not let us read some objects, and we do without what=%s error=%s", self._what, error)
        self._version, self.is_complete = "", True
        self._owner.note(self._what, "")
        self._wake()
        self._owner.pause(FORBIDDEN_AGAIN_S, is_for_good=True)

    def _list_all(self) -> None:
        query = self._query = self._make_query()
        found, self._version = self._list(query)
        with self._lock:
            has_changed = found != self._things or not self.is_complete
            self._things = found
        self.is_complete, self._forbidden_s = True, None
        self._owner.note(self._what, "")
        if has_changed:
            self._wake()

    def _list(self, query: Query) -> tuple[dict[str, Thing], str]:
        self._owner.count("lists")
        items, version = self._owner.api.list_all(query, LIST_S)
        read = ((_name_of(item), self._read(item)) for item in items)
        return {name: thing for name, thing in read if thing is not None}, version

    def _follow(self) -> None:
        """One watch, to its end."""
        query = self._query
        assert query is not None
        self._owner.count("watches")
        opened = self._opened = self._owner.api.watch(query, self._version, WATCH_S)
        self._owner.note(self._what, "")
        try:
            if self._owner.has_stopped():  # `interrupt` came a moment too early for this one
                opened.close()
            for event, thing in opened:
                self._take(event, thing)
                self._version = str(thing.get("metadata", {}).get("resourceVersion", "")) or self._version
                if self._owner.has_stopped():
                    return
        finally:
            self._opened = None

    def _take(self, event: str, thing: dict[str, Any]) -> None:
        if event == "BOOKMARK":
            return
        name = _name_of(thing)
        read = self._read(thing) if event != "DELETED" else None
        with self._lock:
            things = self._things
            if things is None or things.get(name) == read:
                return
            if read is None:
                things.pop(name, None)
            else:
                things[name] = read
        self._wake()


def _seen(
    statefulset: list[StatefulSet] | None, pods: list[Pod] | None, claims: list[Claim] | None, machines: list[Machine] | None
) -> Seen:
    return Seen(statefulset=next(iter(statefulset or ()), None), pods=pods or (), machines=machines, claims=claims or ())


# -- reading objects


def _name_of(thing: dict[str, Any]) -> str:
    return str(thing["metadata"]["name"])


def _statefulset_of(thing: dict[str, Any], name: str) -> StatefulSet | None:
    spec, status, metadata = thing["spec"], thing.get("status") or {}, thing["metadata"]
    if metadata["name"] != name:
        return None
    strategy = spec.get("updateStrategy") or {}
    from_ordinal = (strategy.get("rollingUpdate") or {}).get("partition") or 0
    return StatefulSet(
        name=name,
        uid=metadata.get("uid", ""),
        replicas=spec.get("replicas", 1),
        first_ordinal=(spec.get("ordinals") or {}).get("start") or 0,
        current_revision=status.get("currentRevision") or "",
        update_revision=status.get("updateRevision") or "",
        updates_from=None if strategy.get("type") == "OnDelete" else from_ordinal,
    )


def _pod_of(thing: dict[str, Any], statefulset: str) -> Pod | None:
    metadata = thing["metadata"]
    ordinal = kubernetes_notices.ordinal_of(statefulset, metadata["name"])
    if ordinal is None:
        return None
    conditions = (thing.get("status") or {}).get("conditions") or ()
    deleted = metadata.get("deletionTimestamp")
    return Pod(
        name=metadata["name"],
        ordinal=ordinal,
        uid=metadata.get("uid", ""),
        machine=(thing.get("spec") or {}).get("nodeName") or "",
        deleted_ms=_date_ms(deleted) if deleted else None,
        is_ready=any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions),
        revision=(metadata.get("labels") or {}).get("controller-revision-hash", ""),
    )


def _machine_of(thing: dict[str, Any]) -> Machine:
    spec = thing.get("spec") or {}
    taints = tuple((str(taint.get("key", "")), str(taint.get("effect", ""))) for taint in spec.get("taints") or ())
    return Machine(name=_name_of(thing), is_cordoned=bool(spec.get("unschedulable")), taints=taints)


def _claim_of(thing: dict[str, Any], statefulset: str) -> Claim | None:
    metadata = thing["metadata"]
    ordinal = kubernetes_notices.ordinal_of_claim(statefulset, metadata["name"])
    if ordinal is None or metadata.get("deletionTimestamp"):
        return None
    return Claim(name=metadata["name"], ordinal=ordinal, uid=metadata.get("uid", ""))


def _date_ms(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)
