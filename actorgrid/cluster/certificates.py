"""A grid's own certificate authority, and what it signs.

Each certificate says who shows it by a URI (`credentials.uri_of`). Keys are of the curve P-256: small, quick to sign with, and known to
every library. Nothing here opens a socket or knows where the files are kept; `cli.certs` has directories, `kubernetes_secrets` Secrets.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from actorgrid import ambient
from actorgrid.credentials import ROLE_HOST, parse_uri, uri_of
from actorgrid.errors import SettingsError

AUTHORITY_DAYS: Final = 3650
LEAF_DAYS: Final = 90
DAYS_MAX: Final = 36_500
#: Certificates count from a little earlier on: clocks of machines differ.
BACKDATED: Final = datetime.timedelta(minutes=5)
#: A certificate is renewed when less than this part of its life is left.
RENEWED_AT_PART: Final = 1 / 3
NAME_CHARACTERS_MAX: Final = 64


class Pair(msgspec.Struct, frozen=True):
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a certificate says, for people."""

    subject: str
    identities: tuple[str, ...]
    addresses: tuple[str, ...]
    not_before: datetime.datetime
    not_after: datetime.datetime
    is_authority: bool

    @property
    def days_left(self) -> float:
        """Until it expires; below 0 afterwards."""
        return (self.not_after - _now()).total_seconds() / 86_400


def make_authority(cluster: str, *, days: int = AUTHORITY_DAYS) -> Pair:
    """A new authority for the grid `cluster`.

    :raises SettingsError: an argument is out of range
    """
    _check(days, cluster)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _common_name(f"actorgrid {cluster} authority"))])
    builder = (
        _begun(name, name, days, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Pair(_pem(builder.sign(key, hashes.SHA256())), _pem_key(key))


def issue(authority: Pair, cluster: str, roles: Sequence[str], name: str, *, addresses: Iterable[str] = (), days: int = LEAF_DAYS) -> Pair:
    """A certificate of `authority` with a new key.

    :param roles: one or more of `credentials.ROLES`; only hosts get a certificate that a server may show
    :param addresses: names and IP addresses by which tools such as curl reach a host
    :raises SettingsError: an argument is out of range, or the authority is not one
    """
    _check(days, cluster, name)
    parent, parent_key = _read(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri_of(cluster, role, name)) for role in roles]
    for address in dict.fromkeys(addresses):
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            alternatives.append(x509.DNSName(address))
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if ROLE_HOST in roles:
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _common_name(f"{'+'.join(roles)} {name}"))])
    builder = (
        _begun(subject, parent.subject, days, key.public_key(), not_after=parent.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(parent.public_key()), critical=False)  # type: ignore[arg-type]
    )
    return Pair(_pem(builder.sign(parent_key, hashes.SHA256())), _pem_key(key))


def renew(authority: Pair, old: bytes, *, days: int | None = None) -> Pair:
    """A certificate that says the same as `old`, with a new key.

    :param days: None: as many as `old` had
    :raises SettingsError: `old` is no certificate of a grid
    """
    certificate = _parse(old)
    seen = look(old)
    identities = [found for uri in seen.identities if (found := parse_uri(uri)) is not None]
    if not identities or len(identities) < len(seen.identities):
        raise SettingsError("a certificate without the identity of a grid cannot be renewed")
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    cluster, _, name = identities[0]
    roles = [role for _, role, _ in identities]
    return issue(authority, cluster, roles, name, addresses=seen.addresses, days=days or max(1, round(life.total_seconds() / 86_400)))


def is_due(certificate: bytes, authority: bytes) -> bool:
    """Whether a certificate is to be renewed: little of its life is left, or it is of another authority."""
    own = _parse(certificate)
    life = own.not_valid_after_utc - own.not_valid_before_utc
    if own.not_valid_after_utc - _now() < life * RENEWED_AT_PART:
        return True
    return not any(_has_issued(parent, own) for parent in _parse_all(authority))


def _has_issued(parent: x509.Certificate, own: x509.Certificate) -> bool:
    try:
        own.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def look(certificate: bytes) -> Seen:
    """What the first certificate of a PEM file says.

    :raises SettingsError: it is none
    """
    parsed = _parse(certificate)
    identities: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    is_authority = False
    for extension in parsed.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            identities = tuple(extension.value.get_values_for_type(x509.UniformResourceIdentifier))
            addresses = (
                *extension.value.get_values_for_type(x509.DNSName),
                *(str(each) for each in extension.value.get_values_for_type(x509.IPAddress)),
            )
        elif isinstance(extension.value, x509.BasicConstraints):
            is_authority = extension.value.ca
    return Seen(
        subject=parsed.subject.rfc4514_string(),
        identities=identities,
        addresses=addresses,
        not_before=parsed.not_valid_before_utc,
        not_after=parsed.not_valid_after_utc,
        is_authority=is_authority,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ambient.wall_clock_ns() / 1e9, datetime.UTC)


def _check(days: int, *names: str) -> None:
    problems = [] if 1 <= days <= DAYS_MAX else [f"days: {days} is outside the allowed range 1..{DAYS_MAX}"]
    problems += [f"a name of 1..{NAME_CHARACTERS_MAX} characters is wanted, got {name!r:.80}" for name in names if not _is_name(name)]
    if problems:
        raise SettingsError(*problems)


def _is_name(name: str) -> bool:
    return 1 <= len(name) <= NAME_CHARACTERS_MAX and name.isprintable() and name.isascii()


def _common_name(text: str) -> str:
    return text[:NAME_CHARACTERS_MAX]  # the standard allows no more


def _begun(
    subject: x509.Name, issuer: x509.Name, days: int, key: ec.EllipticCurvePublicKey, *, not_after: datetime.datetime | None = None
) -> x509.CertificateBuilder:
    now = _now()
    ends = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(ends, not_after) if not_after is not None else ends)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _parse(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise SettingsError(f"this is no certificate in PEM: {error}") from None


def _parse_all(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise SettingsError(f"these are no certificates in PEM: {error}") from None


def _read(authority: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        key = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"the authority's key cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError("the authority's key is not of an elliptic curve, as those that `actorgrid certs make` makes are")
    # While an authority is changed, the file has the old and the new one, in any order.
    own = [each for each in _parse_all(authority.certificate) if each.public_key() == key.public_key()]
    if not own:
        raise SettingsError("none of the authority's certificates is of the authority's key")
    certificate = own[0]
    if not look(_pem(certificate)).is_authority:
        raise SettingsError("the certificate given as the authority's may not sign others")
    return certificate, key
