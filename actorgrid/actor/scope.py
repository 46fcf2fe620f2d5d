"""Reentrant turns (A -> B -> A): the inner turn logs what *it* changed, and leaves what the waiting turn has changed to that one.

A field that both change is refused. Its value could be logged neither with the outer turn's part, which a retry of that turn would
apply a second time, nor without it.
"""

from __future__ import annotations

import msgspec

from actorgrid.actor.fields import ENCODING_ERRORS, RECORD_SUFFIX, ActorState, Change, encode, plain_words

_decode_fields = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


class ReentrantScope:
    """The state at the start of a reentrant turn; it stands in for `ActorState` until that turn is over.

    :raises TypeError: the waiting turn has put something into a field that cannot be stored
    """

    __slots__ = ("_containers", "_outer_writable", "_record", "_state", "took_entries")

    def __init__(self, state: ActorState, *, read: bool) -> None:
        self._state = state
        self._record, self._containers = self._encoded()
        view = state.view
        self._outer_writable = False
        self.took_entries = False  #: `changes` took those of collections, so that `logged` of the view comes next
        if view is not None:
            self._outer_writable = view.writable
            if view.writable:
                for collection in state.collections:
                    collection.flush()
            handed_out = any(collection.has_handed_out for collection in state.collections)
            view.writable = not read and not view.has_changes and not handed_out

    def _encoded(self) -> tuple[bytes, list[bytes]]:
        state = self._state
        try:
            return state.encode_record(), [encode(state.values[name]) for name, *_ in state.shape.containers]
        except ENCODING_ERRORS as error:
            raise TypeError(state.find_unencodable(error)) from None
        except KeyError as error:
            raise TypeError(f"{state.shape.type_name}: field {error.args[0]} was deleted") from None

    def changes(self) -> list[Change] | None:
        """What the inner turn changed, to be logged; None if nothing.

        :raises TypeError: it changed a field that the waiting turn has changed too, or one that does not fit; call `rollback`
        """
        state, shape = self._state, self._state.shape
        state.refuse_undeclared()
        record, containers = self._encoded()
        changes: list[Change] = []
        merged = state.record
        if record != self._record:
            state.check_record(record)
            merged = self._merge(record)
            changes.append((RECORD_SUFFIX, merged))
        changed = [index for index, encoded in enumerate(containers) if encoded != self._containers[index]]
        for index in changed:
            name, suffix, decode, _ = shape.containers[index]
            self._refuse_shared(name, self._containers[index], state.containers[index])
            try:
                decode(containers[index])
            except msgspec.MsgspecError as error:
                raise TypeError(f"{shape.type_name}: field {name}: {plain_words(error)}") from None
            changes.append((suffix, containers[index]))
        view = state.view
        if view is not None and view.writable:
            for collection in state.collections:
                collection.flush()
            changes += view.take_changes()
            self.took_entries = True
        state.record = merged
        for index in changed:
            state.containers[index] = containers[index]
        return changes or None

    def _merge(self, record: bytes) -> bytes:
        """The record as logged last, with the fields the inner turn changed."""
        now, start, logged = _decode_fields(record), _decode_fields(self._record), _decode_fields(self._state.record)
        for name, value in now.items():
            if bytes(value) != bytes(start[name]):
                self._refuse_shared(name, bytes(start[name]), bytes(logged[name]))
                logged[name] = value
        return encode({name: logged[name] for name in self._state.shape.plain_names})

    def _refuse_shared(self, name: str, start: bytes, logged: bytes) -> None:
        if start != logged:
            raise TypeError(
                f"{self._state.shape.type_name}: field {name} was changed by the waiting turn and then by the reentrant one; "
                "let one of them finish first, or keep the two changes in two fields"
            )

    def changed_by_read(self) -> str | None:
        """Name of a field that a reentrant read turn changed; None if none was found."""
        try:
            record, containers = self._encoded()
        except TypeError:
            return "(a field that cannot be stored)"
        if record != self._record:
            return "a field"
        return next(
            (field[0] for field, a, b in zip(self._state.shape.containers, containers, self._containers, strict=True) if a != b), None
        )

    def rollback(self) -> None:
        """Put every field back to the start of the inner turn, with the waiting turn's changes in place."""
        state = self._state
        loaded = state.shape.load_record(self._record)
        for name in state.shape.plain_names:
            state.values[name] = getattr(loaded, name)
        for (name, _, decode, _), before in zip(state.shape.containers, self._containers, strict=True):
            try:
                unchanged = name in state.values and encode(state.values[name]) == before
            except ENCODING_ERRORS:
                unchanged = False
            if not unchanged:
                state.values[name] = decode(before)
        if state.view is not None and state.view.writable:
            state.view.rollback()
            for collection in state.collections:
                collection.forget()

    def close(self) -> None:
        """The inner turn is over: the collections are the waiting turn's again."""
        if self._state.view is not None:
            self._state.view.writable = self._outer_writable
