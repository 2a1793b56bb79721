"""The models of a server, by name. What does not fit beside another takes its place."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from anyio import to_thread

from ivl.engine.engine import Engine, EngineState
from ivl.engine.service import Service
from ivl.errors import CapacityError, IvlError, UnavailableError
from ivl.server.errors import ApiError

log = logging.getLogger("ivl.server")

LATEST = ":latest"
"""What Ollama's clients add to a name without a tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFacts:
    """What a model's files say of it: bytes of the weights, how many weights they are, and in which
    format (`gguf`, `safetensors`) and type (`Q4_K_M`, `BF16`)."""

    num_bytes: int
    num_parameters: int
    format: str
    kind: str


@dataclass(eq=False, slots=True, kw_only=True)
class ServedModel:
    """A model that is loaded."""

    name: str
    service: Service
    loaded_at: float = field(default_factory=time.time)
    last_used: float = field(default_factory=time.monotonic)
    keep_alive_s: float | None = None
    """How long it stays when nobody uses it; None: until another needs its memory."""
    num_users: int = 0
    is_leaving: bool = False
    """It ends what it has begun, and who comes now waits for the next one."""
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    """For who waits until nobody uses it."""

    @property
    def engine(self) -> Engine:
        return self.service.engine

    @property
    def is_idle(self) -> bool:
        """Whether it has stayed unused for as long as it is kept."""
        kept, unused_s = self.keep_alive_s, time.monotonic() - self.last_used
        return kept is not None and self.num_users == 0 and unused_s >= kept


Loader = Callable[[], Service]
FindFacts = Callable[[], StoredFacts | None]


class ModelHub:
    """Loads models when they are first asked for.

    Loading and unloading happen one after the other, in the order in which they were asked for. A
    model that is to leave takes nobody new, so that who waits for its memory gets a turn.
    """

    def __init__(
        self, loaders: Mapping[str, Loader], stored: Mapping[str, FindFacts] | None = None
    ) -> None:
        """`loaders`: what loads each model, by the name that clients use; the first is the one
        of requests that name none. A loader raises CapacityError when memory is too small.
        `stored`: what finds out about the files of each."""
        self._loaders, self._stored = dict(loaders), dict(stored or {})
        self._facts: dict[str, StoredFacts] = {}
        self._loaded: dict[str, ServedModel] = {}
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.created = int(time.time())
        self.is_loading = False
        self.is_stopping = False
        self.has_served = False
        """Whether a model has been loaded once."""

    @property
    def names(self) -> list[str]:
        return list(self._loaders)

    @property
    def loaded(self) -> list[ServedModel]:
        return list(self._loaded.values())

    @property
    def failure(self) -> BaseException | None:
        """What an engine has failed with; only another process can do better then."""
        failures = (model.service.failure for model in self._loaded.values())
        return next((failure for failure in failures if failure is not None), None)

    def find(self, name: str | None) -> str:
        """The name as this server has it; ApiError 404 for a model that it does not serve."""
        if not name:
            return self.names[0]
        plain = name.removesuffix(LATEST)
        for wanted in (name, plain):
            if wanted in self._loaders:
                return wanted
        # Some programs write names in small letters, or with a capital one.
        alike = [known for known in self.names if known.lower() == plain.lower()]
        if len(alike) == 1:
            return alike[0]
        served = ", ".join(self.names)
        raise ApiError(
            404,
            f"There is no model {name[:200]!r} here. Served: {served}.",
            code="model_not_found",
            param="model",
        )

    async def stored_facts(self, name: str) -> StoredFacts | None:
        """What a model's files say; None when they are not there (yet)."""
        if name not in self._facts and name in self._stored:
            found = await to_thread.run_sync(self._stored[name])
            if found is not None:
                self._facts[name] = found
        return self._facts.get(name)

    def states(self) -> dict[str, EngineState]:
        return {name: model.service.state() for name, model in self._loaded.items()}

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedModel]:
        """The model, loaded, which stays so meanwhile. UnavailableError when the server is
        stopping or the model's engine has failed."""
        model = await self._enter(self.find(name))
        try:
            yield model
        finally:
            self._leave(model)

    async def unload(self, name: str | None) -> None:
        """Lets a model go when its last answer has ended; it is loaded again when it is asked
        for."""
        model = self._loaded.get(self.find(name))
        if model is not None:
            model.keep_alive_s = 0.0
            await asyncio.shield(self._start(self._unload_idle(model)))

    async def close(self, drain_s: float) -> None:
        """Refuses what comes, waits `drain_s` for what runs, and ends the rest."""
        self.is_stopping = True
        models = self.loaded
        await asyncio.gather(
            *(to_thread.run_sync(model.service.close, drain_s) for model in models)
        )

    async def _enter(self, name: str) -> ServedModel:
        self._check()
        model = self._loaded.get(name)
        if model is None or model.is_leaving:
            # It goes on if who asked goes away: a load cannot be stopped halfway.
            entering = asyncio.ensure_future(self._load_and_enter(name))
            try:
                model = await asyncio.shield(entering)
            except asyncio.CancelledError:
                entering.add_done_callback(self._leave_for)
                raise
        else:
            model.num_users += 1
        if model.service.failure is not None:
            self._leave(model)
            raise UnavailableError("The engine has failed; the server's log says why.")
        return model

    def _check(self) -> None:
        if self.is_stopping:
            raise UnavailableError("The server is stopping.", "Ask again when it is back.")

    async def _load_and_enter(self, name: str) -> ServedModel:
        async with self._changing:
            self._check()
            model = self._loaded.get(name) or await self._load(name)
            model.num_users += 1
            return model

    def _leave_for(self, entered: asyncio.Task[ServedModel]) -> None:
        """For somebody who went away before the model was there."""
        if not entered.cancelled() and entered.exception() is None:
            self._leave(entered.result())

    def _leave(self, model: ServedModel) -> None:
        model.num_users -= 1
        model.last_used = time.monotonic()
        if model.keep_alive_s is not None and model.num_users == 0:
            loop = asyncio.get_running_loop()
            loop.call_later(model.keep_alive_s, lambda: self._start(self._unload_idle(model)))
        if model.num_users == 0:
            model.unused.set()

    async def _load(self, name: str) -> ServedModel:
        self.is_loading = True
        try:
            while True:
                try:
                    service = await to_thread.run_sync(self._loaders[name])
                    break
                except CapacityError as error:
                    if not self._loaded:
                        raise _cannot_load(name, error, 503) from error
                except IvlError as error:
                    raise _cannot_load(name, error, 500) from error
                # The least recently used goes.
                leaving = min(self._loaded.values(), key=lambda m: (m.num_users > 0, m.last_used))
                await self._unload(leaving)
        finally:
            self.is_loading = False
        model = self._loaded[name] = ServedModel(name=name, service=service)
        self.has_served = True
        return model

    async def _unload_idle(self, model: ServedModel) -> None:
        async with self._changing:
            if model.is_idle and self._loaded.get(model.name) is model and not self.is_stopping:
                await self._unload(model)

    async def _unload(self, model: ServedModel) -> None:
        """When its last answer has ended."""
        model.is_leaving = True
        if model.num_users:
            model.unused.clear()
            await model.unused.wait()
        del self._loaded[model.name]
        await to_thread.run_sync(model.service.close, None)
        log.info("unloaded: %s", model.name)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs it to its end, whoever waits for it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _cannot_load(name: str, error: IvlError, status: int) -> ApiError:
    """Whoever asks for the model is not to blame; who runs the server finds the reason."""
    log.error("%s cannot be loaded: %s", name, error)
    return ApiError(
        status, f"The model {name!r} cannot be loaded: {error}", code="model_not_loaded"
    )
