"""From what a person calls a model to a directory with its files.

A directory is taken as it is. `owner/name` or `owner/name@revision` is fetched from a hub into the
cache that all Hugging Face tools share, or found there. Only configuration, tokenizer and
safetensors files are fetched, or a GGUF pair; no code and no pickle ever is. Among the GGUF files
of a repository `owner/name:TYPE` or `owner/name:FILE` chooses.

Files come one after the other: a download that breaks off keeps what is complete, an interruption
stops at once, and hf_xet, where the hub offers it, uses the line fully within one file. Within one
run a broken connection is taken up again where it broke.

The environment is read at every call: HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_HOME.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ivl.checkpoint.hub_errors import HubUnreachable, failures, translate
from ivl.checkpoint.hub_files import INDEX_NAME, Choice, Wish, choose_files
from ivl.errors import CapacityError, CheckpointError, ConfigError, UnsupportedError
from ivl.family import FAMILY
from ivl.lfs_pointer import refuse_lfs_pointer
from ivl.paths import local_path

_log = logging.getLogger(__name__)

_DEFAULT_ENDPOINT = "https://huggingface.co"
_REQUEST_SECONDS = 30.0

_REFERENCE = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^:]*))?(:(?P<file>.+))?",
    re.ASCII,
)
# Of git's rules for names of branches and tags, those that keep a path inside its folder.
_REVISION = re.compile(r"(?!.*\.\.)(?!.*//)[^\s/\\:?*\[~^-][^\s\\:?*\[~^]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_SUFFIXES = (".gguf", ".safetensors", ".json", ".bin", ".pt", ".zip")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """One model on one hub, and where its files are kept."""

    repo: str
    revision: str
    endpoint: str
    cache: Path
    wish: Wish

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFiles:
    """Where a model is: a directory, or a text model's GGUF file, and its projector's."""

    path: Path
    mmproj: Path | None = None


def resolve(
    model: str | Path,
    *,
    mmproj: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> HubFiles:
    """The directory with the files of `model`, or its GGUF files, fetched first if need be.

    `mmproj` is the name or type of a repository's projector, "" for none; by default the only one,
    or the most usual. `revision` is a branch, a tag or a commit. When the hub cannot be reached, or
    `offline` is set, a complete copy in the cache is returned. `progress` draws a bar on stderr
    where that is a terminal. Every failure is an `IvlError`: CheckpointError for an unknown, gated
    or incomplete model and an unreachable hub, UnsupportedError for one without weights that are
    read here, CapacityError when the disk is too small, ConfigError for a model's name or a setting
    that cannot be used, and for a repository that holds several models.
    """
    name = os.fspath(model)
    path = os.fspath(local_path(name)) if name else ""
    if os.path.isdir(path):
        if revision is not None:
            raise ConfigError(
                f"{name} is a directory, which has no revision {revision!r}.",
                "Leave the revision out, or name the model by its hub id.",
            )
        return HubFiles(path=Path(path))
    if os.path.exists(path):
        raise CheckpointError(
            f"{name} is a file, and a model is a directory.",
            f"Give the directory that holds it: {os.path.dirname(path) or '.'}",
        )
    wanted = _hub_model(name, revision, cache_dir, mmproj)
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return _cached(wanted) or _raise_not_cached(wanted)
    try:
        return _download(wanted, progress)
    except HubUnreachable as error:
        try:
            kept = _cached(wanted)
        except CheckpointError:
            kept = None
        if kept is None:
            raise
        _log.warning("%s Using the copy of %s from the cache.", error.message, wanted)
        return kept


def _hub_model(
    name: str, revision: str | None, cache_dir: str | Path | None, mmproj: str | None
) -> HubModel:
    parts = _REFERENCE.fullmatch(name)
    if parts is None or parts["repo"].endswith(_FILE_SUFFIXES):
        raise no_such_model(name)
    pinned = parts["revision"]
    if pinned is not None and revision not in (None, pinned):
        raise ConfigError(
            f"{name} names the revision {pinned!r}, and {revision!r} is asked for beside it.",
            "Give one of them.",
        )
    chosen = next((r for r in (pinned, revision) if r is not None), "main")
    if not _REVISION.fullmatch(chosen):
        raise ConfigError(
            f"{chosen!r} cannot be a revision.", "Give a branch, a tag or a whole commit."
        )
    return HubModel(
        repo=parts["repo"],
        revision=chosen,
        endpoint=_endpoint(),
        cache=_cache(cache_dir),
        wish=Wish(text=parts["file"], mmproj=mmproj),
    )


def no_such_model(name: str) -> CheckpointError:
    """The error of a name under which nothing can be found, with what it may have been."""
    url = re.match(r"https?://[^/]+/([\w.-]+/[\w.-]+)", name)
    if url:
        return CheckpointError(f"{name} is an address.", f"Give the hub id alone: {url[1]}")
    looks_like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") != 1
    if "/" not in name and "\\" not in name:
        near = f"OpenGVLab/{name}" if name.startswith("InternVL") else "OpenGVLab/InternVL2_5-4B"
        sizes = ", ".join(size.name for size in FAMILY)
        hint = f"Give demo, a size ({sizes}), a directory, or a hub id such as {near}."
    elif looks_like_path or name.endswith(_FILE_SUFFIXES):
        hint = f"There is no such directory; the present one is {os.getcwd()}."
    else:
        hint = "A hub id looks like OpenGVLab/InternVL2_5-4B, or with a revision, owner/name@v1.0."
    return CheckpointError(f"There is no model {name!r}.", hint)


def _endpoint() -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or _DEFAULT_ENDPOINT
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"HF_ENDPOINT is {endpoint!r}, which is no web address.",
            f"Unset it, or set it like {_DEFAULT_ENDPOINT}.",
        )
    return endpoint


def _cache(cache_dir: str | Path | None) -> Path:
    """Where huggingface_hub keeps models, with the environment as it is now."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _download(wanted: HubModel, progress: bool) -> HubFiles:
    commit, sizes = _list_files(wanted)
    choice = choose_files(
        sizes,
        str(wanted),
        wanted.wish,
        lambda: _read_index(_fetch(wanted, INDEX_NAME, commit, None)),
    )
    directory = _snapshot(wanted, commit)
    missing = [name for name in choice.names if not (directory / name).exists()]
    missing_bytes = sum(sizes[name] or 0 for name in missing)
    _check_disk(wanted, missing_bytes)
    with _progress_bar(wanted, missing_bytes, progress) as bar:
        for name in missing:
            _fetch(wanted, name, commit, bar)
    _remember_revision(wanted, commit, choice.names[0])
    return _files_of(directory, choice)


def _files_of(directory: Path, choice: Choice) -> HubFiles:
    return HubFiles(
        path=directory / choice.path,
        mmproj=None if choice.mmproj is None else directory / choice.mmproj,
    )


def _list_files(wanted: HubModel) -> tuple[str, dict[str, int | None]]:
    """The commit behind the revision, and its files with their bytes (None: not told)."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=wanted.endpoint).model_info(
            wanted.repo, revision=wanted.revision, files_metadata=True, timeout=_REQUEST_SECONDS
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _not_a_hub(wanted) from error  # JSON, but not the description of a model.
    except failures() as error:
        raise translate(error, wanted.repo, wanted.revision, wanted.endpoint) from error
    if info.sha is None or info.siblings is None or not _COMMIT.fullmatch(info.sha):
        raise _not_a_hub(wanted)
    return info.sha, {file.rfilename: file.size for file in info.siblings}


def _not_a_hub(wanted: HubModel) -> CheckpointError:
    return CheckpointError(
        f"{wanted.endpoint} does not answer like a Hugging Face hub.", "Check HF_ENDPOINT."
    )


def _read_index(path: Path) -> dict[str, str]:
    refuse_lfs_pointer(path)
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        names = list(weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad_index(path) from error
    if not names or not all(isinstance(n, str) and os.path.basename(n) == n for n in names):
        raise _bad_index(path)
    return weight_map


def _bad_index(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is no index of safetensors files.", "Delete it and fetch the model again."
    )


def _check_disk(wanted: HubModel, needed_bytes: int) -> None:
    existing = wanted.cache.absolute()
    while not existing.exists():
        existing = existing.parent
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise CapacityError(
            f"{wanted} needs {needed_bytes / 1e9:.1f} GB more on disk, "
            f"and {wanted.cache} has {free_bytes / 1e9:.1f} GB free.",
            "Free some space, or set HF_HOME to a directory on a larger disk.",
        )


def _fetch(wanted: HubModel, name: str, revision: str, bar: Any) -> Path:
    """Fetch one file into the cache; its path there. `bar` counts its bytes, None: nobody does."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            wanted.repo,
            name,
            revision=revision,
            cache_dir=wanted.cache,
            endpoint=wanted.endpoint,
            tqdm_class=_part_of(bar),
        )
    except failures() as error:
        raise translate(error, wanted.repo, wanted.revision, wanted.endpoint, name) from error
    return Path(path)


def _remember_revision(wanted: HubModel, commit: str, name: str) -> None:
    """Let the cache know what the branch or tag stands for, now that the commit is complete."""
    if wanted.revision == commit or _recorded_commit(wanted) == commit:
        return
    try:
        _fetch(wanted, name, wanted.revision, None)
    except CheckpointError as error:
        # Everything is there; only finding it again without a connection needs this.
        _log.info("The revision of %s is not recorded: %s", wanted, error)


def _progress_bar(wanted: HubModel, total_bytes: int, progress: bool) -> Any:
    from huggingface_hub.utils import tqdm

    # With None, tqdm draws only where stderr is a terminal.
    disable = None if progress and total_bytes else True
    return tqdm(desc=str(wanted), total=total_bytes, unit="B", unit_scale=True, disable=disable)


def _part_of(bar: Any) -> type:
    """A bar for one file that draws nothing and passes its bytes on to the bar of the whole."""
    from huggingface_hub.utils import tqdm

    class Part(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if bar is not None:
                bar.update(n)

        def update_transfer(self, n: float | None = 1) -> None:
            """hf_xet reports bytes twice, as they arrive and as they are written."""

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
            """Nothing is drawn."""

    return Part


def _snapshot(wanted: HubModel, commit: str) -> Path:
    folder = "models--" + wanted.repo.replace("/", "--")
    return wanted.cache / folder / "snapshots" / commit


def _recorded_commit(wanted: HubModel) -> str | None:
    """The commit that the revision stood for when it was last fetched whole."""
    if _COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    ref = _snapshot(wanted, "").parent / "refs" / wanted.revision
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None


def _cached(wanted: HubModel) -> HubFiles | None:
    """The copy in the cache, None if there is none; CheckpointError if it is incomplete."""
    commit = _recorded_commit(wanted)
    directory = _snapshot(wanted, commit or "none")
    if commit is None or not directory.is_dir():
        return None
    files = [path for path in directory.rglob("*") if path.is_file()]
    sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}
    try:
        choice = choose_files(
            sizes, str(wanted), wanted.wish, lambda: _read_index(directory / INDEX_NAME)
        )
    except (UnsupportedError, CheckpointError):
        raise CheckpointError(
            f"The copy of {wanted} in {wanted.cache} is not complete.",
            "Fetch the rest with a connection; what is there is kept.",
        ) from None
    return _files_of(directory, choice)


def _raise_not_cached(wanted: HubModel) -> HubFiles:
    raise CheckpointError(
        f"{wanted} is not in {wanted.cache}, and fetching is switched off.",
        "Fetch it once with a connection (without offline mode, HF_HUB_OFFLINE unset).",
    )
