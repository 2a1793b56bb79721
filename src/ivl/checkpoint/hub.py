"""From what a person calls a model to its files: the bundled one, a size, a path, a hub id.

A directory is taken as it is. `owner/name` or `owner/name@revision` is fetched from a hub into the
cache that all Hugging Face tools share, or found there. Only configuration, tokenizer and
safetensors files are fetched, or a GGUF pair; no code and no pickle ever is. Among the GGUF files
of a repository `owner/name:TYPE` or `owner/name:FILE` chooses. What a repository holds is a list of
names and sizes, so files are chosen by their names; what they are is read from their metadata.

Files come one after the other: a download that breaks off keeps what is complete, an interruption
stops at once, and hf_xet, where the hub offers it, uses the line fully within one file. Within one
run a broken connection is taken up again where it broke.

The environment is read at every call: HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_HOME.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ivl.checkpoint.safetensors import INDEX_NAME, read_index
from ivl.errors import CapacityError, CheckpointError, ConfigError, IvlError, UnsupportedError
from ivl.family import FAMILY, find
from ivl.paths import local_path
from ivl.refused import ADAPTER_FILES, adapter_error

DEMO = Path(__file__).parents[1] / "assets" / "demo"


def locate_pair(
    model: str | os.PathLike[str],
    mmproj: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    show_progress: bool = False,
) -> HubFiles:
    """The directory of a model's files, downloaded first when it is on a hub, or the GGUF file of
    its language model; and the projector's file where one is named or comes from a hub.

    `mmproj` is a file, or the name or type of one in the model's repository. Errors: `resolve`;
    ConfigError for a revision of a file.
    """
    name = os.fspath(model)
    projector = None if mmproj is None else local_path(mmproj)
    if name == "demo":
        if revision is not None:
            raise ConfigError("The bundled model has no revision.", "Leave it out.")
        return HubFiles(path=DEMO, mmproj=projector)
    file = local_path(name)
    if file.is_file():
        if revision is not None:
            raise ConfigError(f"{name} is a file, which has no revision.", "Leave it out.")
        return HubFiles(path=file, mmproj=projector)
    size = find(name) if not file.exists() else None
    name = size.hub_id if size else name
    is_file = projector is not None and projector.exists()
    found = resolve(
        name,
        mmproj="" if is_file else None if mmproj is None else os.fspath(mmproj),
        revision=revision,
        offline=offline,
        progress=show_progress,
    )
    return HubFiles(path=found.path, mmproj=found.mmproj or projector)


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
        kept = _cached(wanted)
        if kept is None:
            raise CheckpointError(
                f"{wanted} is not in {wanted.cache}, and fetching is switched off.",
                "Fetch it once with a connection (without offline mode, HF_HUB_OFFLINE unset).",
            )
        return kept
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
        lambda: read_index(_fetch(wanted, INDEX_NAME, commit, None)),
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
        raise _not_a_hub(wanted.endpoint) from error  # JSON, but not the description of a model.
    except failures() as error:
        raise translate(error, wanted.repo, wanted.revision, wanted.endpoint) from error
    if info.sha is None or info.siblings is None or not _COMMIT.fullmatch(info.sha):
        raise _not_a_hub(wanted.endpoint)
    return info.sha, {file.rfilename: file.size for file in info.siblings}


def _not_a_hub(endpoint: str) -> CheckpointError:
    return CheckpointError(
        f"{endpoint} does not answer like a Hugging Face hub.",
        "Check HF_ENDPOINT, and whether the network wants you to log in.",
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
            sizes, str(wanted), wanted.wish, lambda: read_index(directory / INDEX_NAME)
        )
    except (UnsupportedError, CheckpointError):
        raise CheckpointError(
            f"The copy of {wanted} in {wanted.cache} is not complete.",
            "Fetch the rest with a connection; what is there is kept.",
        ) from None
    return _files_of(directory, choice)


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
    sizes: Sizes, what: str, wish: Wish, read_index: Callable[[], list[str]]
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


def _safetensors(names: Iterable[str], index: list[str] | None) -> list[str]:
    """Small files first, then weights, each group by name.

    Weights are those of the index, else `model.safetensors`, else all of the top folder.
    """
    top = sorted(name for name in names if "/" not in name)
    small = [name for name in top if any(fnmatch(name, kind) for kind in _SMALL_FILES)]
    if index is not None:
        return small + index
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


_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class HubUnreachable(CheckpointError):
    """No answer from the hub, or only that it is out of order: a copy on disk would do."""


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that huggingface_hub lets through when a request or a file fails.

    Its errors of HTTP derive from the base class of its HTTP library, whichever that is in its
    version; the plain OSError and ValueError come from files, timeouts and answers that are no
    JSON.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    http_library_error = HfHubHTTPError.__bases__[0]
    return http_library_error, EntryNotFoundError, OSError, ValueError


def translate(
    error: BaseException, repo: str, revision: str, endpoint: str, file_name: str = ""
) -> IvlError:
    """The error for a person. `file_name` is set while a file is being fetched."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.LocalEntryNotFoundError) and error.__cause__ is not None:
        return translate(error.__cause__, repo, revision, endpoint, file_name)
    if isinstance(error, hub.HFValidationError):
        return ConfigError(
            f"{repo!r} cannot be the name of a model on a hub.",
            "A hub id looks like OpenGVLab/InternVL2_5-4B.",
        )
    if isinstance(error, hub.GatedRepoError):
        return CheckpointError(
            f"{repo} is gated: its owners want their terms accepted first.",
            f"Accept them at {endpoint}/{repo}, then set HF_TOKEN to a token of your account.",
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return _unknown_model(repo)
    if isinstance(error, hub.RevisionNotFoundError):
        return CheckpointError(
            f"{repo} has no revision {revision!r}.",
            f"Give a branch, a tag or a whole commit; {endpoint}/{repo}/tree/main lists them.",
        )
    if isinstance(error, hub.HfHubHTTPError):
        status = error.response.status_code
        bad_token = "Invalid credentials" in error.response.headers.get("X-Error-Message", "")
        if not file_name and (status == 404 or (status == 401 and not bad_token)):
            # The hub says 401 for what does not exist, too: it tells strangers nothing.
            return _unknown_model(repo)
        return _http_error(status, repo, endpoint, file_name)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError(
            f"The disk is full; {file_name or repo} could not be written.",
            "Free some space and run it again: files that are complete are kept.",
        )
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return CheckpointError(
            f"The cache cannot be written: {error.filename or error}.",
            "Set HF_HOME to a directory that you may write to.",
        )
    if isinstance(error, ValueError):
        return _not_a_hub(endpoint)
    return _no_connection(error, endpoint, file_name)


def _http_error(status: int, repo: str, endpoint: str, file_name: str) -> IvlError:
    what = f"{repo}: {file_name}" if file_name else repo
    if status in (401, 403):
        return CheckpointError(
            f"{endpoint} refuses access to {what} (status {status}).",
            "Check HF_TOKEN: it may be wrong, expired, or without the right to read this model.",
        )
    if status == 429:
        return HubUnreachable(
            f"{endpoint} wants fewer requests (status 429).",
            "Wait some minutes; with HF_TOKEN set, more are allowed.",
        )
    if status >= 500:
        return HubUnreachable(
            f"{endpoint} is out of order (status {status} for {what}).",
            "Try again later: files that are complete are kept.",
        )
    return CheckpointError(
        f"{endpoint} refuses the request for {what} (status {status}).", "Check HF_ENDPOINT."
    )


def _unknown_model(repo: str) -> CheckpointError:
    return CheckpointError(
        f"The hub has no model {repo}, or does not show it to you.",
        "Check the spelling (if it is meant as a directory: there is none of that name). "
        "For a private model set HF_TOKEN.",
    )


def _no_connection(error: BaseException, endpoint: str, file_name: str) -> HubUnreachable:
    lines = str(error).strip().splitlines()
    reason = lines[0].rstrip(".") if lines else type(error).__name__
    if file_name:
        return HubUnreachable(
            f"The download of {file_name} broke off: {reason}.",
            "Run it again: files that are complete are kept.",
        )
    return HubUnreachable(
        f"The hub at {endpoint} cannot be reached: {reason}.",
        "Check the connection and HF_ENDPOINT, or give a directory.",
    )
