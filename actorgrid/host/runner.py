"""Runs turns: drives a coroutine by hand until it waits for something, and only then makes a task of it.

Most turns never wait, so most turns cost no task, no trip through the event loop and no handle (decision 4). A turn that does
wait goes on as an ordinary asyncio task, in the same context, so that ``asyncio.timeout``, task groups and everything else work in
actor code from its first line on; for that first stretch a `FirstStepTask` stands in as the current task.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import traceback
from asyncio.tasks import _enter_task, _leave_task  # documented under "Extending" in the asyncio reference
from collections.abc import Coroutine, Generator
from typing import Any, Final

from actorgrid import ambient
from actorgrid.actor.scope import ReentrantScope
from actorgrid.errors import (
    ActorError,
    ActorGridError,
    DeadlineExceededError,
    DeadlockError,
    NonDeterministicTurnError,
    OverloadedError,
    PayloadTooLargeError,
    ReentrancyError,
    SessionExpiredError,
    StorageError,
    TransientError,
    WriteInDoubtError,
    to_wire,
)
from actorgrid.host.activation import Activation
from actorgrid.host.first_step import FirstStepTask, Outcome, drive
from actorgrid.host.turn import Turn
from actorgrid.host.watchdog import TurnBlockedError, Watchdog
from actorgrid.ids import show_address
from actorgrid.settings import HostSettings, WireSettings
from actorgrid.wire.messages import STATUS_ERROR, STATUS_OK, encode

logger = logging.getLogger(__name__)

TRACEBACK_CHARACTERS_MAX: Final = 8192
ERROR_CHARACTERS_MAX: Final = 4096
ERROR_BYTES_MAX: Final = 65_536

#: Errors of calls that a turn made which say as much to its own caller. Others (a wrong argument, say) are the actor's failure.
_PASSED_ON: Final = (
    ActorError,
    ReentrancyError,
    NonDeterministicTurnError,
    DeadlineExceededError,
    SessionExpiredError,
    PayloadTooLargeError,
)


class Runner:
    """Runs the turns of one host, one at a time per activation."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: HostSettings, wire: WireSettings, watchdog: Watchdog) -> None:
        self._loop = loop
        self._result_bytes_max = wire.frame_bytes_max - 4096
        self._settings = settings
        self._watchdog = watchdog
        self._stand_in = FirstStepTask(loop)
        self._unshared_references = self._count_references()
        self._outcome = Outcome()
        self._driver: Any = None
        self._begin_driver()
        #: What every turn's context begins with: nothing that another turn has set.
        self._context = contextvars.copy_context()
        #: Turns admitted and not over, and the bytes of their arguments: what the host's bounds are held against (I16).
        self.admitted = 0
        self.admitted_bytes = 0
        self.uncommitted = 0  #: turns that are over and wait for their commit; they count for the same bound
        self.suspended: dict[Turn, int] = {}  #: turns that wait for something, with the time they began to (monotonic ns)
        self._stuck_logged: dict[Turn, int] = {}  # how long it had waited when that was logged
        self.turns_total = 0
        self.turns_failed = 0
        self.turns_cancelled = 0
        self.turns_abandoned = 0
        self._value: Any = None  # what the turn whose first step is just over has returned or raised
        self._error: BaseException | None = None

    # -- admission

    def submit(self, turn: Turn) -> None:
        """Run `turn`, now or after those before it.

        :raises OverloadedError: a bound is reached; nothing happened
        """
        self._check_bounds(turn)
        activation = turn.activation
        self.take(turn)
        if activation.running or activation.queue is not None:
            activation.partition.enqueue(turn)
        else:
            self._run_all(turn)

    def _check_bounds(self, turn: Turn) -> None:
        settings = self._settings
        under_way = self.admitted + self.uncommitted
        if under_way >= settings.host_queue_max or self.admitted_bytes + turn.args_bytes > settings.host_queue_bytes_max:
            raise OverloadedError(
                f"this host has {under_way} calls under way ({self.admitted_bytes} bytes), which is its limit", retry_after_s=0.02
            )
        activation = turn.activation
        queue = activation.queue
        if queue is not None and len(queue) >= settings.actor_queue_max:
            raise OverloadedError(f"{len(queue)} calls wait for {show_address(activation.address)}, which is the limit", retry_after_s=0.02)

    def take(self, turn: Turn) -> None:
        """`turn` is admitted: count it until it is over."""
        self.admitted += 1
        self.admitted_bytes += turn.args_bytes

    def run_reentrant(self, turn: Turn) -> None:
        """Run `turn`, which was taken, inside the turn that waits for it (A -> B -> A). The caller has checked that it does."""
        activation = turn.activation
        try:
            turn.scope = ReentrantScope(activation.state, read=turn.method.read)
        except TypeError as error:
            self.refuse(turn, _as_actor_error(turn, error))
            return
        if self._step(turn):
            activation.partition.admission.admit_waiting(activation)

    def _run_all(self, turn: Turn) -> None:
        """Run `turn` and then what has queued up behind it, until one of them waits for something."""
        activation = turn.activation
        while self._step(turn):
            if activation.queue is None or activation.running or activation.dead:
                return  # what waits for a dead one goes to its successor
            following = self._next(activation)
            if following is None:
                return
            turn = following

    def _next(self, activation: Activation) -> Turn | None:
        """The next turn of the queue whose caller still waits."""
        queue = activation.queue
        while queue:
            turn = queue.popleft()
            if turn.deadline_ns > ambient.monotonic_ns():
                if not queue:
                    activation.queue = None
                return turn
            self.refuse(turn, OverloadedError(f"the deadline passed in the queue of {show_address(activation.address)}; nothing happened"))
        activation.queue = None
        return None

    def resume_queue(self, activation: Activation) -> None:
        """Nothing is running in `activation` any more: go on with what waits."""
        if activation.queue is not None and not activation.running and not activation.dead:
            turn = self._next(activation)
            if turn is not None:
                self._run_all(turn)

    def resume_soon(self, activation: Activation) -> None:
        self._loop.call_soon(self.resume_queue, activation)

    def refuse(self, turn: Turn, error: ActorGridError) -> None:
        """Answer a turn that has been admitted and will not run."""
        self.refuse_with(turn, error_payload(error))

    def refuse_with(self, turn: Turn, payload: bytes) -> None:
        self.release(turn)
        turn.activation.partition.admission.forget(turn)
        turn.answer(STATUS_ERROR, payload)

    # -- one turn

    def read_now(self, turn: Turn) -> bytes:
        """Run a read of an actor that nothing else runs or waits in, as `submit` would.

        :return: its encoded result if it is over and was like most reads. It is not answered then: that is for the caller, and so is
            everything that `HostedPartition.answer_read` does. Empty if it waits for something, has failed or has changed something:
            then its sink has or will have the answer.
        :raises OverloadedError: a bound is reached; nothing happened
        """
        self._check_bounds(turn)
        if not self._first(turn):
            self.take(turn)
            return b""
        value, error = self._value, self._error
        self._value = None
        if error is None:
            activation = turn.activation
            state = activation.state
            try:
                payload = turn.method.encode_result(value)
                if len(payload) <= self._result_bytes_max and state.changed_by_read() is None:
                    turn.over = True
                    activation.running = ()
                    if state.view is not None:
                        state.end()
                    return payload
            except Exception:  # noqa: BLE001, S110 - `_finish` meets it again, and knows what to do
                pass
        self._error = None
        self.take(turn)
        self._finish(turn, value, error)
        return b""

    def _step(self, turn: Turn) -> bool:
        """Start `turn`. True if it is over, False if it waits for something and goes on as a task."""
        if not self._first(turn):
            return False
        value, error = self._value, self._error
        self._value = self._error = None
        self._finish(turn, value, error)
        return True

    def _first(self, turn: Turn) -> bool:
        """Make the first step of `turn`. True if that was all: what came of it is in `_value` and `_error`. False as `_step`."""
        activation = turn.activation
        self._error = None
        activation.running = (*activation.running, turn)
        self.turns_total += 1
        if activation.state.view is not None and turn.scope is None:
            activation.state.begin(activation.partition.applied_lsn, read=turn.method.read)
        if activation.state.unchecked and not turn.method.read and turn.scope is None and activation.state.undo_unnoticed():
            logger.error("a @grid.read method changed a field; the change was undone actor=%s", show_address(activation.address))
        watchdog, loop, stand_in = self._watchdog, self._loop, self._stand_in
        context = self._context.copy()
        outcome = self._outcome
        _enter_task(loop, stand_in)  # type: ignore[arg-type]
        watchdog.step += 1
        watchdog.current = turn
        try:
            instance, args = activation.state.instance, turn.args
            coroutine = turn.method.function(instance, *args) if args else turn.method.function(instance)
            came = context.run(self._send, (turn, coroutine))
        except BaseException as raised:  # noqa: BLE001 - an actor may raise anything, SystemExit included; it harms only itself
            watchdog.current = None
            self._error = raised
            self._settle(turn)
            self._begin_driver()
        else:
            watchdog.current = None
            if not outcome.is_over:
                self._settle(turn)
                outcome.is_last = True
                driver = self._driver
                self._begin_driver()
                self._suspend(turn, driver, came, context, stand_in)
                return False
            self._value = came
        finally:
            _leave_task(loop, stand_in)  # type: ignore[arg-type]
            if stand_in.used or sys.getrefcount(stand_in) > self._unshared_references:
                self._stand_in = FirstStepTask(loop)
        self._settle(turn)
        return True

    def _settle(self, turn: Turn) -> None:
        """An interruption of `turn` that was not delivered in it must hit nothing else: not the next driver, nor the watchdog itself."""
        if self._watchdog.struck is None:
            return
        try:
            self._watchdog.settle(turn)
        except TurnBlockedError:
            self._watchdog.struck = None

    def _begin_driver(self) -> None:
        self._outcome = Outcome()
        self._driver = drive(self._outcome)
        self._send = self._driver.send
        self._send(None)

    def _count_references(self) -> int:
        """How often `_step` finds the stand-in referred to if nobody has kept it: by the runner, its own frame, and the question.

        Counted and not known, since compiled code borrows what interpreted code holds.
        """
        stand_in = self._stand_in
        return sys.getrefcount(stand_in)

    def _suspend(
        self, turn: Turn, coroutine: Coroutine[Any, Any, Any], awaited: Any, context: contextvars.Context, stand_in: FirstStepTask
    ) -> None:
        if turn.scope is not None:
            turn.scope.pause()
        self.suspended[turn] = ambient.monotonic_ns()
        task = self._loop.create_task(self._go_on(turn, coroutine, awaited, stand_in), context=context)
        turn.task = task
        stand_in.become(task)
        delay_s = (turn.deadline_ns - ambient.monotonic_ns()) / 1e9
        turn.timer = self._loop.call_later(max(0.0, delay_s), self._expire, turn)

    async def _go_on(self, turn: Turn, coroutine: Coroutine[Any, Any, Any], awaited: Any, stand_in: FirstStepTask) -> None:
        error: BaseException | None = None
        value = None
        stand_in.start()
        try:
            value = await _Rest(self._watchdog, turn, coroutine, awaited)
        except BaseException as raised:  # noqa: BLE001 - as above; a cancellation of this task is a cancellation of the turn
            error = raised
        activation = turn.activation
        while activation.running and activation.running[-1] is not turn and not (turn.expired or activation.dead):
            # A reentrant turn still runs inside this one, which did not wait for it. Its changes are not this turn's to log.
            inner = activation.running[-1].task
            assert inner is not None
            try:
                await asyncio.wait([inner])
            except asyncio.CancelledError as cancelled:
                error = cancelled
                break
        self.suspended.pop(turn, None)
        if turn.timer is not None:
            turn.timer.cancel()
        if activation.dead:
            self.release(turn)
            return
        self._finish(turn, value, error)
        # Not from here: this task is the current one, and the next turn must find none.
        if activation.partition.admission.has_waiting(activation):
            self._loop.call_soon(activation.partition.admission.admit_waiting, activation)
        elif activation.queue is not None and not activation.running:
            self._loop.call_soon(self.resume_queue, activation)

    def _expire(self, turn: Turn) -> None:
        """The caller's deadline has passed and the turn still waits: cancel it, so that the actor is free again."""
        if turn.task is None or turn.task.done():
            return
        if not turn.expired:
            turn.expired = True
            self.turns_cancelled += 1
            logger.warning(
                "turn cancelled at its deadline method=%s actor=%s", turn.method.qualified_name, show_address(turn.activation.address)
            )
            turn.task.cancel()
            turn.timer = self._loop.call_later(self._settings.turn_cancel_grace_s, self._expire, turn)
            return
        # It swallowed the cancellation. Its object can no longer be trusted: leave it to itself, and begin anew from what is stored.
        self.turns_abandoned += 1
        logger.error(
            "turn abandoned, it ignores cancellation method=%s actor=%s", turn.method.qualified_name, show_address(turn.activation.address)
        )
        self._discard(
            turn,
            DeadlineExceededError(f"{turn.method.qualified_name} ran past its deadline and did not stop; what it changed was thrown away"),
        )

    def _discard(self, turn: Turn, error: ActorGridError) -> None:
        """Throw the activation away with the state that `turn` may still hold on to."""
        activation = turn.activation
        running = activation.running
        activation.running = ()
        for each in running:
            self.release(each)
            if each is not turn and each.task is not None:
                each.task.cancel()
            activation.partition.admission.forget(each)
            each.answer(STATUS_ERROR, error_payload(error))
        if not turn.client_id and turn.method.name == "on_activate":
            # Those who wait are told now: a new activation would only hang in the same hook.
            waiting, activation.queue = activation.queue, None
            name = show_address(activation.address)
            for waiter in waiting or ():
                self.refuse(waiter, ActorError(f"{name} could not be activated: {error}", remote_type="TimeoutError", actor=name))
        activation.partition.drop(activation)

    def _finish(self, turn: Turn, value: Any, error: BaseException | None) -> None:
        """The turn is over: log what it changed, or put everything back."""
        activation = turn.activation
        if error is not None and (turn.expired or isinstance(error, asyncio.CancelledError)):
            # A thread it started may still be at work on the object, so the object goes too (`@grid.blocking`).
            text = "was cancelled at its deadline" if turn.expired else "was cancelled"
            self._discard(turn, DeadlineExceededError(f"{turn.method.qualified_name} {text}; nothing it changed was kept"))
            return
        if isinstance(error, StorageError) and activation.partition.store_has_failed:  # and not another host's, or one of the actor's own
            self.release(turn)
            activation.partition.store_failed(error)
            return
        method, state, scope = turn.method, activation.state, turn.scope
        changes = None
        if error is None:
            try:
                payload = method.encode_result(value)
                if len(payload) > self._result_bytes_max:
                    raise PayloadTooLargeError(
                        f"result of {method.qualified_name}: {len(payload)} bytes, allowed are {self._result_bytes_max}; return it in pages"
                    )
                if method.read:
                    changed = state.changed_by_read() if scope is None else scope.changed_by_read()
                    if changed is not None:
                        raise TypeError(f"{method.qualified_name} is marked @grid.read but changed {changed}; what it changed was undone")
                else:
                    changes = state.changes() if scope is None else scope.changes()
            except Exception as wrong:  # noqa: BLE001 - decoding runs code of the application's own types, which may raise anything
                error = wrong
        status, run_again = STATUS_OK, False
        if error is not None:
            self.turns_failed += 1
            status = STATUS_ERROR
            run_again = bool(turn.client_id) and _may_run_again(turn, error)
            payload = error_payload(_alone(error) if run_again else _as_wire_error(turn, error))
            try:
                (state if scope is None else scope).rollback()
            except Exception:
                logger.exception("rollback failed method=%s actor=%s", method.qualified_name, show_address(activation.address))
                self._discard(turn, WriteInDoubtError(f"{method.qualified_name} failed, and its actor had to be thrown away"))
                return
        if scope is not None:
            scope.close()
        self._end(turn)
        partition = activation.partition
        if method.read:
            partition.answer_read(turn, status, payload)
        elif run_again:
            # The caller is to come again, and nothing happened: not to be remembered as this request's answer.
            partition.admission.forget(turn)
            turn.answer(STATUS_ERROR, payload)
        else:
            partition.log(turn, status, payload, changes)
        if scope is None and state.view is not None:
            state.end()

    def _end(self, turn: Turn) -> None:
        self.release(turn)
        activation = turn.activation
        activation.running = (
            activation.running[:-1] if activation.running[-1] is turn else tuple(t for t in activation.running if t is not turn)
        )

    def release(self, turn: Turn) -> None:
        """`turn` is over, or will never run: it counts for no bound any more."""
        if not turn.over:
            turn.over = True
            self.admitted -= 1
            self.admitted_bytes -= turn.args_bytes

    def report_stuck(self) -> list[dict[str, Any]]:
        """Turns that have waited longer than ``turn_stuck_report_s``."""
        now_ns = ambient.monotonic_ns()
        limit_ns = int(self._settings.turn_stuck_report_s * 1e9)
        return [_stuck(turn, now_ns - since) for turn, since in self.suspended.items() if now_ns - since > limit_ns]

    def report_stuck_anew(self) -> list[dict[str, Any]]:
        """Those of them that are to be logged: each once, and again whenever it has waited twice as long."""
        now_ns, limit_ns, logged = ambient.monotonic_ns(), int(self._settings.turn_stuck_report_s * 1e9), self._stuck_logged
        self._stuck_logged = {turn: waited_ns for turn, waited_ns in logged.items() if turn in self.suspended}
        found = []
        for turn, since in self.suspended.items():
            waited_ns = now_ns - since
            if waited_ns > max(limit_ns, 2 * self._stuck_logged.get(turn, 0)):
                self._stuck_logged[turn] = waited_ns
                found.append(_stuck(turn, waited_ns))
        return found


def _stuck(turn: Turn, waited_ns: int) -> dict[str, Any]:
    return {
        "method": turn.method.qualified_name,
        "actor": show_address(turn.activation.address),
        "waiting_s": round(waited_ns / 1e9, 1),
    }


class _Rest:
    """Awaitable for the rest of a coroutine whose first step is already made, with the watchdog told of every further step."""

    __slots__ = ("_awaited", "_coroutine", "_turn", "_watchdog")

    def __init__(self, watchdog: Watchdog, turn: Turn, coroutine: Coroutine[Any, Any, Any], awaited: Any) -> None:
        self._watchdog = watchdog
        self._turn = turn
        self._coroutine = coroutine
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, Any]:
        watchdog, turn, coroutine, awaited = self._watchdog, self._turn, self._coroutine, self._awaited
        while True:
            thrown: BaseException | None = None
            sent = None
            try:
                sent = yield awaited
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001 - whatever is thrown in belongs to the coroutine
                thrown = error
            if turn.scope is not None:
                turn.scope.resume()
            watchdog.step += 1
            watchdog.current = turn
            try:
                awaited = coroutine.send(sent) if thrown is None else coroutine.throw(thrown)
            except StopIteration as stop:
                return stop.value
            finally:
                watchdog.current = None
                if watchdog.struck is not None:
                    watchdog.settle(turn)
            if turn.scope is not None:
                turn.scope.pause()


def _alone(error: BaseException) -> Any:
    """The one error in a task group around one call, or `error` itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _may_run_again(turn: Turn, error: BaseException) -> bool:
    """Whether a turn that ended with `error` is best forgotten and executed again under the same request id."""
    alone = _alone(error)
    return isinstance(alone, DeadlockError) or (isinstance(alone, TransientError) and turn.calls_made == 0)


def _as_wire_error(turn: Turn, error: BaseException) -> ActorGridError:
    """What the caller is told. Errors of the grid pass through; anything else the actor raised is an `ActorError`."""
    error = _alone(error)
    if isinstance(error, _PASSED_ON):
        return error
    return _as_actor_error(turn, error)


def _as_actor_error(turn: Turn, error: BaseException) -> ActorError:
    actor = show_address(turn.activation.address)
    if isinstance(error, TurnBlockedError):
        text = "the turn blocked its host's loop and was interrupted; use @grid.blocking or grid.offload for such work"
        kind = "TurnBlockedError"
    else:
        text = _text_of(error)
        kind = type(error).__qualname__ if type(error).__module__ == "builtins" else f"{type(error).__module__}.{type(error).__qualname__}"
    return ActorError(
        f"{turn.method.qualified_name} of {actor} raised {kind}: {text}",
        remote_type=kind,
        remote_text=text,
        remote_traceback=_actor_traceback(error),
        actor=actor,
    )


def _actor_traceback(error: BaseException) -> str:
    """The traceback from the actor's own frames on."""
    step = error.__traceback__
    while step is not None and step.tb_frame.f_globals.get("__name__", "").startswith("actorgrid.host"):
        step = step.tb_next
    text = _sendable("".join(traceback.format_exception(type(error), error, step, limit=30)))
    return text if len(text) <= TRACEBACK_CHARACTERS_MAX else f"...{text[-TRACEBACK_CHARACTERS_MAX:]}"


def _text_of(error: BaseException) -> str:
    """``str(error)``, whatever the application's own exception class makes of it."""
    try:
        text = _sendable(str(error))
    except Exception as failure:  # noqa: BLE001 - the actor's code
        return f"<its text cannot be had: {type(failure).__name__}>"
    return text if len(text) <= ERROR_CHARACTERS_MAX else f"{text[:ERROR_CHARACTERS_MAX]}..."


def _sendable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def error_payload(error: ActorGridError) -> bytes:
    """`error` as the payload of a reply; without its details if an actor has put something into them that cannot be sent."""
    try:
        payload = encode(to_wire(error))
        if len(payload) <= ERROR_BYTES_MAX:
            return payload
    except Exception:  # noqa: BLE001 - the actor's code
        logger.warning("error without its details, they cannot be sent type=%s", type(error).__name__)
    return encode((to_wire(error)[0], _text_of(error), {}))
