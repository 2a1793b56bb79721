"""The models of a server, by name. What does not fit beside another takes its place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from anyio import to_thread

from ivl.engine.batch import BatchEngine, BatchState
from ivl.engine.engine import Engine
from ivl.engine.grammar import GrammarCompiler
from ivl.errors import CapacityError
from ivl.server.errors import ApiError

LATEST = ":latest"
"""What Ollama's clients add to a name without a tag."""


@dataclass(eq=False, slots=True, kw_only=True)
class ServedModel:
    """A model that is loaded."""

    name: str
    batch: BatchEngine
    loaded_at: float = field(default_factory=time.time)
    last_used: float = field(default_factory=time.monotonic)
    num_users: int = 0
    _compiler: GrammarCompiler | None = None

    @property
    def engine(self) -> Engine:
        return self.batch.engine

    def grammars(self) -> GrammarCompiler:
        """Takes a second the first time, for large vocabularies."""
        if self._compiler is None:
            self._compiler = GrammarCompiler(self.engine.tokenizer, self.engine.stop_ids)
        return self._compiler


Loader = Callable[[], BatchEngine]


class ModelHub:
    """Loads models when they are first asked for."""

    def __init__(
        self, loaders: Mapping[str, Loader], sizes: Mapping[str, Callable[[], int]] | None = None
    ) -> None:
        """`loaders`: what loads each model, by the name that clients use; the first is the one
        of requests that name none. A loader raises CapacityError when memory is too small.
        `sizes`: what finds the bytes of the weights of a model that is not loaded."""
        self._loaders, self._sizes = dict(loaders), dict(sizes or {})
        self._known_sizes: dict[str, int] = {}
        self._loaded: dict[str, ServedModel] = {}
        self._changing = asyncio.Lock()
        self._left = asyncio.Condition()
        self.created = int(time.time())
        self.is_loading = False
        self.is_stopping = False

    @property
    def names(self) -> list[str]:
        return list(self._loaders)

    @property
    def loaded(self) -> list[ServedModel]:
        return list(self._loaded.values())

    @property
    def is_healthy(self) -> bool:
        """Whether no engine has failed."""
        return all(model.batch.is_alive for model in self._loaded.values())

    def find(self, name: str | None) -> str:
        """The name as this server has it; ApiError 404 for a model that it does not serve."""
        if name is None or name in self._loaders:
            return name or self.names[0]
        plain = name.removesuffix(LATEST)
        if plain in self._loaders:
            return plain
        served = ", ".join(self.names)
        raise ApiError(
            404,
            f"There is no model {name[:200]!r} here. Served: {served}.",
            code="model_not_found",
            param="model",
        )

    async def stored_bytes(self, name: str) -> int:
        """Bytes of the weights in a model's files; 0 when that is not known (yet)."""
        if not self._known_sizes.get(name) and name in self._sizes:
            self._known_sizes[name] = await to_thread.run_sync(self._sizes[name])
        return self._known_sizes.get(name, 0)

    def states(self) -> dict[str, BatchState]:
        return {name: model.batch.state() for name, model in self._loaded.items()}

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedModel]:
        """The model, loaded, which stays so meanwhile."""
        found = self.find(name)
        if self.is_stopping:
            raise ApiError(503, "The server is stopping.", headers={"Retry-After": "10"})
        model = self._loaded.get(found)
        if model is None:
            async with self._changing:
                model = self._loaded.get(found) or await self._load(found)
        model.num_users += 1
        try:
            yield model
        finally:
            model.num_users -= 1
            model.last_used = time.monotonic()
            async with self._left:
                self._left.notify_all()

    async def close(self, drain_s: float) -> None:
        """Refuses what comes, waits `drain_s` for what runs, and ends the rest."""
        self.is_stopping = True
        models = self.loaded
        await asyncio.gather(*(to_thread.run_sync(model.batch.close, drain_s) for model in models))

    async def _load(self, name: str) -> ServedModel:
        self.is_loading = True
        try:
            while True:
                try:
                    batch = await to_thread.run_sync(self._loaders[name])
                    break
                except CapacityError:
                    if not self._loaded:
                        raise
                await self._unload_one()
        finally:
            self.is_loading = False
        model = self._loaded[name] = ServedModel(name=name, batch=batch)
        return model

    async def _unload_one(self) -> None:
        """The least recently used goes, as soon as its last answer has ended."""
        model = min(self._loaded.values(), key=lambda m: (m.num_users > 0, m.last_used))
        async with self._left:
            await self._left.wait_for(lambda: model.num_users == 0)
        del self._loaded[model.name]
        await to_thread.run_sync(model.batch.close, None)
