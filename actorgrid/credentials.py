"""Who is who: the files a process proves itself by, and what it takes from others as proof.

A grid has a certificate authority of its own. Every socket that leaves the machine speaks TLS 1.3; hosts show each other certificates, and
clients show a certificate or, once they have seen that of a host, a token. Who somebody is stands in the certificate as a URI,
``actorgrid://CLUSTER/ROLE/NAME``; the addresses in it are for tools such as curl. A host's name may be ``*``: any host of the grid.

Files are read again when they change, so that what is renewed counts for the next connection, without a restart.

This module must not: import anything that the bare package does not have.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from actorgrid import ambient
from actorgrid.errors import AccessDeniedError, SettingsError

logger = logging.getLogger(__name__)

ROLE_HOST: Final = "host"
ROLE_CALLER: Final = "caller"
ROLE_OBSERVER: Final = "observer"
ROLE_OPERATOR: Final = "operator"
ROLES: Final = (ROLE_HOST, ROLE_CALLER, ROLE_OBSERVER, ROLE_OPERATOR)
#: Of clients; only a certificate makes a host.
CLIENT_ROLES: Final = (ROLE_CALLER, ROLE_OBSERVER, ROLE_OPERATOR)
SCHEME: Final = "actorgrid"
ANY_NAME: Final = "*"
TOKEN_BYTES_MAX: Final = 2048
#: Files that could not be used are tried again after this.
TRIED_AGAIN_NS: Final = 5_000_000_000
#: Field -> variable of the environment.
VARIABLES: Final = {
    "ca": "ACTORGRID_CA",
    "certificate": "ACTORGRID_CERTIFICATE",
    "key": "ACTORGRID_KEY",
    "tokens": "ACTORGRID_TOKENS",
    "token_file": "ACTORGRID_TOKEN_FILE",
    "token": "ACTORGRID_TOKEN",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The files that a process proves itself by.

    :ivar ca: certificates of the grid's authority, PEM
    :ivar certificate: its own, with the chain, PEM
    :ivar key: of its certificate, PEM, not encrypted
    :ivar tokens: of a host: the tokens it takes, as `actorgrid tokens` writes them
    :ivar token_file: of a client: the token it shows; read anew for every connection
    :ivar token: the same, where there is no file
    """

    ca: str
    certificate: str = ""
    key: str = ""
    tokens: str = ""
    token_file: str = ""
    token: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        problems = []
        if not self.ca:
            problems.append(
                f"credentials without the certificate of the grid's authority ({VARIABLES['ca']}): hosts could not be told from others"
            )
        if bool(self.certificate) != bool(self.key):
            problems.append(f"a certificate and its key belong together ({VARIABLES['certificate']}, {VARIABLES['key']})")
        if self.token and self.token_file:
            problems.append(f"a token is given twice ({VARIABLES['token']}, {VARIABLES['token_file']})")
        problems += [
            f"{VARIABLES[name]}: there is no file {path}"
            for name in ("ca", "certificate", "key", "tokens", "token_file")
            if (path := getattr(self, name)) and not Path(path).is_file()
        ]
        if problems:
            raise SettingsError(*problems)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Credentials | None:
        """What the variables of `VARIABLES` say; None if none of them is set.

        :raises SettingsError: they do not go together, or a file is missing
        """
        source = os.environ if environment is None else environment
        given = {name: source[variable] for name, variable in VARIABLES.items() if source.get(variable)}
        return cls(**{"ca": "", **given}) if given else None

    def read_token(self) -> bytes:
        """The token to show; empty if there is none.

        :raises AccessDeniedError: the file cannot be read
        """
        if not self.token_file:
            return self.token.encode()
        try:
            token = Path(self.token_file).read_bytes().strip()
        except OSError as error:
            raise AccessDeniedError(f"the token cannot be read from {self.token_file}: {error.strerror or error}") from None
        if len(token) > TOKEN_BYTES_MAX:
            raise AccessDeniedError(f"{self.token_file} has {len(token)} bytes, a token has at most {TOKEN_BYTES_MAX}")
        return token


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """What a credential proves.

    :ivar cluster: the grid; empty where a token was shown, which is the host's own to know
    :ivar roles: what it may be
    :ivar name: for people and logs
    :ivar expires_ms: date from which on it proves nothing; 0: never
    :ivar token_digest: of the token shown; empty for a certificate
    """

    cluster: str
    roles: frozenset[str]
    name: str
    expires_ms: int = 0
    token_digest: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(sorted(self.roles))})"


#: Where a grid has no credentials, and so listens on loopback only, everybody may do everything.
ANYBODY: Final = Identity("", frozenset(ROLES), "anybody")


def uri_of(cluster: str, role: str, name: str) -> str:
    """The identity as a certificate has it."""
    return f"{SCHEME}://{urllib.parse.quote(cluster, safe='')}/{role}/{urllib.parse.quote(name, safe=ANY_NAME)}"


def parse_uri(uri: str) -> tuple[str, str, str] | None:
    """Grid, role and name of what `uri_of` made; None: it is no identity."""
    parts = uri.removeprefix(f"{SCHEME}://").split("/")
    if not uri.startswith(f"{SCHEME}://") or len(parts) != 3 or parts[1] not in ROLES:
        return None
    return urllib.parse.unquote(parts[0]), parts[1], urllib.parse.unquote(parts[2])


def identity_of(certificate: Mapping[str, Any] | None) -> Identity | None:
    """Who shows `certificate`, as ``getpeercert`` gives one that was verified; None: nobody of a grid."""
    if not certificate:
        return None
    cluster, name, roles = "", "", set()
    for kind, value in certificate.get("subjectAltName", ()):
        if kind != "URI" or not value.startswith(f"{SCHEME}://"):
            continue
        found = parse_uri(value)
        if found is None or cluster not in ("", found[0]):
            return None  # two grids in one certificate, or no identity at all
        cluster, role, name = found
        roles.add(role)
    if not roles or not cluster:
        return None
    expires_ms = int(ssl.cert_time_to_seconds(certificate["notAfter"]) * 1000) if "notAfter" in certificate else 0
    return Identity(cluster, frozenset(roles), name, expires_ms)


def is_host(certificate: Mapping[str, Any] | None) -> bool:
    """Whether a verified certificate is a host's, of whatever grid."""
    identity = identity_of(certificate)
    return identity is not None and ROLE_HOST in identity.roles


def check_host(certificate: Mapping[str, Any] | None, cluster: str, host: str = "") -> None:
    """Make sure that a certificate is of a host of the grid.

    :param cluster: id of the grid; empty: whichever it is
    :param host: its name; empty: any
    :raises AccessDeniedError: it is not
    """
    identity = identity_of(certificate)
    if identity is None or ROLE_HOST not in identity.roles:
        raise AccessDeniedError(f"what answers shows a certificate that is not a host's: {identity or 'no identity of a grid'}")
    if cluster and identity.cluster != cluster:
        raise AccessDeniedError(f"what answers is a host of grid {identity.cluster}, expected grid {cluster}")
    if host and identity.name not in (host, ANY_NAME):
        raise AccessDeniedError(f"what answers is host {identity.name}, expected {host}")


# -- files that change


class _Watched:
    """Something made of files, made anew when one of them has changed; while that fails, the old one counts."""

    def __init__(self, paths: tuple[str, ...], make: Callable[[], Any], what: str) -> None:
        self._paths = paths
        self._make = make
        self._what = what
        self._lock = threading.Lock()  # probes and actor threads connect, too
        self._marks = self._look()
        self._again_ns = 0  # when to try once more what did not succeed; 0: nothing failed
        self._made = make()

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for path in self._paths:
            try:
                status = os.stat(path)
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)

    def get(self) -> Any:
        """The newest that could be made."""
        marks = self._look()
        if self._is_due(marks):
            with self._lock:
                if self._is_due(marks):
                    self._marks = marks
                    try:
                        self._made = self._make()
                    except (AccessDeniedError, SettingsError) as error:
                        # Tried again without a change, too: it may have been a descriptor or a right that was missing for a moment.
                        self._again_ns = ambient.monotonic_ns() + TRIED_AGAIN_NS
                        logger.error("changed files cannot be used, the old ones count: what=%s error=%s", self._what, error)
                    else:
                        self._again_ns = 0
                        logger.info("files have changed and were read again: what=%s files=%s", self._what, ",".join(self._paths))
        return self._made

    def _is_due(self, marks: tuple[tuple[int, int, int], ...]) -> bool:
        return marks != self._marks or (self._again_ns != 0 and ambient.monotonic_ns() >= self._again_ns)


class _RenewedContext(ssl.SSLContext):
    """A context whose every connection is made by the one that the files say now.

    asyncio, uvloop and aiohttp make connections by `wrap_bio` and ask nothing else of a context.
    """

    _watched: _Watched

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        context: ssl.SSLContext = self._watched.get()
        return context.wrap_bio(*arguments, **named)


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """For a socket that hosts and clients connect to: shows the own certificate, and verifies that of a peer which shows one.

    :raises SettingsError: a file is missing or is not what it should be
    """
    if not credentials.certificate:
        raise SettingsError(f"who listens needs a certificate ({VARIABLES['certificate']}, {VARIABLES['key']})")
    return _renewed(ssl.PROTOCOL_TLS_SERVER, credentials)


@functools.lru_cache(maxsize=64)
def client_context(credentials: Credentials) -> ssl.SSLContext:
    """For a connection to a host; afterwards `check_host` must be asked whether it is one.

    :raises SettingsError: a file is missing or is not what it should be
    """
    return _renewed(ssl.PROTOCOL_TLS_CLIENT, credentials)


def _renewed(protocol: int, credentials: Credentials) -> ssl.SSLContext:
    paths = tuple(path for path in (credentials.ca, credentials.certificate, credentials.key) if path)
    context = _RenewedContext(protocol)
    context._watched = _Watched(paths, lambda: _make_context(protocol, credentials), "certificates")
    # What asyncio looks at by itself; the rest is the inner context's.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_OPTIONAL if protocol == ssl.PROTOCOL_TLS_SERVER else ssl.CERT_REQUIRED
    return context


def _make_context(protocol: int, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Identity is the URI: addresses of pods change, and a certificate of this authority that is no host's is refused by `check_host`.
    context.check_hostname = False
    is_server = protocol == ssl.PROTOCOL_TLS_SERVER
    context.verify_mode = ssl.CERT_OPTIONAL if is_server else ssl.CERT_REQUIRED
    if is_server:
        context.num_tickets = 0  # nothing is resumed: a connection stands for hours, and its credential is looked at anew
    try:
        context.load_verify_locations(credentials.ca)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"{credentials.ca} holds no certificate of an authority: {error}") from None
    if credentials.certificate:
        try:
            context.load_cert_chain(credentials.certificate, credentials.key, password=_refuse_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise SettingsError(f"{credentials.certificate} and {credentials.key} are no certificate with its key: {error}") from None
    return context


def _refuse_password() -> str:
    # Without it OpenSSL would ask at the terminal, and wait there.
    raise ValueError("the key is encrypted, which a process that starts by itself cannot use")


# -- tokens


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One token that hosts take.

    :ivar digest: SHA-256 of the token, hex: whoever reads the file cannot show the token
    :ivar expires_ms: date; 0: never
    """

    name: str
    roles: tuple[str, ...]
    digest: str
    expires_ms: int = 0

    def __post_init__(self) -> None:
        wrong = [role for role in self.roles if role not in CLIENT_ROLES]
        if wrong or not self.roles:
            raise ValueError(f"token {self.name!r}: roles are {', '.join(CLIENT_ROLES)}, got {', '.join(wrong) or 'none'}")


class TokenFile(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of the tokens file."""

    format_version: int = 1
    tokens: tuple[TokenRecord, ...] = ()


def digest_of(token: bytes) -> str:
    """As `TokenRecord.digest`. Tokens are random, so that no salt is needed."""
    return hashlib.sha256(token).hexdigest()


def read_tokens(path: str | Path) -> TokenFile:
    """The tokens file at `path`.

    :raises SettingsError: it cannot be read, or does not have its form
    """
    try:
        content = msgspec.json.decode(Path(path).read_bytes(), type=TokenFile)
    except OSError as error:
        raise SettingsError(f"cannot read the tokens from {path}: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no file of tokens: {error}") from None
    if content.format_version != 1:
        raise SettingsError(f"{path} has format {content.format_version}, this release knows 1")
    return content


class Gate:
    """Decides who somebody is that connects to a host; one for each host.

    :param credentials: None: everybody is `ANYBODY`
    """

    def __init__(self, credentials: Credentials | None, cluster: str) -> None:
        self.is_open = credentials is None
        self._cluster = cluster
        self._tokens = None
        if credentials is not None and credentials.tokens:
            path = credentials.tokens
            self._tokens = _Watched((path,), lambda: {each.digest: each for each in read_tokens(path).tokens}, "tokens")

    def identify(self, certificate: Mapping[str, Any] | None, token: bytes) -> Identity:
        """Who shows this; a certificate counts before a token.

        :param certificate: of the connection, verified by TLS
        :raises AccessDeniedError: it proves nothing here
        """
        if self.is_open:
            return ANYBODY
        if certificate:
            identity = identity_of(certificate)
            if identity is None:
                raise AccessDeniedError("the certificate shown has no identity of a grid")
            if identity.cluster != self._cluster:
                raise AccessDeniedError(f"the certificate shown is of grid {identity.cluster}, this is grid {self._cluster}")
        elif token:
            record: TokenRecord | None = self._known_tokens().get(digest_of(token))
            if record is None:
                raise AccessDeniedError("the token shown is not known here")
            identity = Identity("", frozenset(record.roles), record.name, record.expires_ms, record.digest)
        else:
            raise AccessDeniedError("this grid wants a credential: a certificate or a token")
        if not self.still_counts(identity):
            raise AccessDeniedError(f"the credential of {identity.name} has expired")
        return identity

    def still_counts(self, identity: Identity) -> bool:
        """Whether a credential that was taken has neither expired nor, for a token, been withdrawn since."""
        if self.is_open:
            return True
        if identity.token_digest:
            record = self._known_tokens().get(identity.token_digest)
            if record is None or frozenset(record.roles) != identity.roles or record.expires_ms != identity.expires_ms:
                return False  # withdrawn, or worth something else now: whoever has it comes back and gets that
        # A date that somebody wrote into the credential: here the wall clock is what is meant.
        return not identity.expires_ms or identity.expires_ms > ambient.wall_clock_ns() // 1_000_000

    def _known_tokens(self) -> dict[str, TokenRecord]:
        return self._tokens.get() if self._tokens is not None else {}
