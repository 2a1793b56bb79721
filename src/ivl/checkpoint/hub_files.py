"""Which files of a repository make a model: safetensors with their configuration, or a GGUF pair.

What a repository holds is a list of names and sizes, so files are chosen by their names here; what
they are is read from their metadata when they are there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

from ivl.errors import CheckpointError, ConfigError, UnsupportedError
from ivl.unmerged import ADAPTER_FILES, adapter_error

INDEX_NAME = "model.safetensors.index.json"
_SMALL_FILES = ("*.json", "*.txt", "tokenizer.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_USUAL_PROJECTORS = ("F16", "BF16", "Q8_0", "F32")
_NUM_SHOWN = 12

Sizes = Mapping[str, int | None]
"""Names of files, with `/` between folders, and their bytes where the hub tells them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The files to fetch. `path` is the one that stands for the model, "" for the directory."""

    names: tuple[str, ...]
    path: str = ""
    mmproj: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a person asks of a repository of GGUF files: types as in `Q4_K_M`, or names of files.

    `mmproj` None takes the projector that is most used, "" none.
    """

    text: str | None = None
    mmproj: str | None = None


def choose_files(
    sizes: Sizes, what: str, wish: Wish, read_index: Callable[[], Mapping[str, str]]
) -> Choice:
    """UnsupportedError for a repository that holds no model in a format that is read here,
    ConfigError where it holds several and none is asked for, CheckpointError where files that
    belong together are not all there. `what` names the repository; `read_index` is called where
    there is an index of safetensors.
    """
    has_safetensors = any(fnmatch(name, "*.safetensors") for name in sizes if "/" not in name)
    gguf = [name for name in sizes if name.lower().endswith(".gguf")]
    if wish.text is not None and not gguf:
        raise UnsupportedError(
            f"{what} holds no GGUF files, so there is no {wish.text} to choose.",
            f"Leave :{wish.text} out.",
        )
    if gguf and (wish.text is not None or not has_safetensors):
        return _choose_gguf({name: sizes[name] for name in gguf}, what, wish)
    _require_safetensors(sizes, what)
    names = _safetensors(sizes, read_index() if INDEX_NAME in sizes else None)
    lacking = [name for name in names if name not in sizes]
    if lacking:
        raise CheckpointError(
            f"{what} lacks {len(lacking)} of the files that its index names: {lacking[0]}, ...",
            "Its upload is not finished, or went wrong; take another revision or repository.",
        )
    return Choice(names=tuple(names))


def _require_safetensors(names: Collection[str], what: str) -> None:
    adapter = next((name for name in ADAPTER_FILES if name in names), None)
    if adapter is not None:
        alone = "" if "config.json" in names else ", and no config.json"
        raise adapter_error(what, adapter + alone)
    if not any(fnmatch(name, "*.safetensors") for name in names if "/" not in name):
        kinds = [name for name in names if any(fnmatch(name, kind) for kind in _PICKLES)]
        if kinds:
            raise UnsupportedError(
                f"{what} has its weights only as pickle ({kinds[0]}), which can run code.",
                "Take a repository with *.safetensors; most models have been converted.",
            )
        raise UnsupportedError(
            f"{what} holds no weights (*.safetensors, *.gguf).", "Is it the repository of a model?"
        )
    if "config.json" not in names:
        raise UnsupportedError(
            f"{what} has no config.json.",
            "It may hold only a part of a model; take the repository of the whole.",
        )


def _safetensors(names: Iterable[str], index: Mapping[str, str] | None) -> list[str]:
    """Small files first, then weights, each group by name.

    Weights are those of the index, else `model.safetensors`, else all of the top folder.
    """
    top = sorted(name for name in names if "/" not in name)
    small = [name for name in top if any(fnmatch(name, kind) for kind in _SMALL_FILES)]
    if index is not None:
        return small + sorted(set(index.values()))
    if "model.safetensors" in top:
        return [*small, "model.safetensors"]
    return small + [name for name in top if name.endswith(".safetensors")]


def _choose_gguf(sizes: Sizes, what: str, wish: Wish) -> Choice:
    models: dict[str, list[str]] = defaultdict(list)
    projectors: list[str] = []
    for name in sorted(sizes):
        if "mmproj" in PurePosixPath(name).name.lower():
            projectors.append(name)
        elif "imatrix" not in PurePosixPath(name).name.lower():
            models[_PART.sub("", name[: -len(".gguf")])].append(name)
    text = _one_model(models, sizes, what, wish.text)
    mmproj = None if wish.mmproj == "" else _one_projector(projectors, sizes, what, wish.mmproj)
    names = text if mmproj is None else [*text, mmproj]
    return Choice(names=tuple(names), path=text[0], mmproj=mmproj)


def _one_model(
    models: Mapping[str, list[str]], sizes: Sizes, what: str, wanted: str | None
) -> list[str]:
    """The files of the one model that is meant: several where it is split."""
    fitting = {
        stem: names
        for stem, names in models.items()
        if wanted is None or any(_is_called(name, wanted) for name in (f"{stem}.gguf", names[0]))
    }
    if len(fitting) != 1:
        listed = _listed(fitting or models, sizes)
        example = _type_of(next(iter(models), "model-Q4_K_M"))
        if fitting:
            message = f"{what} holds {len(fitting)} models in GGUF files: {listed}."
        elif wanted is None:
            message = f"{what} holds no language model, only: {', '.join(sizes)}."
        else:
            message = f"{what} holds no GGUF file called {wanted}. There are: {listed}."
        repo = what.partition(":")[0]
        raise ConfigError(message, f"Name a type, or a whole file: {repo}:{example}.")
    [names] = fitting.values()
    part = _PART.search(names[0][: -len(".gguf")])
    if part and len(names) != int(part[2]):
        raise CheckpointError(
            f"{what} has {len(names)} of the {int(part[2])} parts of {names[0]}.",
            "Its upload or its download is not finished; fetch it again, or take another.",
        )
    return names


def _one_projector(names: list[str], sizes: Sizes, what: str, wanted: str | None) -> str | None:
    if wanted is not None:
        fitting = [name for name in names if _is_called(name, wanted)]
        if len(fitting) != 1:
            listed = _listed({name: [name] for name in fitting or names}, sizes) or "none"
            count = len(fitting) or "no"
            raise ConfigError(
                f"There is no file {wanted}, and {what} has {count} projectors of that name: "
                f"{listed}.",
                "`mmproj` takes a file, or a name or type of one in the repository.",
            )
        return fitting[0]
    if len(names) < 2:
        return names[0] if names else None
    for kind in _USUAL_PROJECTORS:
        fitting = [name for name in names if _is_called(name, kind)]
        if len(fitting) == 1:
            return fitting[0]
    listed = _listed({name: [name] for name in names}, sizes)
    raise ConfigError(
        f"{what} holds {len(names)} projectors: {listed}.",
        "Choose one with `mmproj`, by its name or type.",
    )


def _is_called(name: str, wanted: str) -> bool:
    """Whether a file has that name, or that type between the dashes and dots of its name."""
    low = wanted.lower()
    file = PurePosixPath(name.lower())
    parts = re.split(r"[-.]", file.stem)
    # mmproj-model-f16: the type is a part; Q4_K_M/model-00001-of-00002: or the folder.
    return low in (name.lower(), file.name, *parts, file.parent.name)


def _type_of(stem: str) -> str:
    return re.split(r"[-.]", PurePosixPath(stem).name)[-1]


def _listed(models: Mapping[str, list[str]], sizes: Sizes) -> str:
    """Names with the gigabytes of all parts."""
    shown = []
    for names in list(models.values())[:_NUM_SHOWN]:
        bytes_ = sum(sizes[name] or 0 for name in names)
        shown.append(names[0] + (f" ({bytes_ / 1e9:.1f} GB)" if bytes_ else ""))
    return ", ".join(shown) + (", ..." if len(models) > _NUM_SHOWN else "")
