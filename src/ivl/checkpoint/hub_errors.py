"""What can go wrong between here and a hub, in words that help."""

from __future__ import annotations

import errno

from ivl.errors import CapacityError, CheckpointError, ConfigError, IvlError

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
        return CheckpointError(
            f"{endpoint} does not answer like a Hugging Face hub.",
            "Check HF_ENDPOINT, and whether the network wants you to log in.",
        )
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
