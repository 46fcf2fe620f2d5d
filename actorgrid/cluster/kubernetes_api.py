"""The official Kubernetes client, as far as this package uses it: lists, watches, single objects, each with a limit of its time.

Objects are plain dicts as the API server sends them: of a pod's two hundred fields six are read, and the client's own classes
cost more than all that is done with them. The client blocks; call it from a thread.

Rights that are needed; in the namespace (Role), where NAME is the StatefulSet's:

- ``apps`` / ``statefulsets``, only NAME (``resourceNames``): ``get``, ``list``, ``watch``
- core / ``pods``: ``list``, ``watch``
- core / ``persistentvolumeclaims``: ``list``, ``watch``; without them no volume is reported as free
- core / ``events``: ``create``; without it a free volume is only logged

and in the cluster (ClusterRole):

- core / ``nodes``: ``get``, ``list``, ``watch``; without them cordons and taints are not seen, and a pod's zone is not known
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from actorgrid.errors import SettingsError

log = logging.getLogger(__name__)

FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
GONE: Final = 410
#: Of one connection to the API server, which is in the same cluster.
CONNECT_S: Final = 3.0
#: Of the beginning of a watch.
OPEN_S: Final = 5.0
#: What a watch may be silent for after the API server should have ended it.
WATCH_SLACK_S: Final = 5.0
#: Of one page; a node's object has some 20 KB.
PAGE_ITEMS: Final = 500
ZONE_LABELS: Final = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
#: A machine that is gone without a word is noticed after about 12 s, not with the end of the watch.
SOCKET_OPTIONS: Final = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 6),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class KubernetesError(Exception):
    """The API server refused, or did not answer.

    :ivar status: of its answer; 0: there was none
    """

    def __init__(self, what: str, status: int = 0) -> None:
        super().__init__(what)
        self.status = status


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What is listed and watched: the client's method with its arguments.

    :ivar what: for logs
    """

    what: str
    api: str
    method: str
    arguments: dict[str, str]


def stateful_set_query(namespace: str, name: str) -> Query:
    """The one StatefulSet. By its name, so that a right on this one is enough."""
    arguments = {"namespace": namespace, "field_selector": f"metadata.name={name}"}
    return Query(what="statefulsets", api="apps", method="list_namespaced_stateful_set", arguments=arguments)


def pods_query(namespace: str, selector: str) -> Query:
    """Pods with the labels of `selector`."""
    arguments = {"namespace": namespace, "label_selector": selector}
    return Query(what="pods", api="core", method="list_namespaced_pod", arguments=arguments)


def claims_query(namespace: str, selector: str) -> Query:
    """PersistentVolumeClaims with the labels of `selector`."""
    arguments = {"namespace": namespace, "label_selector": selector}
    return Query(what="persistentvolumeclaims", api="core", method="list_namespaced_persistent_volume_claim", arguments=arguments)


def nodes_query() -> Query:
    """All nodes of the cluster."""
    return Query(what="nodes", api="core", method="list_node", arguments={})


class KubernetesApi:
    """A connection to the API server: as a pod's ServiceAccount, or as the kubeconfig says. May be used by several threads.

    :raises SettingsError: there is neither
    """

    def __init__(self) -> None:
        # The client's configuration has no types in the releases that are supported.
        settings: Any = client.Configuration()
        loaders: Any = config
        try:
            try:
                loaders.load_incluster_config(client_configuration=settings)
            except ConfigException:
                # The client reads this variable when it is imported, which may be long ago.
                loaders.load_kube_config(config_file=os.environ.get("KUBECONFIG"), client_configuration=settings)
        except (ConfigException, OSError) as error:
            raise SettingsError(f"no way to the Kubernetes API: not in a pod with a ServiceAccount, and no kubeconfig: {error}") from None
        settings.retries = False  # who calls tries again, with pauses and a limit
        settings.socket_options = SOCKET_OPTIONS
        self._client: Any = client.ApiClient(settings)
        self._apis: dict[str, Any] = {"core": client.CoreV1Api(self._client), "apps": client.AppsV1Api(self._client)}

    def close(self) -> None:
        """Close idle connections; a call that is under way goes on to its end."""
        self._client.rest_client.pool_manager.clear()
        self._client.close()

    def list_all(self, query: Query, timeout_s: float) -> tuple[list[dict[str, Any]], str]:
        """All objects, and the resource version from which a watch goes on. Cost: a page of 500 objects takes `timeout_s` at most.

        :raises KubernetesError: it failed, or was not read to its end: what came is no list then
        """
        items: list[dict[str, Any]] = []
        arguments: dict[str, Any] = dict(query.arguments)
        while True:
            page = self._call(query.api, query.method, timeout_s, limit=PAGE_ITEMS, **arguments)
            items += page.get("items") or ()
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion", ""))
            arguments["_continue"] = metadata["continue"]

    def watch(self, query: Query, resource_version: str, for_s: int) -> Watching:
        """What changes after `resource_version`, for so long.

        :raises KubernetesError: it was refused, or nobody answers
        """
        response = self._begin(
            query.api,
            query.method,
            (CONNECT_S, OPEN_S),
            watch=True,
            allow_watch_bookmarks=True,
            timeout_seconds=for_s,
            resource_version=resource_version,
            **query.arguments,
        )
        return Watching(response, for_s + WATCH_SLACK_S)

    def get(self, api: str, method: str, timeout_s: float, **arguments: Any) -> dict[str, Any] | None:
        """One object; None: there is none.

        :raises KubernetesError: it was refused, or nobody answers
        """
        try:
            return self._call(api, method, timeout_s, **arguments)
        except KubernetesError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def create_event(self, namespace: str, body: dict[str, Any], timeout_s: float) -> None:
        """Create the Event, if there is none of this name.

        :raises KubernetesError: it was refused, or nobody answers
        """
        try:
            self._call("core", "create_namespaced_event", timeout_s, namespace=namespace, body=body)
        except KubernetesError as error:
            if error.status != CONFLICT:
                raise

    def _call(self, api: str, method: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        response = self._begin(api, method, (min(CONNECT_S, timeout_s), timeout_s), **arguments)
        try:
            answer = json.loads(response.data)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise _unanswered(error) from None
        finally:
            response.release_conn()
        if not isinstance(answer, dict):
            raise KubernetesError(f"the API server answered with {type(answer).__name__} instead of an object")
        return answer

    def _begin(self, api: str, method: str, timeout_s: tuple[float, float], **arguments: Any) -> Any:
        call = getattr(self._apis[api], method)
        try:
            response = call(_preload_content=False, _request_timeout=timeout_s, **arguments)
        except ApiException as error:
            raise KubernetesError(f"{error.status} {error.reason}", error.status or 0) from None
        except (urllib3.exceptions.HTTPError, OSError, ConfigException) as error:  # the token's file is read again now and then
            raise _unanswered(error) from None
        if not 200 <= response.status <= 299:  # some releases of the client leave this to their caller
            response.drain_conn()
            response.release_conn()
            raise KubernetesError(f"{response.status} {response.reason}", response.status)
        return response


class Watching:
    """A watch that is open. Iterate it in one thread; `close` may come from another one and ends it at once.

    :param silent_s: after nothing came for so long, it counts as broken
    """

    def __init__(self, response: Any, silent_s: float) -> None:
        self._response = response
        self._socket: Any = getattr(response.connection, "sock", None)
        if self._socket is not None:  # from here on it may be silent for longer than at its beginning
            self._socket.settimeout(silent_s)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Type and object of each event, ``BOOKMARK`` included; ends when the API server ends it.

        :raises KubernetesError: 410 if what is asked for is no longer remembered, or the connection broke
        """
        rest = b""
        try:
            for chunk in self._response.stream(decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield _event_of(line)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise _unanswered(error) from None
        finally:
            self._response.close()
            self._response.release_conn()

    def close(self) -> None:
        """End it, whatever it waits for."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                # Not the method of a TLS socket: that would take its state from under the thread that reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _event_of(line: bytes) -> tuple[str, dict[str, Any]]:
    event = json.loads(line)
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        raise KubernetesError(f"the API server sent something that is no event: {line[:200]!r}")
    thing = event["object"]
    if event.get("type") == "ERROR":
        raise KubernetesError(f"{thing.get('code')} {thing.get('reason')}: {thing.get('message')}", int(thing.get("code") or 0))
    return str(event.get("type")), thing


def _unanswered(error: Exception) -> KubernetesError:
    return KubernetesError(f"no answer: {type(error).__name__}: {error}")


# -- single questions


def wanted_replicas(namespace: str, statefulset: str, timeout_s: float) -> int | None:
    """How many pods the StatefulSet is to have; None: the API server does not answer in time, forbids it, or knows no such one."""
    found = _ask_once("apps", "read_namespaced_stateful_set", timeout_s, namespace=namespace, name=statefulset)
    count = (found or {}).get("spec", {}).get("replicas")
    return count if isinstance(count, int) else None


def zone_of_node(name: str, timeout_s: float) -> str:
    """Zone of a Kubernetes node; empty: it has none, or the API server does not answer in time or forbids it."""
    found = _ask_once("core", "read_node", timeout_s, name=name)
    labels = (found or {}).get("metadata", {}).get("labels") or {}
    return next((str(labels[label]) for label in ZONE_LABELS if labels.get(label)), "")


def _ask_once(api: str, method: str, timeout_s: float, **arguments: Any) -> dict[str, Any] | None:
    try:
        with contextlib.closing(KubernetesApi()) as kubernetes:
            return kubernetes.get(api, method, timeout_s / 2, **arguments)  # half to connect at most, half to answer
    except (KubernetesError, SettingsError) as error:
        log.warning("kubernetes was not asked method=%s error=%s", method, error)
        return None
