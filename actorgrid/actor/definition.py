"""What users write: ``@grid.actor`` on a plain class, and what the grid reads out of it.

Decorating records only the intent; annotations are resolved when the type is first used (`ActorType.resolve`), so that modules
may refer to each other and importing one starts nothing. Everything wrong with a class is reported at once, as `SettingsError`.

Remote methods are the public ``async def`` ones. Plain ``def`` methods are helpers that only the actor itself can call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import types
import typing
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Concatenate, Final, ParamSpec, TypeVar, overload

from actorgrid.actor.fields import Field, StateShape, field_problems
from actorgrid.actor.methods import CONSISTENCIES, Consistency, Method, signature_problems
from actorgrid.errors import InvalidArgumentError, SettingsError

T = TypeVar("T")
S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=Callable[..., Coroutine[Any, Any, Any]])

_TYPE_ATTRIBUTE: Final = "__actorgrid_type__"
_OPTIONS_ATTRIBUTE: Final = "__actorgrid_options__"
_HOOKS: Final = ("on_activate", "on_deactivate")


def _options_of(function: Any) -> dict[str, Any]:
    return getattr(function, _OPTIONS_ATTRIBUTE, None) or {}


def _with_option(function: Any, **options: Any) -> Any:
    setattr(function, _OPTIONS_ATTRIBUTE, {**_options_of(function), **options})
    return function


@overload
def read(method: C, /) -> C: ...
@overload
def read(*, consistency: Consistency = ...) -> Callable[[C], C]: ...
def read(method: C | None = None, /, *, consistency: Consistency = "primary") -> C | Callable[[C], C]:
    """Mark a method as one that changes nothing: it is not logged, and a retry may run it again.

    :param consistency: ``"primary"``: the answer has every change that was acknowledged before the call was made. ``"any"``: any replica
        answers from what it has applied, a state of the actor that was committed and is perhaps not the newest; see docs/actors.md.
    :raises SettingsError: `consistency` is neither
    """
    if consistency not in CONSISTENCIES:
        raise SettingsError(f"@grid.read(consistency={consistency!r:.80}): expected 'primary' or 'any'")
    if method is None:
        return lambda decorated: typing.cast(C, _with_option(decorated, read=True, consistency=consistency))
    if not callable(method):
        raise SettingsError(f"@grid.read({method!r:.80}): expected a method, or consistency='primary' or 'any'")
    return typing.cast(C, _with_option(method, read=True, consistency=consistency))


def reentrant(method: C) -> C:
    """Let a method run while its actor waits for the very chain of calls that made the call (A -> B -> A).

    It commits by itself, before the waiting turn does. Changing a field that the waiting turn has changed too is an error.
    """
    return typing.cast(C, _with_option(method, reentrant=True))


def blocking(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Run a plain ``def`` method in a thread, for code that blocks. The actor is held for that time, the host is not.

    Callers await it like any other method.
    """
    if inspect.iscoroutinefunction(method):
        raise SettingsError(f"{method.__qualname__}: @grid.blocking is for plain def methods; an async def method runs on the loop")

    async def run_in_thread(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    functools.update_wrapper(run_in_thread, method)
    _with_option(run_in_thread, blocking=True)
    return run_in_thread


class ActorType:
    """An actor class with everything the grid derives from it.

    :ivar name: the type's name in addresses; the class's own name unless ``@grid.actor(name=...)`` says otherwise
    :ivar cls: the class
    """

    _lock: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self, cls: type, name: str) -> None:
        self.cls = cls
        self.name = name
        self._methods: dict[str, Method] | None = None
        self._shape: StateShape | None = None
        #: ``on_activate`` and ``on_deactivate``, where the class has them.
        self.hooks = {
            hook: Method(f"{name}.{hook}", getattr(cls, hook), {}, read=False, reentrant=False) for hook in _HOOKS if _defines(cls, hook)
        }

    @property
    def methods(self) -> dict[str, Method]:
        """Remote methods by name.

        :raises SettingsError: the class is not fit to be an actor
        """
        if self._methods is None:
            self.resolve()
        assert self._methods is not None
        return self._methods

    @property
    def shape(self) -> StateShape:
        """The persisted fields.

        :raises SettingsError: the class is not fit to be an actor
        """
        if self._shape is None:
            self.resolve()
        assert self._shape is not None
        return self._shape

    def resolve(self) -> None:
        """Read annotations and build codecs; costs milliseconds, once.

        :raises SettingsError: with every problem of the class
        """
        with self._lock:
            if self._methods is not None:
                return
            problems = self._class_problems()
            fields, found = _find_fields(self.cls)
            problems += found
            methods: dict[str, Method] = {}
            for name, function in _remote_functions(self.cls):
                qualified_name = f"{self.name}.{name}"
                try:
                    hints = typing.get_type_hints(inspect.unwrap(function))
                except Exception as error:  # noqa: BLE001 - an annotation is user code: any error is the finding
                    problems.append(f"{qualified_name}: its annotations cannot be resolved: {error}")
                    continue
                found = signature_problems(qualified_name, function, hints)
                problems += found
                if not found:
                    options = _options_of(function)
                    methods[name] = Method(
                        qualified_name,
                        function,
                        hints,
                        read=options.get("read", False),
                        reentrant=options.get("reentrant", False),
                        consistency=options.get("consistency", "primary"),
                    )
            if problems:
                raise SettingsError(*problems)
            self._shape = StateShape(self.name, self.cls, fields)
            self._methods = methods

    def _class_problems(self) -> list[str]:
        problems = []
        if self.cls.__init__ is not object.__init__:  # type: ignore[misc]
            problems.append(
                f"actor {self.name}: __init__ is not called by the grid; give fields defaults, and use on_activate for the rest"
            )
        problems += [
            f"actor {self.name}: {hook} must be async def"
            for hook in _HOOKS
            if _defines(self.cls, hook) and not inspect.iscoroutinefunction(getattr(self.cls, hook))
        ]
        problems += [
            f"actor {self.name}: {hook} takes self alone, not also {', '.join(method.parameters)}"
            for hook, method in self.hooks.items()
            if method.parameters
        ]
        if not self.cls.__dictoffset__:
            problems.append(f"actor {self.name}: with nothing but __slots__ it has no room for its fields; leave __slots__ away")
        for name in dir(self.cls):
            function = inspect.getattr_static(self.cls, name)
            if _options_of(function) and not inspect.iscoroutinefunction(function):
                problems.append(f"{self.name}.{name}: @grid.read and @grid.reentrant are for async def methods (or @grid.blocking ones)")
            if inspect.isasyncgenfunction(function) and not name.startswith("_"):
                problems.append(f"{self.name}.{name}: an async generator cannot be a remote method; return a list, or page through it")
        return problems

    def method(self, name: str) -> Method | None:
        return self.methods.get(name)

    def __repr__(self) -> str:
        return f"ActorType({self.name})"


def _defines(cls: type, name: str) -> bool:
    return getattr(cls, name, None) is not None


def _remote_functions(cls: type) -> list[tuple[str, types.FunctionType]]:
    return [
        (name, function)
        for name, function in inspect.getmembers_static(cls, inspect.iscoroutinefunction)
        if isinstance(function, types.FunctionType) and not name.startswith("_") and name not in _HOOKS
    ]


def _find_fields(cls: type) -> tuple[list[Field], list[str]]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception as error:  # noqa: BLE001 - an annotation is user code: any error is the finding
        return [], [f"actor {cls.__name__}: its field annotations cannot be resolved: {error}"]
    fields, problems = [], []
    for name, annotation in hints.items():
        if typing.get_origin(annotation) is ClassVar or annotation is ClassVar or name.startswith("__"):
            continue
        field = Field(name, annotation, getattr(cls, name, Field.MISSING), transient=name.startswith("_"))
        found = field_problems(cls.__name__, field)
        problems += found
        if not found:
            fields.append(field)
    return fields, problems


@overload
def actor(cls: type[T], /) -> type[T]: ...
@overload
def actor(*, name: str) -> Callable[[type[T]], type[T]]: ...
def actor(cls: type[T] | None = None, /, *, name: str | None = None) -> type[T] | Callable[[type[T]], type[T]]:
    """Make a plain class an actor type.

    :param name: the type's name in addresses and storage; default: the class's name. It must stay when the class is renamed,
        since state is found by it.
    :raises SettingsError: `cls` is no class, or `name` is no identifier
    """
    if cls is None:
        return lambda decorated: actor_type_for(decorated, name)
    return actor_type_for(cls, None)


def actor_type_for(cls: type[T], name: str | None) -> type[T]:
    """Attach an `ActorType` to `cls`."""
    if not isinstance(cls, type):
        raise SettingsError(f"@grid.actor is for classes, got {type(cls).__name__} {getattr(cls, '__qualname__', cls)!r}")
    type_name = name or cls.__name__
    if not type_name.isidentifier() or len(type_name) > 128:
        raise SettingsError(f"@grid.actor(name={type_name!r}): expected an identifier of at most 128 characters")
    for method_name, function in _remote_functions(cls):
        if method_name not in vars(cls) or hasattr(function, _TYPE_ATTRIBUTE):
            # An inherited function gets a copy, so that Type.method leads back to one type only.
            function = _copy(function)
            setattr(cls, method_name, function)
        setattr(function, _TYPE_ATTRIBUTE, cls)
    setattr(cls, _TYPE_ATTRIBUTE, ActorType(cls, type_name))
    return cls


def _copy(function: types.FunctionType) -> types.FunctionType:
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = function.__annotations__
    copy.__qualname__ = function.__qualname__
    copy.__dict__.update(function.__dict__)
    return copy


def actor_type_of(cls: Any) -> ActorType:
    """The `ActorType` of a decorated class.

    :raises InvalidArgumentError: `cls` is not decorated with ``@grid.actor``; a base class's decoration does not count
    """
    found = vars(cls).get(_TYPE_ATTRIBUTE) if isinstance(cls, type) else None
    if not isinstance(found, ActorType):
        raise InvalidArgumentError(f"{cls!r} is not an actor: decorate the class with @grid.actor")
    return found


def is_actor(cls: Any) -> bool:
    """Whether `cls` itself is decorated with ``@grid.actor``."""
    return isinstance(cls, type) and isinstance(vars(cls).get(_TYPE_ATTRIBUTE), ActorType)


def method_of(function: Any) -> tuple[ActorType, Method]:
    """Type and method behind ``Type.method``.

    :raises InvalidArgumentError: it is not a remote method of an actor class
    """
    owner = getattr(function, _TYPE_ATTRIBUTE, None)
    if owner is None or isinstance(owner, ActorType) or not isinstance(function, types.FunctionType):
        raise InvalidArgumentError(f"{function!r} is not a remote method: expected Type.method of a class decorated with @grid.actor")
    actor_type = actor_type_of(owner)
    return actor_type, actor_type.methods[function.__name__]
