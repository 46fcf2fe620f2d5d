"""A remote method: how its arguments and its result are checked and turned into bytes, on both ends of the wire.

A caller encodes positional arguments as one MessagePack array, the host decodes that array with a decoder built once from the
method's annotations, so that a wrong argument is found before the turn runs. Defaults are filled by Python itself: an array
may leave out trailing arguments that have one. Keyword arguments are bound to positions at the caller.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec
from xxhash import xxh3_64_intdigest

from actorgrid.actor.types import find_unstorable, holds_sets
from actorgrid.errors import InvalidArgumentError

_encode = msgspec.msgpack.Encoder().encode
_encode_sorted = msgspec.msgpack.Encoder(order="deterministic").encode
_SCALARS: Final = frozenset({int, str, bool, float, bytes, type(None)})
_ARGUMENT_PATH = re.compile(r" - at `\$\[(\d+)\](.*)`$")

#: Which replicas may answer a read.
Consistency = Literal["primary", "any"]
CONSISTENCIES: Final[tuple[Consistency, ...]] = ("primary", "any")


class Method:
    """One remote method of an actor type; with ``bound=False`` a plain function, whose first parameter is no ``self``.

    :ivar qualified_name: ``Type.method``, for messages
    :ivar hash64: of the qualified name; part of the digest by which a request is known again
    :ivar function: the coroutine function, called with the instance and the decoded arguments
    :ivar read: it may change nothing and is not logged
    :ivar reentrant: it may run while its actor waits for the chain of calls that made it
    :ivar consistency: for a read, ``"any"`` if a secondary may answer it too; otherwise ``"primary"``
    """

    __slots__ = (
        "_decoders",
        "_holds_sets",
        "_keyword_only",
        "_parameter_types",
        "_required",
        "_result_decode",
        "_result_scalar",
        "_result_type",
        "_results_decode",
        "_signature",
        "consistency",
        "decode_full",
        "function",
        "hash64",
        "name",
        "parameters",
        "qualified_name",
        "read",
        "reentrant",
        "result_is_plain",
    )

    def __init__(
        self,
        qualified_name: str,
        function: Callable[..., Any],
        hints: Mapping[str, Any],
        *,
        read: bool = False,
        reentrant: bool = False,
        consistency: Consistency = "primary",
        bound: bool = True,
    ) -> None:
        self.qualified_name = qualified_name
        self.name = qualified_name.rpartition(".")[2]
        self.hash64 = xxh3_64_intdigest(qualified_name.encode())
        self.read = read
        self.reentrant = reentrant
        self.consistency = consistency
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[bound:]
        self._signature = signature.replace(parameters=parameters)
        self.parameters = tuple(p.name for p in parameters)
        self._parameter_types = tuple(hints.get(p.name, Any) for p in parameters)
        self._holds_sets = any(find_unstorable(each) is None and holds_sets(each) for each in self._parameter_types)
        # One after the last that has no default: keyword-only parameters may come in any order.
        self._required = max((position for position, p in enumerate(parameters, 1) if p.default is p.empty), default=0)
        self._keyword_only = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        self.function = _by_position(function, len(parameters) - len(self._keyword_only), self._keyword_only)
        self._decoders: dict[int, Callable[[Any], tuple[Any, ...]]] = {}
        self.decode_full = self._decoder(len(parameters))
        result_type = hints.get("return", Any)
        self._result_scalar = result_type if result_type in _SCALARS else None
        self._result_type = result_type
        self._result_decode = msgspec.msgpack.Decoder(result_type).decode
        self._results_decode: Callable[[Any], list[Any]] | None = None
        self.result_is_plain = result_type is Any

    def _decoder(self, count: int) -> Callable[[Any], tuple[Any, ...]]:
        decoder = self._decoders.get(count)
        if decoder is None:
            decoder = msgspec.msgpack.Decoder(tuple[self._parameter_types[:count]]).decode  # type: ignore[misc]
            self._decoders[count] = decoder
        return decoder

    # -- the caller's side

    def encode_args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments as one MessagePack array.

        :raises InvalidArgumentError: they do not fit the signature, or hold what cannot be encoded
        """
        if kwargs or self._keyword_only or not self._required <= len(args) <= len(self.parameters):
            args = self._bind(args, kwargs)
        try:
            return _encode_in_order(args) if self._holds_sets else _encode(args)
        except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError) as error:
            raise self._unencodable(args, error) from None

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArgumentError(f"{self.qualified_name}{self._signature}: {error}") from None
        if kwargs or self._keyword_only:
            bound.apply_defaults()
        return tuple(bound.arguments.values())

    def _unencodable(self, args: tuple[Any, ...], error: Exception) -> InvalidArgumentError:
        for name, value in zip(self.parameters, args, strict=False):
            try:
                _encode(value)
            except Exception as why:  # noqa: BLE001 - whatever msgspec raises for this value is the finding
                return InvalidArgumentError(f"{self.qualified_name}: parameter {name}: {_why_unencodable(value, why)}")
        return InvalidArgumentError(f"{self.qualified_name}: {error}")

    def decode_result(self, raw: Any) -> Any:
        """The result, typed by the method's return annotation.

        :raises InvalidArgumentError: the caller's class disagrees with the host's about the type
        """
        try:
            return self._result_decode(raw)
        except msgspec.MsgspecError as error:
            raise InvalidArgumentError(f"{self.qualified_name}: the host's result does not fit this class's annotation: {error}") from None

    def decode_results(self, raw: Any) -> list[Any]:
        """An array of results, each typed by the method's return annotation. It raises anything; then decode them one by one."""
        decode = self._results_decode
        if decode is None:
            decode = self._results_decode = msgspec.msgpack.Decoder(list[self._result_type]).decode  # type: ignore[name-defined]
        return decode(raw)

    # -- the host's side

    def decode_args(self, raw: Any) -> tuple[Any, ...]:
        """The arguments as the method's annotations say.

        :raises InvalidArgumentError: naming method, parameter, expected and given type
        """
        try:
            return self.decode_full(raw)
        except Exception as error:  # noqa: BLE001 - the application's own types may raise anything when they are decoded
            return self._decode_partial(raw, error)

    def _decode_partial(self, raw: Any, error: Exception) -> tuple[Any, ...]:
        try:
            given = msgspec.msgpack.decode(raw, type=list[msgspec.Raw])
        except (msgspec.MsgspecError, RecursionError):
            raise InvalidArgumentError(f"{self.qualified_name}: the arguments are not a MessagePack array: {error}") from None
        if self._required <= len(given) < len(self.parameters):
            try:
                return self._decoder(len(given))(raw)
            except Exception as partial:  # noqa: BLE001 - as above
                error = partial
        elif len(given) != len(self.parameters):
            expected = str(self._required) if self._required == len(self.parameters) else f"{self._required} to {len(self.parameters)}"
            raise InvalidArgumentError(f"{self.qualified_name}{self._signature}: expected {expected} arguments, got {len(given)}")
        message = str(error) if isinstance(error, msgspec.MsgspecError) else f"{type(error).__name__}: {error!s:.500}"
        raise InvalidArgumentError(f"{self.qualified_name}: {self._name_parameter(message)}")

    def _name_parameter(self, message: str) -> str:
        found = _ARGUMENT_PATH.search(message)
        if found is None:
            return message
        what = message[: found.start()].replace("`", "")
        return f"parameter {self.parameters[int(found[1])]}{found[2]}: {what[0].lower()}{what[1:]}"

    def encode_result(self, value: Any) -> bytes:
        """The result as bytes, checked against the return annotation.

        :raises TypeError: naming the method, what was expected and what was given; it is the actor's mistake
        """
        try:
            encoded = _encode(value)
            if type(value) is not self._result_scalar and not self.result_is_plain:
                self._result_decode(encoded)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
            why = str(error).replace("`", "") if isinstance(error, msgspec.MsgspecError) else _why_unencodable(value, error)
            raise TypeError(f"result of {self.qualified_name}: {why[0].lower()}{why[1:]}") from None
        return encoded


def _encode_in_order(args: tuple[Any, ...]) -> bytes:
    """Encode arguments that hold sets, in an order that does not hang on the hash seed.

    A request is known by the bytes of its arguments, and a turn that is executed again in another process must repeat them.
    """
    try:
        return _encode_sorted(args)
    except TypeError:
        # msgspec sorts no mixed sets, and no dictionaries with other keys than strings.
        return _encode(_in_order(args))


def _in_order(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(map(_in_order, value), key=_encode)
    if isinstance(value, list | tuple):
        return [_in_order(item) for item in value]
    if isinstance(value, dict):
        return {key: _in_order(item) for key, item in value.items()}
    if isinstance(value, msgspec.Struct):
        return _struct_in_order(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _in_order(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _struct_in_order(value: msgspec.Struct) -> Any:
    """What msgspec makes of a Struct, with its sets in order."""
    config = value.__struct_config__
    parts = [_in_order(getattr(value, name)) for name in value.__struct_fields__]
    if config.array_like:
        return parts if config.tag is None else [config.tag, *parts]
    named = dict(zip(value.__struct_encode_fields__, parts, strict=True))
    return named if config.tag is None else {config.tag_field: config.tag, **named}


def _why_unencodable(value: Any, error: Exception) -> str:
    if isinstance(error, OverflowError):
        return f"integers must fit in 64 bits, got {value!r:.60}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"a {type(value).__name__} cannot be stored or sent ({error})"


def _by_position(function: Callable[..., Any], positional: int, keyword_only: tuple[str, ...]) -> Callable[..., Any]:
    """`function` itself, or a shim that passes its keyword-only parameters by name: on the wire every argument has a position."""
    if not keyword_only:
        return function

    def call(instance: Any, *args: Any) -> Any:
        return function(instance, *args[:positional], **dict(zip(keyword_only, args[positional:], strict=False)))

    return call


def signature_problems(qualified_name: str, function: Callable[..., Any], hints: Mapping[str, Any], *, bound: bool = True) -> list[str]:
    """Why `function` cannot be a remote method; empty if it can."""
    problems = []
    parameters = list(inspect.signature(function).parameters.values())
    if (bound and not parameters) or (
        bound and parameters[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ):
        return [f"{qualified_name}: a remote method takes self first"]
    for parameter in parameters[bound:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            problems.append(f"{qualified_name}: {parameter} cannot be checked by annotation; name the parameters, or take a list or dict")
        elif (unstorable := find_unstorable(hints.get(parameter.name, Any))) is not None:
            problems.append(f"{qualified_name}: parameter {parameter.name}: {unstorable}")
    if (unstorable := find_unstorable(hints.get("return", Any))) is not None:
        problems.append(f"{qualified_name}: result: {unstorable}")
    return problems
