"""Which actor types a host serves: loaded from modules by name, each problem named, all at once."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Sequence

from actorgrid.actor.definition import ActorType, actor_type_of, is_actor
from actorgrid.errors import SettingsError, UnknownActorTypeError

_MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class ActorRegistry:
    """Actor types by name."""

    def __init__(self, types: Iterable[ActorType] = ()) -> None:
        self._by_name: dict[str, ActorType] = {}
        problems = []
        for actor_type in types:
            known = self._by_name.get(actor_type.name)
            if known is not None and known.cls is not actor_type.cls:
                problems.append(
                    f"two actor classes are named {actor_type.name!r}: {_where(known)} and {_where(actor_type)}; use @grid.actor(name=...)"
                )
            self._by_name[actor_type.name] = actor_type
        for actor_type in self._by_name.values():
            try:
                actor_type.resolve()
            except SettingsError as error:
                problems += [f"{problem} ({_where(actor_type)})" for problem in error.problems]
        if problems:
            raise SettingsError(*problems)

    def get(self, name: str) -> ActorType:
        """The type called `name`.

        :raises UnknownActorTypeError: listing those that are loaded
        """
        found = self._by_name.get(name)
        if found is None:
            raise UnknownActorTypeError(
                f"no actor type {name!r:.100} is loaded here; loaded are: {', '.join(sorted(self._by_name)) or 'none'}"
            )
        return found

    @property
    def names(self) -> list[str]:
        return sorted(self._by_name)

    @classmethod
    def load(cls, modules: Sequence[str], path: Sequence[str] = ()) -> ActorRegistry:
        """Import `modules` and take every actor class that each defines or imports.

        ``module:Class`` takes just that class.

        :param path: directories put in front of ``sys.path`` first
        :raises SettingsError: a module is missing or raises, a class is not an actor, two classes share a name, a field's type
            cannot be stored, ... each named, all at once
        """
        for directory in reversed(path):
            if directory not in sys.path:
                sys.path.insert(0, directory)
        importlib.invalidate_caches()
        types: list[ActorType] = []
        problems: list[str] = []
        for name in modules:
            found, why = _load_one(name)
            types += found
            problems += why
        if not problems and not types:
            problems.append("no actor module is given: name at least one (--app MODULE)")
        try:
            registry = cls(types)
        except SettingsError as error:
            problems += error.problems
        if problems:
            raise SettingsError(*problems)
        return registry


def _where(actor_type: ActorType) -> str:
    return f"{actor_type.cls.__module__}.{actor_type.cls.__qualname__}"


def _load_one(name: str) -> tuple[list[ActorType], list[str]]:
    module_name, _, class_name = name.partition(":")
    if not _MODULE_NAME.fullmatch(module_name):
        return [], [f"actor module {name!r}: expected a dotted module name such as shop.accounts, or module:Class"]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            return [], [f"actor module {module_name!r} was not found; looked in: {', '.join(sys.path[:4])}, ..."]
        return [], [f"actor module {module_name!r} imports {missing!r}, which was not found"]
    except SettingsError as error:
        return [], [f"actor module {module_name!r}: {problem}" for problem in error.problems]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - an application's module may raise anything at import, SystemExit too
        return [], [f"actor module {module_name!r} raised at import: {type(error).__name__}: {error}"]
    if class_name:
        candidate = getattr(module, class_name, None)
        if not is_actor(candidate):
            what = "does not exist" if candidate is None else "is not an actor: decorate it with @grid.actor"
            return [], [f"{name!r}: {class_name} {what}"]
        return [actor_type_of(candidate)], []
    found = [actor_type_of(value) for value in vars(module).values() if is_actor(value)]
    if not found:
        return [], [f"actor module {module_name!r} has no actor: no class in it is decorated with @grid.actor"]
    return list({id(t): t for t in found}.values()), []
