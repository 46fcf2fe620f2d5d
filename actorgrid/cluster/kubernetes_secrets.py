"""The Secrets of a grid on Kubernetes: made once, renewed in time, by a Job and a CronJob of the chart.

===================  ===================================================  =============================================
Secret               contents                                             who reads it
===================  ===================================================  =============================================
``NAME-ca``          ``ca.crt``, ``ca.key``                               nobody but this
``NAME-host``        ``ca.crt``, ``tls.crt``, ``tls.key``                 nodes
``NAME-tokens``      ``tokens.json``: digests and roles                   nodes
``NAME-ROLE``        ``ca.crt``, ``token``; caller, observer, operator    clients
``NAME-ray``         ``token``                                            nodes and Ray's head
===================  ===================================================  =============================================

Rights: ``secrets`` (core group): ``get`` and ``update`` of these names; ``create`` unless they are only to be renewed.
"""

from __future__ import annotations

import base64
import logging
import secrets
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from actorgrid.cluster import certificates, credential_files
from actorgrid.cluster.certificates import Pair
from actorgrid.credentials import ANY_NAME, CLIENT_ROLES, ROLE_HOST, TokenFile
from actorgrid.errors import ActorGridError, HostUnavailableError, SettingsError

log = logging.getLogger(__name__)

CALL_TIMEOUT_S: Final = 15.0
#: Two Jobs at once: the later one reads again what the other wrote.
ATTEMPTS: Final = 3
RAY_TOKEN_BYTES: Final = 32

Data = dict[str, bytes]


class SecretStore(Protocol):
    """Where Secrets are."""

    def read(self, name: str) -> tuple[Data, str] | None:
        """The contents and their version; None if there is no such Secret."""

    def create(self, name: str, data: Data) -> bool:
        """Whether there was none before."""

    def update(self, name: str, data: Data, version: str) -> bool:
        """Whether it still had that version."""


def settle(store: SecretStore, name: str, cluster: str, *, addresses: Sequence[str], days: int, only_renew: bool = False) -> dict[str, str]:
    """Make what is missing and renew what is due; safe to repeat, also by several at a time.

    :param name: of the release; the Secrets begin with it
    :param only_renew: a Secret that is missing is an error
    :returns: by Secret: ``made``, ``renewed`` or ``kept``
    :raises SettingsError: a Secret does not have its form, or is missing
    """
    done: dict[str, str] = {}

    def of(suffix: str, make: Any, is_due: Any) -> Data:
        full = f"{name}-{suffix}"
        for _ in range(ATTEMPTS):
            found = store.read(full)
            if found is None:
                if only_renew:
                    raise SettingsError(f"there is no Secret {full}; `actorgrid certs secrets` without --only-renew makes it")
                data: Data = make(None)
                if store.create(full, data):
                    done[full] = "made"
                    return data
            elif not is_due(found[0]):
                done[full] = "kept"
                return found[0]
            else:
                data = make(found[0])
                if store.update(full, data, found[1]):
                    done[full] = "renewed"
                    return data
        raise HostUnavailableError(f"Secret {full} is being changed by somebody else all the time")

    authority_data = of("ca", lambda _: _authority_data(cluster), lambda data: False)
    authority = Pair(_entry(authority_data, f"{name}-ca", "ca.crt"), _entry(authority_data, f"{name}-ca", "ca.key"))

    def make_host(old: Data | None) -> Data:
        pair = certificates.issue(authority, cluster, (ROLE_HOST,), ANY_NAME, addresses=addresses, days=days)
        return {"ca.crt": authority.certificate, "tls.crt": pair.certificate, "tls.key": pair.key}

    def host_is_due(data: Data) -> bool:
        certificate = _entry(data, f"{name}-host", "tls.crt")
        missing = set(addresses) - set(certificates.look(certificate).addresses)
        return bool(missing) or certificates.is_due(certificate, authority.certificate)

    of("host", make_host, host_is_due)
    of("ray", lambda _: {"token": secrets.token_hex(RAY_TOKEN_BYTES).encode()}, lambda data: not data.get("token"))
    # The clients' tokens first: a digest whose token nobody has is of no use, a token that hosts do not know yet is there a moment later.
    tokens: dict[str, bytes] = {}
    for role in CLIENT_ROLES:
        data = of(role, lambda old: _client_data(authority, old), lambda data: data != _client_data(authority, data))
        tokens[role] = data["token"]
    of(
        "tokens",
        lambda old: {credential_files.TOKENS: _with_tokens(old, tokens)},
        lambda data: _with_tokens(data, tokens) != data.get(credential_files.TOKENS),
    )
    return done


def _authority_data(cluster: str) -> Data:
    pair = certificates.make_authority(cluster)
    return {"ca.crt": pair.certificate, "ca.key": pair.key}


def _client_data(authority: Pair, old: Data | None) -> Data:
    """What a client mounts; the token is kept, the authority's certificate is the one that counts now."""
    token = (old or {}).get("token") or _new_token().encode()
    return {**(old or {}), "ca.crt": authority.certificate, "token": token}


def _new_token() -> str:
    token, _ = credential_files.new_token("token", (CLIENT_ROLES[0],), None)
    return token


def _with_tokens(old: Data | None, tokens: dict[str, bytes]) -> bytes:
    """The file of tokens with those of the Secrets in it; what people have added stays."""
    known = TokenFile()
    if old is not None and old.get(credential_files.TOKENS):
        try:
            known = msgspec.json.decode(old[credential_files.TOKENS], type=TokenFile)
        except msgspec.MsgspecError as error:
            raise SettingsError(f"{credential_files.TOKENS} of the Secret is no file of tokens: {error}") from None
    own = tuple(credential_files.record_of(f"secret-{role}", credential_files.FIRST[role], token) for role, token in tokens.items())
    names = {record.name for record in own}
    others = tuple(record for record in known.tokens if record.name not in names)
    return credential_files.encode_tokens(msgspec.structs.replace(known, tokens=(*own, *others)))


def _entry(data: Data, secret: str, key: str) -> bytes:
    value = data.get(key)
    if not value:
        raise SettingsError(f"Secret {secret} has no entry {key}")
    return value


class KubernetesSecrets:
    """Secrets of one namespace, by the Kubernetes API.

    :param labels: of Secrets that are made
    """

    def __init__(self, namespace: str, labels: dict[str, str]) -> None:
        import kubernetes

        try:
            kubernetes.config.load_incluster_config()
        except kubernetes.config.ConfigException:
            try:
                kubernetes.config.load_kube_config()
            except kubernetes.config.ConfigException as error:
                raise SettingsError(f"there is no Kubernetes to be reached from here: {error}") from None
        self._namespace = namespace
        self._labels = labels
        self._api = kubernetes.client.CoreV1Api()
        self._errors = kubernetes.client.ApiException

    def read(self, name: str) -> tuple[Data, str] | None:
        """See `SecretStore`."""
        found = self._call(404, self._api.read_namespaced_secret, name, self._namespace)
        if found is None:
            return None
        return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}, found.metadata.resource_version

    def create(self, name: str, data: Data) -> bool:
        """See `SecretStore`."""
        body = {"metadata": {"name": name, "labels": self._labels}, "type": "Opaque", "data": _encoded(data)}
        return self._call(409, self._api.create_namespaced_secret, self._namespace, body) is not None

    def update(self, name: str, data: Data, version: str) -> bool:
        """See `SecretStore`."""
        body = {"metadata": {"name": name, "labels": self._labels, "resourceVersion": version}, "data": _encoded(data)}
        return self._call(409, self._api.replace_namespaced_secret, name, self._namespace, body) is not None

    def _call(self, allowed: int, method: Any, *arguments: Any) -> Any:
        """The answer; None for the status that is no error here."""
        try:
            return method(*arguments, _request_timeout=CALL_TIMEOUT_S)
        except self._errors as error:
            if error.status == allowed:
                return None
            raise ActorGridError(f"Kubernetes refused: {error.status} {error.reason}: {error.body}") from None
        except OSError as error:
            raise HostUnavailableError(f"Kubernetes does not answer: {error}") from None
        except Exception as error:  # noqa: BLE001  # of urllib3, which the client lets through
            raise HostUnavailableError(f"Kubernetes does not answer: {type(error).__name__}: {error}") from None


def _encoded(data: Data) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in data.items()}
