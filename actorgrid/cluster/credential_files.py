"""Certificates and tokens as files: what `actorgrid certs` and `actorgrid tokens` keep.

A directory of credentials has ``ca.crt`` and ``ca.key``, and one directory for each holder with ``ca.crt``, ``tls.crt`` and ``tls.key``, as
Kubernetes calls them. Files are replaced as a whole, so that a process that reads them again never sees half of one; keys are for their
owner alone. Whoever has ``ca.key`` can be anybody: it belongs on no machine that runs hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from actorgrid import ambient
from actorgrid.cluster import certificates
from actorgrid.cluster.certificates import Pair, Seen
from actorgrid.credentials import (
    ANY_NAME,
    ROLE_CALLER,
    ROLE_HOST,
    ROLE_OBSERVER,
    ROLE_OPERATOR,
    Credentials,
    TokenFile,
    TokenRecord,
    digest_of,
    parse_uri,
    read_tokens,
)
from actorgrid.errors import SettingsError

AUTHORITY: Final = "ca"
CERTIFICATE: Final = "tls"
TOKENS: Final = "tokens.json"
TOKEN_PREFIX: Final = "agt_"  # noqa: S105 - so that tools that look for secrets in texts find one
TOKEN_BYTES: Final = 32
TOKENS_MAX: Final = 10_000
#: Holder -> roles, of the first set. People who look after a grid want to see what its actors say, too.
FIRST: Final = {
    ROLE_HOST: (ROLE_HOST,),
    ROLE_OPERATOR: (ROLE_OPERATOR, ROLE_CALLER),
    ROLE_OBSERVER: (ROLE_OBSERVER,),
    ROLE_CALLER: (ROLE_CALLER,),
}
LOCAL_ADDRESSES: Final = ("localhost", "127.0.0.1", "::1")


def make(directory: Path, cluster: str, *, addresses: Sequence[str] = (), days: int = certificates.LEAF_DAYS) -> list[Path]:
    """Make an authority in `directory`, and one holder of each role.

    :returns: the holders' directories
    :raises SettingsError: there is an authority already, or the directory cannot be written
    """
    if (directory / f"{AUTHORITY}.crt").exists():
        raise SettingsError(f"{directory} has an authority already; `actorgrid certs renew` renews what it has signed")
    authority = certificates.make_authority(cluster)
    _write_pair(directory, AUTHORITY, authority)
    for holder, roles in FIRST.items():
        name, named = (ANY_NAME, (*LOCAL_ADDRESSES, *addresses)) if holder == ROLE_HOST else (holder, ())
        _write_holder(directory / holder, authority, certificates.issue(authority, cluster, roles, name, addresses=named, days=days))
    write_tokens(directory / TOKENS, TokenFile())
    return [directory / holder for holder in FIRST]


def issue(directory: Path, roles: Sequence[str], name: str, *, addresses: Sequence[str] = (), days: int = certificates.LEAF_DAYS) -> Path:
    """Make one more holder, in a directory of its name.

    :raises SettingsError: it exists, or the authority cannot be read
    """
    if "/" in name or name.startswith("."):
        raise SettingsError(f"a holder's name is that of its directory, so it has no slash and does not begin with a dot; got {name!r:.80}")
    authority = read_authority(directory)
    target = directory / (name if name != ANY_NAME else "host")
    if target.exists():
        raise SettingsError(f"{target} exists already; `actorgrid certs renew` renews it")
    cluster = cluster_of(directory)
    _write_holder(target, authority, certificates.issue(authority, cluster, roles, name, addresses=addresses, days=days))
    return target


def renew(directory: Path, *, force: bool = False, days: int | None = None) -> list[Path]:
    """Renew what has less than a third of its life left, or everything; the authority is kept.

    :returns: the holders that were renewed
    :raises SettingsError: a file cannot be read
    """
    authority = read_authority(directory)
    renewed = []
    for holder in holders_of(directory):
        old = _read(holder / f"{CERTIFICATE}.crt")
        if force or certificates.is_due(old, authority.certificate):
            _write_holder(holder, authority, certificates.renew(authority, old, days=days))
            renewed.append(holder)
    return renewed


def show(path: Path) -> list[tuple[str, Seen]]:
    """What there is in a directory of credentials, or in one file.

    :raises SettingsError: a file is no certificate
    """
    if path.is_file():
        return [(path.name, certificates.look(_read(path)))]
    found = [(f"{AUTHORITY}.crt", certificates.look(_read(path / f"{AUTHORITY}.crt")))]
    return [*found, *((holder.name, certificates.look(_read(holder / f"{CERTIFICATE}.crt"))) for holder in holders_of(path))]


def holders_of(directory: Path) -> list[Path]:
    """The directories with a certificate."""
    return sorted(path.parent for path in directory.glob(f"*/{CERTIFICATE}.crt"))


def credentials_of(holder: Path, *, tokens: Path | None = None) -> Credentials:
    """The credentials of one holder, by its directory.

    :param tokens: the file of tokens that a host takes
    :raises SettingsError: a file is missing
    """
    certificate, key = (str(holder / f"{CERTIFICATE}.{kind}") for kind in ("crt", "key"))
    return Credentials(ca=str(holder / f"{AUTHORITY}.crt"), certificate=certificate, key=key, tokens=str(tokens or ""))


def read_authority(directory: Path) -> Pair:
    """The authority of a directory.

    :raises SettingsError: there is none
    """
    return Pair(_read(directory / f"{AUTHORITY}.crt"), _read(directory / f"{AUTHORITY}.key"))


def cluster_of(directory: Path) -> str:
    """The grid that the holders of a directory belong to.

    :raises SettingsError: there is no holder to tell
    """
    for _, seen in show(directory):
        for uri in seen.identities:
            if (found := parse_uri(uri)) is not None:
                return found[0]
    raise SettingsError(f"{directory} has no certificate that says which grid it is of")


# -- tokens


def new_token(name: str, roles: Sequence[str], days: int | None) -> tuple[str, TokenRecord]:
    """A new token, and what hosts keep of it.

    :param days: None: it never expires
    :raises SettingsError: the name or a role cannot be
    """
    if not 1 <= len(name) <= certificates.NAME_CHARACTERS_MAX or not name.isprintable():
        raise SettingsError(f"a token's name has 1..{certificates.NAME_CHARACTERS_MAX} characters, got {name!r:.80}")
    if days is not None and not 1 <= days <= certificates.DAYS_MAX:
        raise SettingsError(f"days: {days} is outside the allowed range 1..{certificates.DAYS_MAX}")
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    expires_ms = ambient.wall_clock_ns() // 1_000_000 + days * 86_400_000 if days is not None else 0
    return token, record_of(name, roles, token.encode(), expires_ms)


def record_of(name: str, roles: Sequence[str], token: bytes, expires_ms: int = 0) -> TokenRecord:
    """What hosts keep of a token.

    :raises SettingsError: a role cannot be
    """
    try:
        return TokenRecord(name=name, roles=tuple(dict.fromkeys(roles)), digest=digest_of(token), expires_ms=expires_ms)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def add_token(path: Path, name: str, roles: Sequence[str], days: int | None) -> str:
    """Make a token that the hosts which read `path` take; it is told once and kept nowhere.

    :raises SettingsError: there is one of that name, or an argument cannot be
    """
    token, record = new_token(name, roles, days)
    with _locked(path):
        known = read_tokens(path).tokens if path.exists() else ()
        if any(each.name == name for each in known):
            raise SettingsError(f"{path} has a token {name!r} already; remove it first (`actorgrid tokens remove`)")
        if len(known) >= TOKENS_MAX:
            raise SettingsError(f"{path} has {TOKENS_MAX} tokens, which is the limit")
        write_tokens(path, TokenFile(tokens=(*known, record)))
    return token


def remove_token(path: Path, name: str) -> None:
    """Let hosts take a token no more; within seconds its connections end.

    :raises SettingsError: there is none of that name
    """
    with _locked(path):
        known = read_tokens(path)
        left = tuple(record for record in known.tokens if record.name != name)
        if len(left) == len(known.tokens):
            raise SettingsError(f"{path} has no token {name!r}; those it has: {', '.join(record.name for record in left) or 'none'}")
        write_tokens(path, msgspec.structs.replace(known, tokens=left))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two people who change a file at a time do so one after the other."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_tokens(path: Path, content: TokenFile) -> None:
    """Replace a file of tokens."""
    _write(path, encode_tokens(content), 0o644)


def encode_tokens(content: TokenFile) -> bytes:
    """The file of tokens as bytes."""
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


# -- files


def _write_holder(directory: Path, authority: Pair, pair: Pair) -> None:
    _write(directory / f"{AUTHORITY}.crt", authority.certificate, 0o644)
    _write_pair(directory, CERTIFICATE, pair)


def _write_pair(directory: Path, name: str, pair: Pair) -> None:
    # The key first: who sees the new certificate finds its key, and who sees the old one with the new key keeps what was read before.
    _write(directory / f"{name}.key", pair.key, 0o600)
    _write(directory / f"{name}.crt", pair.certificate, 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from None
