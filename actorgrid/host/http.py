"""Operators' verbs over HTTP, for what is no Python: notices of other systems, probes, preStop hooks, curl.

===========================================  ==========================================================
``GET /``                                    a page that shows where everything is, and what moves
``GET /livez``                               the process answers
``GET /readyz``                              200 while it serves; 503 before, and once it leaves
``GET /v1/status``                           this host's part of ``actorgrid status``
``GET /v1/nodes``                            ``actorgrid nodes``
``GET /v1/nodes/NODE/drain``                 how far a drain is
``POST /v1/nodes/NODE/drain``                ``{"intent": "restart", "deadline_s": 120}``; ``"estimate": true`` only asks
``DELETE /v1/nodes/NODE/drain``              takes it back
``GET /v1/partitions``                       where the replicas of all partitions are
``GET /v1/partitions/NUMBER``                ``actorgrid explain NUMBER``
``GET /v1/moves``                            ``actorgrid moves``
``POST /v1/rebalance``                       ``{"dry_run": true}`` only shows
``POST /v1/freeze`` ``{"reason": TEXT}``     ``DELETE /v1/freeze`` lets moves go on
===========================================  ==========================================================

Every other answer is JSON. Any host takes any question to the manager. Errors have ``{"error", "message"}``: 400 it can never be, 401 there
is no credential, 403 not with this one, 404 there is no such thing, 503 with ``Retry-After`` it may be asked again, 504 whether it was done
is not known.

It listens where the host does. With credentials: by TLS, and every question but ``/``, ``/livez`` and ``/readyz`` needs a certificate or
``Authorization: Bearer TOKEN`` (`rights` has the table). Without: on a loopback address, where requests of web pages are refused: what a
browser sends for a page has an ``Origin``, or a ``Host`` that is not this machine's.

This module must not: decide anything.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import ipaddress
import logging
import math
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from actorgrid import ambient
from actorgrid.credentials import Credentials, Gate, Identity, server_context
from actorgrid.errors import (
    AccessDeniedError,
    ActorGridError,
    DeadlineExceededError,
    OutcomeUnknownError,
    RequestError,
    SettingsError,
    TransientError,
)
from actorgrid.host.listening import Penalties, listen

logger = logging.getLogger(__name__)

BODY_BYTES_MAX: Final = 64 * 1024
STOP_TIMEOUT_S: Final = 1.0
HANDSHAKE_TIMEOUT_S: Final = 5.0
#: Open at a time; past that the oldest is closed (I16).
CONNECTIONS_MAX: Final = 256
#: The page loads nothing from elsewhere and talks to nobody else.
PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpOwner(Protocol):
    """What this needs of its host."""

    state: str
    gate: Gate
    penalties: Penalties

    async def administer(self, verb: str, arguments: dict[str, Any], identity: Identity) -> Any:
        """Answer an operator's tool."""


class HttpServer:
    """The HTTP side of one host."""

    def __init__(self, owner: HttpOwner, credentials: Credentials | None = None) -> None:
        self._owner = owner
        self._credentials = credentials
        self._runner: web.AppRunner | None = None
        self._server: Any = None

    async def start(self, address: str, port: int) -> None:
        """Listen.

        :raises SettingsError: the port is taken or may not be used
        """
        context = server_context(self._credentials) if self._credentials is not None else None
        guard = _guarded if context is None else _answered
        application = web.Application(middlewares=[guard], client_max_size=BODY_BYTES_MAX)
        application.add_routes(
            [
                web.get("/", _page),
                web.get("/livez", self._live),
                web.get("/readyz", self._ready),
                web.get("/v1/status", self._verb("status")),
                web.get("/v1/nodes", self._verb("nodes")),
                web.get("/v1/nodes/{node}/drain", self._verb("drain_status")),
                web.post("/v1/nodes/{node}/drain", self._verb("drain")),
                web.delete("/v1/nodes/{node}/drain", self._verb("undrain")),
                web.get("/v1/partitions", self._verb("partitions")),
                web.get(r"/v1/partitions/{partition:[0-9]{1,9}}", self._verb("explain")),
                web.get("/v1/moves", self._verb("moves")),
                web.post("/v1/rebalance", self._verb("rebalance")),
                web.post("/v1/freeze", self._verb("freeze")),
                web.delete("/v1/freeze", self._verb("unfreeze")),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_TIMEOUT_S)
        await self._runner.setup()
        try:
            self._server = await listen_for_http(self._runner, address, port, context=context, penalties=self._owner.penalties)
        except SettingsError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Listen no more; once more does no harm."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _live(self, request: web.Request) -> web.Response:
        return _json({"state": self._owner.state})

    async def _ready(self, request: web.Request) -> web.Response:
        state = self._owner.state
        return _json({"state": state}, status=200 if state == "serving" else 503)

    def _verb(self, verb: str) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            identity = await self._identify(request)
            arguments = await _arguments_of(request)
            try:
                return _json(await self._owner.administer(verb, arguments, identity))
            except AccessDeniedError as error:
                logger.warning("access denied peer=%s error=%s", request.remote, error)
                raise

        return handle

    async def _identify(self, request: web.Request) -> Identity:
        """Who asks.

        :raises AccessDeniedError: nobody who may
        """
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
        try:
            return self._owner.gate.identify(certificate, token.strip().encode() if scheme.lower() == "bearer" else b"")
        except AccessDeniedError as error:
            count = self._owner.penalties.failed(str(request.remote), ambient.monotonic())
            logger.warning("access denied peer=%s in_a_row=%d error=%s", request.remote, count, error)
            await asyncio.sleep(self._owner.penalties.wait_s(str(request.remote), ambient.monotonic()))
            raise web.HTTPUnauthorized(reason=str(error), headers={"WWW-Authenticate": "Bearer"}) from None


async def listen_for_http(runner: web.AppRunner, address: str, port: int, *, context: ssl.SSLContext | None, penalties: Penalties) -> Any:
    """Serve `runner`, which was set up, as `listening.listen` does it; ``close()`` ends it.

    :raises SettingsError: the port is taken or may not be used
    """
    server = runner.server
    assert server is not None

    def make() -> asyncio.Protocol:
        # Whoever comes last has something to ask, more likely than who came first and is still here.
        for oldest in server.connections[: max(0, len(server.connections) + 1 - CONNECTIONS_MAX)]:
            oldest.force_close()
        return server()

    return await listen(make, address, port, context=context, penalties=penalties, handshake_timeout_s=HANDSHAKE_TIMEOUT_S)


async def _page(request: web.Request) -> web.Response:
    page = importlib.resources.files("actorgrid.host").joinpath("placement.html").read_text("utf-8")
    return web.Response(text=page, content_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY})


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Requests that no web page has made."""
    if "Origin" in request.headers or not _is_this_machine(request.host):
        return _problem(403, "AccessDeniedError", "requests of web pages are not answered; ask 127.0.0.1 or localhost directly")
    return await _with_errors(request, handler)


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Requests with credentials; a page of another site cannot show any, unless a browser adds a certificate by itself."""
    if "Origin" in request.headers and request.headers["Origin"] != f"https://{request.host}":
        return _problem(403, "AccessDeniedError", "requests of other sites' pages are not answered")
    return await _with_errors(request, handler)


async def _with_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as JSON."""
    try:
        return await handler(request)
    except web.HTTPUnauthorized as error:
        return _problem(401, "AccessDeniedError", error.reason, {"WWW-Authenticate": "Bearer"})
    except web.HTTPException as error:
        return _problem(error.status, "RequestError", error.reason)
    except ActorGridError as error:
        return _answer_to(error)
    except Exception as error:
        logger.exception("HTTP request could not be answered method=%s path=%s", request.method, request.path)
        return _problem(500, type(error).__name__, str(error))


def _answer_to(error: ActorGridError) -> web.Response:
    name = type(error).__name__
    if isinstance(error, AccessDeniedError):
        return _problem(403, name, str(error))
    if isinstance(error, RequestError):
        return _problem(404 if str(error).startswith("there is no ") else 400, name, str(error))
    if isinstance(error, TransientError):
        return _problem(503, name, str(error), {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))})
    if isinstance(error, DeadlineExceededError | OutcomeUnknownError):
        return _problem(504, name, str(error))
    return _problem(500, name, str(error))


async def _arguments_of(request: web.Request) -> dict[str, Any]:
    """What the path and the body say.

    :raises RequestError: the body is no JSON object
    """
    arguments: dict[str, Any] = {}
    body = await request.read()
    if body:
        try:
            arguments = msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise RequestError(f"the body must be a JSON object: {error}") from None
    if "node" in request.match_info:
        arguments["node"] = request.match_info["node"]
    if "partition" in request.match_info:
        arguments["partition"] = int(request.match_info["partition"])
    arguments.pop("by", None)  # only hosts say that of themselves
    return arguments


def _is_this_machine(host: str) -> bool:
    """Whether a ``Host`` header names this machine: a page that has its name lead here (DNS rebinding) still sends its own."""
    name = host.rsplit(":", 1)[0].strip("[]") if not host.endswith("]") else host.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _problem(status: int, name: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode({"error": name, "message": message})
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
