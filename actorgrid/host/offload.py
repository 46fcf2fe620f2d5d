"""Work that leaves the host: a function by name, arguments and result as MessagePack. Nothing is pickled (I18).

`Offloader` is what the host needs; the cluster package implements it with Ray tasks. `ProcessOffloader` does it with a few processes
of this machine, for hosts that run without Ray.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import importlib
import multiprocessing
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from actorgrid.actor.methods import Method, signature_problems
from actorgrid.errors import ActorError, InvalidArgumentError


class Offloader(Protocol):
    """Runs `run_offloaded` somewhere else."""

    async def run(self, function: str, args: bytes, *, cpus: float, memory_bytes: int | None) -> bytes:
        """
        :param function: ``module:qualname``
        :param args: MessagePack array
        :param cpus: processors to reserve
        :param memory_bytes: memory to reserve, or None
        :return: the result as MessagePack
        :raises ActorError: the function raised
        """

    async def close(self) -> None:
        """End what it started."""


def name_of(function: Callable[..., Any]) -> str:
    """``module:qualname``, by which the other process finds it.

    :raises InvalidArgumentError: it cannot be found by name: a lambda, a closure, a method, or something of ``__main__``
    """
    if isinstance(function, types.FunctionType) and "<" not in function.__qualname__ and function.__module__ != "__main__":
        name = f"{function.__module__}:{function.__qualname__}"
        module = sys.modules.get(function.__module__)
        if module is not None and _resolve(module, function.__qualname__) is function:
            return name
    raise InvalidArgumentError(
        f"grid.offload: {function!r} cannot be sent by name; use a function at the top level of an importable module"
    )


def _resolve(root: Any, qualname: str) -> Any:
    return functools.reduce(lambda found, part: getattr(found, part, None), qualname.split("."), root)


@functools.lru_cache(maxsize=1024)
def codec_of(function: Callable[..., Any]) -> Method:
    """Arguments and result of `function`, as its annotations say.

    :raises InvalidArgumentError: an annotation cannot be encoded
    """
    name = f"{function.__module__}.{function.__qualname__}"
    hints = typing.get_type_hints(function)
    problems = signature_problems(name, function, hints, bound=False)
    if problems:
        raise InvalidArgumentError("; ".join(problems))
    return Method(name, function, hints, read=False, reentrant=False, bound=False)


def run_offloaded(function: str, args: bytes, app_path: Sequence[str] = ()) -> bytes:
    """The other side: find the function, decode, run, encode.

    :raises ActorError: it raised; with type, text and traceback
    """
    for directory in reversed(app_path):
        if directory not in sys.path:
            sys.path.insert(0, directory)
    module_name, _, qualname = function.partition(":")
    try:
        found = _resolve(importlib.import_module(module_name), qualname)
        codec = codec_of(found)
        return codec.encode_result(found(*codec.decode_args(args)))
    except Exception as error:  # noqa: BLE001 - whatever the function raises belongs to its caller
        kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        raise ActorError(
            f"offloaded {function} raised {kind}: {error}",
            remote_type=kind,
            remote_text=str(error),
            remote_traceback=traceback.format_exc(),
        ) from None


def _in_process(function: str, args: bytes, app_path: tuple[str, ...]) -> tuple[bytes, tuple[str, str, str, str] | None]:
    """`run_offloaded` with the error as plain data, so that what crosses the process border is bytes and strings only."""
    try:
        return run_offloaded(function, args, app_path), None
    except ActorError as error:
        return b"", (str(error.args[0]), error.remote_type, error.remote_text, error.remote_traceback)


class ProcessOffloader:
    """Offloads to processes of this machine, started when first needed. `cpus` and `memory_bytes` are not enforced here."""

    def __init__(self, app_path: Sequence[str] = (), processes_max: int | None = None) -> None:
        self._app_path = tuple(app_path)
        self._processes_max = processes_max
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    async def run(self, function: str, args: bytes, *, cpus: float, memory_bytes: int | None) -> bytes:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(self._processes_max, mp_context=context)
        pool = self._pool
        try:
            result, error = await asyncio.get_running_loop().run_in_executor(pool, _in_process, function, args, self._app_path)
        except concurrent.futures.BrokenExecutor as broken:
            if self._pool is pool:
                self._pool = None  # one dead process spoils its pool: the next call gets a new one
            raise ActorError(
                f"offloaded {function}: its process died: {broken}", remote_type="BrokenExecutor", remote_text=str(broken)
            ) from None
        if error is not None:
            raise ActorError(error[0], remote_type=error[1], remote_text=error[2], remote_traceback=error[3])
        return result

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
