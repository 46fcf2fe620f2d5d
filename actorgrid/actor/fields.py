"""Persisted fields: how an actor's state is laid out, loaded, compared after a turn, and put back when a turn raises.

Changes are found by encoding, not by watching: after a turn that may write, every field is encoded again and compared with the
bytes that were logged last. That sees every in-place change, however deep, through whatever alias (a list inside a dict inside a
dataclass), because nothing has to be told about it. It costs time in proportion to the size of plain fields; what is large belongs
into `grid.Map` and `grid.List`, which are kept entry by entry. See ``docs/decisions/0003-change-detection.md``.

Layout, as suffixes of the actor's storage key:

======================  =====================================================================================
``""``                  the *record*: a MessagePack map of all fields of immutable type, by name
``NAME``                a field of mutable type, encoded whole; or the header of a collection
``NAME \\0 KEY``         one entry of a collection
======================  =====================================================================================
"""

from __future__ import annotations

import copy
import dataclasses
import typing
from typing import Any, ClassVar, Final

import msgspec

from actorgrid.actor.collections import List, ListShape, Map, MapShape
from actorgrid.actor.types import ATOMS, find_misfit, find_unstorable, is_immutable
from actorgrid.actor.view import EntrySource, StateView

encode = msgspec.msgpack.Encoder().encode
_decode_raw = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
ENCODING_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)

RECORD_SUFFIX: Final = b""
#: Up to this many bytes of mutable fields are compared after each read turn too; above, the next write or the end of the activation does.
READ_CHECK_BYTES_MAX: Final = 4096

#: What one turn may change: its log entry has to fit into a frame, and must not hold up everyone else's.
TURN_BYTES_MAX: Final = 12 << 20

Change = tuple[bytes, bytes | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One annotated class attribute. A name with a leading underscore is transient: copied for each activation, never stored."""

    MISSING: ClassVar[object] = object()

    name: str
    annotation: Any
    default: Any
    transient: bool


def _collection_of(annotation: Any) -> type | None:
    origin = typing.get_origin(annotation) or annotation
    return origin if origin in (Map, List) else None


def _collection_shape(field: Field) -> MapShape[Any, Any] | ListShape[Any]:
    arguments = typing.get_args(field.annotation)
    if _collection_of(field.annotation) is Map:
        key_type, value_type = arguments if arguments else (str, Any)
        return MapShape(field.name, key_type, value_type)
    return ListShape(field.name, arguments[0] if arguments else Any)


def field_problems(owner: str, field: Field) -> list[str]:
    """Why `field` cannot be a field of actor `owner`; empty if it can."""
    where = f"actor {owner}: field {field.name}"
    if field.transient:
        return []
    if _collection_of(field.annotation) is not None:
        try:
            _collection_shape(field)
        except (TypeError, ValueError) as error:
            return [f"{where}: {error}"]
        if field.default is not Field.MISSING and not (isinstance(field.default, Map | List) and len(field.default) == 0):
            return [f"{where}: its default must be an empty grid.Map() or grid.List()"]
        return []
    unstorable = find_unstorable(field.annotation)
    if unstorable is not None:
        return [f"{where}: {unstorable}"]
    if field.default is Field.MISSING:
        return [f"{where}: it has no default; every persisted field needs one, since any actor id exists before its first call"]
    try:
        msgspec.msgpack.decode(encode(field.default), type=field.annotation)
    except (*ENCODING_ERRORS, msgspec.MsgspecError) as error:
        return [f"{where}: its default {field.default!r:.80} does not fit {field.annotation}: {error}"]
    return []


class StateShape:
    """The persisted fields of one actor type, with codecs built once."""

    def __init__(self, type_name: str, cls: type, fields: list[Field]) -> None:
        self.type_name = type_name
        self.cls = cls
        plain, containers, collections, transients = [], [], [], []
        for field in fields:
            if field.transient:
                if field.default is not Field.MISSING:
                    transients.append((field.name, field.default))
            elif _collection_of(field.annotation) is not None:
                collections.append((field.name, _collection_shape(field)))
            elif is_immutable(field.annotation):
                plain.append(field)
            else:
                decode = msgspec.msgpack.Decoder(field.annotation).decode
                containers.append((field.name, field.name.encode(), decode, encode(field.default)))
        self.plain_names = tuple(field.name for field in plain)
        self.containers = tuple(containers)
        self.collections = tuple(collections)
        self.transients = tuple(transients)
        self.only_plain = not containers and not collections and not transients
        #: When a `__dict__` has just this many entries it can be encoded as it is; -1 when it never can.
        self.exact_size = len(plain) if self.only_plain else -1
        self.declared = frozenset(field.name for field in fields)
        self.default_record = encode({field.name: field.default for field in plain})
        # Two views of the record: what is stored must have every field and no other; what is loaded may come from an older or newer class.
        stored = [(field.name, field.annotation) for field in plain]
        loaded = [(field.name, field.annotation, field.default) for field in plain]
        self.check_stored = msgspec.msgpack.Decoder(msgspec.defstruct(type_name, stored, forbid_unknown_fields=True)).decode
        self.load_record = msgspec.msgpack.Decoder(msgspec.defstruct(type_name, loaded)).decode


class ActorState:
    """The fields of one activation, and the bytes that were logged last.

    :ivar instance: the actor object
    :ivar values: its ``__dict__``
    :ivar view: overlay of its collections, if it has any
    """

    __slots__ = ("collections", "containers", "contested", "instance", "moving", "record", "shape", "unchecked", "values", "view")

    def __init__(self, shape: StateShape, source: EntrySource) -> None:
        self.shape = shape
        self.instance: Any = object.__new__(shape.cls)
        values: dict[str, Any] = self.instance.__dict__
        self.values = values
        stored = source.get(RECORD_SUFFIX)
        if stored is None:
            self.record = shape.default_record
        else:
            self.record = stored
        loaded = shape.load_record(self.record)
        for name in shape.plain_names:
            values[name] = getattr(loaded, name)
        if stored is not None:
            # A class that has gained or lost a field since gives other bytes: the record as it is now is what later turns compare with.
            self.record = self.encode_record()
        self.containers: list[bytes] = []
        #: A field that the running turn and a reentrant one that failed have both changed: nobody knows its value.
        self.contested: str | None = None
        #: A read turn has run since the mutable fields, which are large, were compared.
        self.unchecked = False
        self.moving: list[int] = []
        for name, suffix, decode, default in shape.containers:
            encoded = source.get(suffix)
            if encoded is None and stored is not None and (inside := _decode_raw(stored).get(name)) is not None:
                # It was of an immutable type when it was stored, a tuple perhaps: it moves out of the record with the next change.
                encoded = bytes(inside)
                self.moving.append(len(self.containers))
            value = decode(default if encoded is None else encoded)
            values[name] = value
            self.containers.append(encode(value))
        self.view: StateView | None = None
        self.collections: tuple[Map[Any, Any] | List[Any], ...] = ()
        if shape.collections:
            self.view = StateView(source)
            self.collections = tuple(collection.bind(self.view) for _, collection in shape.collections)
            for (name, _), collection in zip(shape.collections, self.collections, strict=True):
                values[name] = collection
        for name, initial in shape.transients:
            values[name] = copy.deepcopy(initial)

    @property
    def encoded_bytes(self) -> int:
        """Size of the plain fields, encoded."""
        return len(self.record) + sum(map(len, self.containers))

    def encode_record(self) -> bytes:
        values = self.values
        if len(values) == self.shape.exact_size:
            return encode(values)
        return encode({name: values[name] for name in self.shape.plain_names if name in values})

    # -- around a turn, for actors with collections

    def begin(self, applied_lsn: int, *, read: bool) -> None:
        """A turn begins: forget what the store has by now, and let collections be changed or not."""
        view = self.view
        assert view is not None
        view.settle(applied_lsn)
        view.writable = not read

    def end(self) -> None:
        """The turn is over, its changes were taken or undone: values handed out by collections are no longer watched."""
        assert self.view is not None
        self.view.writable = False
        for collection in self.collections:
            collection.forget()

    # -- after a turn that may write

    def changes(self) -> list[Change] | None:
        """What this turn changed, to be logged; None if nothing. Later turns compare with the state as it is now.

        :raises TypeError: a field does not fit its annotation, was deleted, or is not declared; nothing is taken, call `rollback`
        """
        shape = self.shape
        if self.contested is not None:
            raise TypeError(f"{shape.type_name}: field {self.contested} was changed by this turn and by a reentrant one that was undone")
        try:
            record = self.encode_record()
        except ENCODING_ERRORS as error:
            raise TypeError(self.find_unencodable(error)) from None
        if shape.only_plain:
            if len(self.values) != shape.exact_size:
                self.refuse_undeclared()
            if record == self.record:
                return None
            self.check_record(record)
            changes: list[Change] = [(RECORD_SUFFIX, record)]
            self.check_size(changes)
            self.record = record
            return changes
        return self._changes_of_all(record)

    def _changes_of_all(self, record: bytes) -> list[Change] | None:
        shape, values = self.shape, self.values
        self.refuse_undeclared()
        changes: list[Change] = []
        if record != self.record:
            self.check_record(record)
            changes.append((RECORD_SUFFIX, record))
        containers: list[tuple[int, bytes]] = []
        for index, (name, suffix, decode, _) in enumerate(shape.containers):
            try:
                encoded = encode(values[name])
                if encoded != self.containers[index] or index in self.moving:
                    check_comes_back(values[name], encoded, decode(encoded))
                    containers.append((index, encoded))
                    changes.append((suffix, encoded))
            except KeyError:
                raise TypeError(f"{shape.type_name}: field {name} was deleted") from None
            except (*ENCODING_ERRORS, msgspec.MsgspecError) as error:
                raise TypeError(f"{shape.type_name}: field {name}: {plain_words(error)}") from None
        view = self.view
        if view is not None:
            for collection in self.collections:
                collection.flush()
            changes += view.take_changes()
        self.check_size(changes)
        self.record = record
        self.moving.clear()
        for index, encoded in containers:
            self.containers[index] = encoded
        return changes or None

    def check_record(self, record: bytes) -> None:
        """Whether the fields of immutable type fit, and would be read back as they are.

        :raises TypeError: naming the field
        """
        try:
            decoded = self.shape.check_stored(record)
        except msgspec.MsgspecError as error:
            raise TypeError(f"{self.shape.type_name}: {self._explain(str(error))}") from None
        for name in self.shape.plain_names:
            value = self.values[name]
            if type(value) not in ATOMS or type(value) is not type(getattr(decoded, name)):
                misfit = find_misfit(value, getattr(decoded, name))
                if misfit is not None:
                    raise TypeError(f"{self.shape.type_name}: field {name}: {misfit}")

    def check_size(self, changes: list[Change]) -> None:
        """Whether a turn may change so much.

        :raises TypeError: it may not
        """
        size = sum(len(value) for _, value in changes if value is not None)
        if size > TURN_BYTES_MAX:
            raise TypeError(
                f"{self.shape.type_name}: one turn changed {size} bytes of state, allowed are {TURN_BYTES_MAX}; "
                "spread it over several turns, or keep large fields in a grid.Map"
            )

    def _explain(self, message: str) -> str:
        undeclared = [name for name in self.values if name not in self.shape.declared and not name.startswith("_")]
        if undeclared:
            return self._undeclared(undeclared)
        missing = [name for name in self.shape.plain_names if name not in self.values]
        if missing:
            return f"field {missing[0]} was deleted"
        return "field " + message.replace("`", "").replace("Expected", "expected").partition(" - at $.")[2] + ": " + plain_words(message)

    def _undeclared(self, names: list[str]) -> str:
        return (
            f"attribute {names[0]} is not declared; declare it as an annotated field with a default, "
            "or begin its name with an underscore if it need not be kept"
        )

    def refuse_undeclared(self) -> None:
        values, shape = self.values, self.shape
        if len(values) != len(shape.declared):
            undeclared = [name for name in values if name not in shape.declared and not name.startswith("_")]
            if undeclared:
                raise TypeError(f"{shape.type_name}: {self._undeclared(undeclared)}")
        for (name, _), collection in zip(shape.collections, self.collections, strict=True):
            if values.get(name) is not collection:
                raise TypeError(
                    f"{shape.type_name}: field {name} is a collection: change its entries, or clear() it; it cannot be replaced"
                )

    def find_unencodable(self, error: Exception) -> str:
        for name in self.shape.plain_names:
            try:
                encode(self.values.get(name))
            except ENCODING_ERRORS as why:
                return f"{self.shape.type_name}: field {name}: {plain_words(why)}"
        undeclared = [name for name in self.values if name not in self.shape.declared]
        return f"{self.shape.type_name}: {self._undeclared(undeclared) if undeclared else error}"

    # -- after a turn that may not

    def changed_by_read(self) -> str | None:
        """Name of a field that a read turn changed although it may not; None if none was found.

        Mutable fields larger than `READ_CHECK_BYTES_MAX` in all are left to the next write turn.
        """
        shape = self.shape
        if len(self.values) != shape.exact_size:
            undeclared = [name for name in self.values if name not in shape.declared and not name.startswith("_")]
            if undeclared:
                return f"{undeclared[0]} (an attribute that is not declared)"
        try:
            if self.encode_record() != self.record:
                loaded = shape.load_record(self.record)
                return next(
                    (n for n in shape.plain_names if self.values.get(n) != getattr(loaded, n)), "(an attribute that is not declared)"
                )
            if shape.only_plain:
                return None
            if sum(map(len, self.containers)) <= READ_CHECK_BYTES_MAX:
                for (name, *_), before in zip(shape.containers, self.containers, strict=True):
                    if encode(self.values.get(name)) != before:
                        return name
            else:
                self.unchecked = True
        except ENCODING_ERRORS:
            return "(a field that cannot be stored)"
        for (name, _), collection in zip(shape.collections, self.collections, strict=True):
            if self.values.get(name) is not collection or collection.changed_in_place() is not None:
                return name
        return None

    def undo_unnoticed(self) -> bool:
        """Before a turn that may write: undo what read turns have changed unnoticed, so that it does not become this turn's change.

        :return: whether there was anything
        """
        self.unchecked = False
        if self.is_clean():
            return False
        self.rollback()
        return True

    def is_clean(self) -> bool:
        """Whether memory equals what was logged, mutable fields of any size included."""
        try:
            if self.encode_record() != self.record:
                return False
            return all(
                encode(self.values.get(name)) == before for (name, *_), before in zip(self.shape.containers, self.containers, strict=True)
            )
        except ENCODING_ERRORS:
            return False

    def rollback(self) -> None:
        """Put every field back to what was logged last. Transient attributes stay as they are."""
        self.contested = None
        shape, values = self.shape, self.values
        for name in [n for n in values if n not in shape.declared and not n.startswith("_")]:
            del values[name]
        loaded = shape.load_record(self.record)
        for name in shape.plain_names:
            values[name] = getattr(loaded, name)
        for index, (name, _, decode, _) in enumerate(shape.containers):
            before = self.containers[index]
            try:
                unchanged = name in values and encode(values[name]) == before
            except ENCODING_ERRORS:
                unchanged = False
            if not unchanged:
                value = decode(before)
                values[name] = value
                # A set that is made anew may have another order than the one it was encoded from: compare with this one from now on.
                self.containers[index] = encode(value)
        self.record = self.encode_record()
        if self.view is not None:
            self.view.rollback()
            for (name, _), collection in zip(shape.collections, self.collections, strict=True):
                values[name] = collection
                collection.forget()


def check_comes_back(value: Any, encoded: bytes, decoded: Any) -> None:
    """A subclass with fields of its own would come back without them, for example.

    :raises TypeError: `value` would not be read back as it is
    """
    if type(value) is not type(decoded) or (encode(decoded) != encoded and decoded != value):
        raise TypeError(f"{value!r:.80} would be read back as {decoded!r:.80}")


def plain_words(error: Exception | str) -> str:
    """What msgspec says, without its quotes and paths."""
    if isinstance(error, OverflowError):
        return "integers must fit in 64 bits"
    text = str(error).partition(" - at ")[0].replace("`", "")
    return text[:1].lower() + text[1:]
