"""The addresses a client starts from: ``host:port`` texts, separated by commas."""

from __future__ import annotations

from actorgrid.errors import InvalidArgumentError

DEFAULT_PORT = 7400  #: the first port of ``actorgrid up``


def parse_seeds(address: str) -> tuple[tuple[str, int], ...]:
    """``"10.0.0.1:7400,[::1]:7401,db"`` as (host, port) pairs, in order and without doubles; the port may be left out.

    :raises InvalidArgumentError: naming the part that is no address
    """
    if not isinstance(address, str):
        raise InvalidArgumentError(f"address: expected a str such as '127.0.0.1:7400', got {type(address).__name__}")
    seeds = [_parse_one(part.strip()) for part in address.split(",") if part.strip()]
    if not seeds:
        raise InvalidArgumentError(f"address {address!r}: expected host:port, or several separated by commas")
    return tuple(dict.fromkeys(seeds))


def _parse_one(text: str) -> tuple[str, int]:
    if text.startswith("["):  # an IPv6 address has colons of its own
        host, bracket, rest = text[1:].partition("]")
        is_wrong = not bracket or (rest != "" and not rest.startswith(":"))
        port_text = rest[1:]
    else:
        host, _, port_text = text.partition(":")
        is_wrong = False
    if is_wrong or not host or not (port_text.isdecimal() or not port_text):
        raise InvalidArgumentError(f"address {text!r}: expected host:port")
    port = int(port_text) if port_text else DEFAULT_PORT
    if not 1 <= port <= 65535:
        raise InvalidArgumentError(f"address {text!r}: a port is 1..65535")
    return host, port


def show_seed(host: str, port: int) -> str:
    """``host:port``, for people."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
