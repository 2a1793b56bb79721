"""What goes into the matrices of a model, told while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def listening(
    module: nn.Module, paths: Iterable[str], hear: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Inside the block, whatever goes into the submodules `paths` is told to `hear`, with the path:
    float32 (tokens, inputs)."""

    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: hear(path, inputs[0].detach().flatten(0, -2).float())

    handles = [module.get_submodule(path).register_forward_pre_hook(hook(path)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
