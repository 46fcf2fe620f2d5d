"""Reentrant turns (A -> B -> A): the inner turn logs what *it* changed, and leaves what the waiting turn has changed to that one.

A field that both change is refused. Its value could be logged neither with the outer turn's part, which a retry of that turn would
apply a second time, nor without it. The waiting turn need not stand still (it may have begun the call in a task of its own), so the
inner turn's changes are those made between `resume` and `pause`, and whatever changed in between is somebody else's.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from actorgrid.actor.fields import ENCODING_ERRORS, RECORD_SUFFIX, ActorState, Change, check_comes_back, encode, plain_words

_decode_fields = msgspec.msgpack.Decoder(dict[str, Raw]).decode


class ReentrantScope:
    """What one reentrant turn changes; it stands in for `ActorState` until that turn is over. It begins resumed.

    :raises TypeError: the waiting turn has put something into a field that cannot be stored
    """

    __slots__ = ("_before", "_misfit", "_outer_writable", "_owns_entries", "_seen", "_state", "_writes", "took_entries")

    def __init__(self, state: ActorState, *, read: bool) -> None:
        self._state = state
        self._seen = self._fields()
        #: Fields this turn has changed, with their value before its first change.
        self._before: dict[str, bytes] = {}
        self._misfit: str | None = None
        self._writes = not read
        self._owns_entries = False
        self.took_entries = False  #: `changes` took those of collections, so that `logged` of the view comes next
        view = state.view
        self._outer_writable = view is not None and view.writable
        if self._outer_writable:
            for collection in state.collections:
                collection.flush()
        self._open_entries()

    def _fields(self) -> dict[str, bytes]:
        """Every plain field, encoded, by name."""
        state = self._state
        try:
            fields = {name: bytes(value) for name, value in _decode_fields(state.encode_record()).items()}
            for name, *_ in state.shape.containers:
                fields[name] = encode(state.values[name])
        except ENCODING_ERRORS as error:
            raise TypeError(state.find_unencodable(error)) from None
        except KeyError as error:
            raise TypeError(f"{state.shape.type_name}: field {error.args[0]} was deleted") from None
        return fields

    # -- steps

    def pause(self) -> None:
        """A step of this turn is over; the waiting turn may go on until the next."""
        try:
            self._note_own_changes()
        except TypeError as error:
            self._misfit = str(error)
        view = self._state.view
        if view is not None:
            if view.writable:
                self._owns_entries = view.has_changes or any(collection.has_handed_out for collection in self._state.collections)
            view.writable = self._outer_writable and not self._owns_entries

    def resume(self) -> None:
        """The next step of this turn begins."""
        try:
            now = self._fields()
        except TypeError as error:
            self._misfit = str(error)
            return
        for name, value in now.items():
            if value != self._seen.get(name) and name in self._before:
                self._misfit = self._shared(name)
                self._state.contested = name
        self._seen = now
        self._open_entries()

    def _open_entries(self) -> None:
        """Collections may be changed by this turn if the waiting one has changed none, and holds no value of them."""
        view = self._state.view
        if view is not None:
            untouched = not view.has_changes and not any(collection.has_handed_out for collection in self._state.collections)
            view.writable = self._writes and (self._owns_entries or untouched)

    def _note_own_changes(self) -> None:
        now = self._fields()
        for name, value in now.items():
            if value != self._seen.get(name):
                self._before.setdefault(name, self._seen[name])
        self._seen = now

    # -- the end

    def changes(self) -> list[Change] | None:
        """What this turn changed, to be logged; None if nothing.

        :raises TypeError: it changed a field that the waiting turn has changed too, or one that does not fit; call `rollback`
        """
        state, shape = self._state, self._state.shape
        state.refuse_undeclared()
        self._note_own_changes()
        logged = {name: bytes(value) for name, value in _decode_fields(state.record).items()}
        logged.update((name, before) for (name, *_), before in zip(shape.containers, state.containers, strict=True))
        for name, before in self._before.items():
            if before != logged[name]:
                self._misfit = self._shared(name)
        if self._misfit is not None:
            raise TypeError(self._misfit)
        changes: list[Change] = []
        own = [name for name in shape.plain_names if name in self._before]
        record = state.record
        if own:
            state.check_record(state.encode_record())
            record = encode({name: Raw(self._seen[name] if name in self._before else logged[name]) for name in shape.plain_names})
            changes.append((RECORD_SUFFIX, record))
        containers = [index for index, (name, *_) in enumerate(shape.containers) if name in self._before]
        for index in containers:
            name, suffix, decode, _ = shape.containers[index]
            try:
                check_comes_back(state.values[name], self._seen[name], decode(self._seen[name]))
            except (TypeError, msgspec.MsgspecError) as error:
                raise TypeError(f"{shape.type_name}: field {name}: {plain_words(error)}") from None
            changes.append((suffix, self._seen[name]))
        view = state.view
        if view is not None and view.writable:
            for collection in state.collections:
                collection.flush()
            changes += view.take_changes()
            self.took_entries = True
        state.check_size(changes)
        state.record = record
        for index in containers:
            state.containers[index] = self._seen[shape.containers[index][0]]
        return changes or None

    def _shared(self, name: str) -> str:
        return (
            f"{self._state.shape.type_name}: field {name} was changed by the waiting turn and by the reentrant one; "
            "let one of them finish first, or keep the two changes in two fields"
        )

    def changed_by_read(self) -> str | None:
        """Name of a field that a reentrant read turn changed; None if none was found."""
        try:
            self._note_own_changes()
        except TypeError:
            return "(a field that cannot be stored)"
        return next(iter(self._before), None)

    def rollback(self) -> None:
        """Undo what this turn changed, with the waiting turn's changes in place."""
        state, shape = self._state, self._state.shape
        try:
            self._note_own_changes()
            broken = False
        except TypeError:
            broken = True
        target = {**self._seen, **self._before}
        restored = set(target if broken else self._before)
        loaded = shape.load_record(encode({name: Raw(target[name]) for name in shape.plain_names}))
        for name in shape.plain_names:
            if name in restored:
                state.values[name] = getattr(loaded, name)
        for name, _, decode, _ in shape.containers:
            if name in restored:
                state.values[name] = decode(target[name])
        for name in [name for name in state.values if name not in shape.declared and not name.startswith("_")]:
            del state.values[name]
        if state.view is not None and state.view.writable:
            state.view.rollback()
            for collection in state.collections:
                collection.forget()

    def close(self) -> None:
        """This turn is over: the collections are the waiting turn's again."""
        if self._state.view is not None:
            self._state.view.writable = self._outer_writable
