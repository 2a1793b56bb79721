"""An engine in a thread of its own, for many who ask at once.

service = Service(engine)
ticket = service.submit(request, listener)   # from any thread
ticket.abort()
service.close()
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ivl.engine.answer import Ended, Event, Failed, Listener, hears_nothing
from ivl.engine.containment import contained, log_failure
from ivl.engine.engine import Engine, EngineState
from ivl.engine.request import EngineRequest, RunningRequest
from ivl.errors import BusyError, UnavailableError

log = logging.getLogger("ivl.engine")


class Ticket:
    """A request that was submitted."""

    def __init__(self, service: Service, running: RunningRequest) -> None:
        self._service, self._running = service, running

    def abort(self) -> None:
        """The answer is not wanted any more: it ends as `cancelled`, soon. Safe at any time."""
        self._service.abort(self._running)


class Service:
    """Takes requests from any thread, and drives an engine that nobody else drives.

    What ends the engine ends all requests: `failure` has it.
    """

    def __init__(self, engine: Engine) -> None:
        """CapacityError when memory is too small for what the engine's limits say."""
        self.engine = engine
        engine.reserve()
        self.failure: BaseException | None = None
        self._open: dict[RunningRequest, Listener] = {}
        self._changed = threading.Condition()
        self._inbox: deque[RunningRequest] = deque()
        self._aborted: deque[RunningRequest] = deque()
        self._tile_bytes = 0
        self._closing = self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ivl-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    def state(self) -> EngineState:
        """As of the engine, with all that waits before it."""
        state = self.engine.state()
        return replace(
            state,
            num_waiting=max(0, len(self._open) - state.num_running),
            tile_bytes=self._tile_bytes,
        )

    def submit(self, request: EngineRequest, listener: Listener) -> Ticket:
        """BusyError when too many wait already; UnavailableError when the engine is being closed,
        or has failed; CapacityError when the request alone is larger than the store."""
        return self.submit_all([request], [listener])[0]

    def submit_all(
        self, requests: Sequence[EngineRequest], listeners: Sequence[Listener]
    ) -> list[Ticket]:
        """All of them, or none; errors as of `submit`."""
        running = []
        for request, listener in zip(requests, listeners, strict=True):
            one = self.engine.prepare(request, hears_nothing)
            one.listener = partial(self._tell, one)
            running.append((one, listener))
        limits = self.engine.limits
        with self._changed:
            if not self.is_alive:
                raise self._unavailable()
            if len(self._open) + len(running) > limits.max_sequences + limits.max_queued:
                raise BusyError(
                    f"{len(self._open)} requests are running or waiting already.",
                    "Ask again later.",
                )
            tile_bytes = self._tile_bytes + sum(request.tile_bytes for request in requests)
            # One that is too large for itself alone would be told to come back for ever.
            if tile_bytes > limits.max_tile_bytes and self._open:
                raise BusyError("Too many images are waiting already.", "Ask again later.")
            self._tile_bytes = tile_bytes
            self._open.update(running)
            self._inbox.extend(one for one, _ in running)
            self._changed.notify()
        return [Ticket(self, one) for one, _ in running]

    def abort(self, running: RunningRequest) -> None:
        """As of `Ticket.abort`."""
        with self._changed:
            if running in self._open:
                self._aborted.append(running)
                self._changed.notify()

    def close(self, timeout_s: float | None = None) -> bool:
        """Takes nothing new, and ends when all that was taken has been answered.

        After `timeout_s` the rest ends as `cancelled`. False when there was such a rest.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        finished = not self._thread.is_alive()
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        return finished

    def _tell(self, running: RunningRequest, event: Event) -> None:
        """Passes an event on. Of an ending it lets go first: who asks again then finds room."""
        if not isinstance(event, Ended | Failed):
            self._open[running](event)
            return
        with self._changed:
            listener = self._open.pop(running)
            self._tile_bytes -= running.request.tile_bytes
        if isinstance(event, Failed) and event.cause is not None:
            if event.error is None:
                log_failure(event.cause)
            event = Failed(event.error)  # its frames hold pictures
        listener(event)

    def _run(self) -> None:
        try:
            while self._take():
                self.engine.step()
        except BaseException as error:
            self.failure = error
            log.exception("the engine has failed, and takes no more requests")
            raise
        finally:
            self._end_all()

    def _unavailable(self) -> UnavailableError:
        if self.failure is None:
            return UnavailableError("The server is stopping.", "Ask again when it is back.")
        return UnavailableError("The engine has failed; the server's log says why.")

    def _take(self) -> bool:
        """Waits for work and takes what has come; False when it is time to stop."""
        with self._changed:
            while not (self._open or self._closing):
                self._changed.wait()
            arrived, aborted = list(self._inbox), list(self._aborted)
            self._inbox.clear()
            self._aborted.clear()
        for running in arrived:
            self.engine.submit(running)
        for running in aborted:
            self.engine.cancel(running)
        if self._stopping:
            return False
        return bool(self._open) or not self._closing

    def _end_all(self) -> None:
        """Whatever happened: every request that is still here has its ending."""
        with self._changed:
            self._closing = True
            left = list(self._open)
            self._inbox.clear()
        for running in left:
            if self.failure is None:
                self.engine.cancel(running)
            else:
                with contained(log_failure, "it was ended"):
                    running.fail(self._unavailable())
