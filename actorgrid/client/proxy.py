"""Proxies: light stand-ins for actors, with one function for each remote method.

A class is generated once for each actor type and kind of client. Making a proxy does no I/O and costs about a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from actorgrid.actor.definition import ActorType
from actorgrid.actor.methods import Method
from actorgrid.client.lane import Lane
from actorgrid.ids import show_address

#: Makes the function that a proxy class has for a remote method.
Binder = Callable[[Method], Callable[..., Any]]


class Proxy:
    """Base of the generated classes. Two proxies are equal if they stand for the same actor through the same connection."""

    __slots__ = ("_address", "_client", "_lane")

    _method_names: ClassVar[str] = ""

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address
        self._lane: Lane | None = None

    def __getattr__(self, name: str) -> NoReturn:
        # Reached only for names that the class does not have.
        actor_type = self._address.partition("\0")[0]
        raise AttributeError(
            f"{actor_type} has no remote method {name!r}; it has: {self._method_names or 'none'} (fields are read through methods)",
            name=name,
            obj=self,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Proxy):
            return NotImplemented
        return self._address == other._address and self._client.origin is other._client.origin

    def __hash__(self) -> int:
        return hash(self._address)

    def __repr__(self) -> str:
        return f"<{show_address(self._address)} on {self._client.address}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a proxy belongs to its client's connection and cannot be pickled or copied; send the actor's id instead")


def make_proxy_class(actor_type: ActorType, bind: Binder) -> type[Proxy]:
    """A proxy class for `actor_type`.

    :raises SettingsError: the class is not fit to be an actor
    """
    methods = actor_type.methods
    namespace: dict[str, Any] = {"__slots__": (), "__module__": actor_type.cls.__module__, "__doc__": f"Calls {actor_type.name} actors.\n"}
    for name, method in methods.items():
        function = bind(method)
        function.__name__, function.__qualname__ = name, f"{actor_type.cls.__qualname__}.{name}"
        function.__doc__ = method.function.__doc__
        namespace[name] = function
    namespace["_method_names"] = ", ".join(sorted(methods))
    return type(actor_type.cls.__name__, (Proxy,), namespace)
