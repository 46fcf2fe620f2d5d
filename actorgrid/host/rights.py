"""Who may do what: one table, for the wire and for HTTP alike.

A role says what a credential is for. Roles do not contain each other, except that a host may do everything: who is to look and to call
gets a credential with both roles.

=========  =============================================================
caller     calls actors, and sees the partition map
observer   asks how the grid is, and what would happen
operator   what observers may, and changes it
host       is a part of the grid
=========  =============================================================
"""

from __future__ import annotations

from typing import Any, Final

from actorgrid.credentials import ROLE_CALLER, ROLE_HOST, ROLE_OBSERVER, ROLE_OPERATOR, Identity
from actorgrid.errors import AccessDeniedError

_LOOK: Final = frozenset({ROLE_OBSERVER, ROLE_OPERATOR, ROLE_HOST})
_CHANGE: Final = frozenset({ROLE_OPERATOR, ROLE_HOST})
_BE_OF_IT: Final = frozenset({ROLE_HOST})

#: Verb -> who may use it. A verb that is not here is nobody's but a host's.
VERBS: Final = {
    "status": _LOOK,
    "digests": _CHANGE,  # reads all state of a host
    "nodes": _LOOK,
    "partitions": _LOOK,
    "drain_status": _LOOK,
    "explain": _LOOK,
    "moves": _LOOK,
    "init": _CHANGE,
    "drain": _CHANGE,
    "undrain": _CHANGE,
    "rebalance": _CHANGE,
    "freeze": _CHANGE,
    "unfreeze": _CHANGE,
    "constrain": _CHANGE,
    "recover": _CHANGE,
    "join": _BE_OF_IT,
    "process_died": _BE_OF_IT,
    "bootstrap_state": _BE_OF_IT,
    "bootstrap_create": _BE_OF_IT,
    "bootstrap_begin": _BE_OF_IT,
}
CALLERS: Final = frozenset({ROLE_CALLER, ROLE_HOST})
ADMINISTRATORS: Final = _LOOK
#: Argument that makes a verb a mere question.
_ONLY_ASKS: Final = {"drain": "estimate", "rebalance": "dry_run"}


def check(identity: Identity, verb: str, arguments: dict[str, Any]) -> None:
    """Make sure that `identity` may use `verb`.

    :raises AccessDeniedError: it may not; the message says who may
    """
    allowed = VERBS.get(verb, _BE_OF_IT)
    if verb in _ONLY_ASKS and arguments.get(_ONLY_ASKS[verb]) is True:
        allowed = _LOOK
    if not identity.roles & allowed:
        raise AccessDeniedError(f"{verb} is for {' or '.join(sorted(allowed))}, and {identity} is not")
    if "by" in arguments and ROLE_HOST not in identity.roles:
        raise AccessDeniedError(f"{verb}: only hosts say on whose behalf they ask (by), and {identity} is not one")


def check_caller(identity: Identity) -> None:
    """Make sure that `identity` may call actors.

    :raises AccessDeniedError: it may not
    """
    if not identity.roles & CALLERS:
        raise AccessDeniedError(f"calling actors is for {ROLE_CALLER}, and {identity} is not")
