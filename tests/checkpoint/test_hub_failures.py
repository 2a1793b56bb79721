"""Everything that goes wrong on the way from a hub, each with its own words."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from ivl.checkpoint.hub import resolve
from ivl.errors import CapacityError, CheckpointError, ConfigError, UnsupportedError


@pytest.mark.parametrize(
    ("failure", "message", "hint"),
    [
        ((404, {"X-Error-Code": "RepoNotFound"}), "no model owner/model", "spelling"),
        ((404, {}), "no model owner/model", "spelling"),
        ((401, {}), "no model owner/model", "HF_TOKEN"),
        ((403, {"X-Error-Code": "GatedRepo"}), "gated", "HF_TOKEN"),
        ((401, {"X-Error-Code": "GatedRepo"}), "gated", "/owner/model"),
        ((404, {"X-Error-Code": "RevisionNotFound"}), "no revision 'main'", "tree/main"),
        ((403, {}), "refuses access", "HF_TOKEN"),
        (
            (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
            "refuses access",
            "HF_TOKEN",
        ),
        ((429, {}), "fewer requests", "Wait"),
        ((500, {}), "out of order", "later"),
        ((503, {}), "out of order", "later"),
        ((418, {}), "refuses the request", "HF_ENDPOINT"),
    ],
)
def test_what_a_hub_refuses(
    model: Any, failure: tuple[int, dict[str, str]], message: str, hint: str
) -> None:
    model.failure = failure
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve("owner/model")
    assert hint in caught.value.hint


def test_an_unknown_model_and_revision(model: Any) -> None:
    with pytest.raises(CheckpointError, match="no model owner/other"):
        resolve("owner/other")
    with pytest.raises(CheckpointError, match="no revision 'v9'"):
        resolve("owner/model@v9")


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(CheckpointError, match="cannot be reached") as caught:
        resolve("owner/model")
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://x", "http://", "http://[", "x y"])
def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        resolve("owner/model")


@pytest.mark.parametrize(
    "listing", [b"<html>log in</html>", b"[]", b"{}", b'{"id": "owner/model"}']
)
def test_something_else_answers(model: Any, listing: bytes) -> None:
    model.listing = listing
    with pytest.raises(CheckpointError, match="not answer like a Hugging Face hub"):
        resolve("owner/model")


@pytest.mark.parametrize("name", ["owner/a--b", "owner/x..y", "owner/x."])
def test_ids_that_no_hub_gives(hub: Any, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        resolve(name)


@pytest.mark.parametrize("revision", ["", "../../x", "/etc", "a b", "-x", "a//b"])
def test_impossible_revisions(hub: Any, revision: str) -> None:
    for offline in (True, False):
        with pytest.raises(ConfigError, match="cannot be a revision"):
            resolve("owner/model", revision=revision, offline=offline)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json", "pytorch_model.bin"}, "only as pickle"),
        ({"config.json", "README.md"}, "no weights"),
        ({"adapter_model.safetensors"}, r"LoRA adapter.*no config\.json"),
        ({"adapter_config.json", "config.json", "model.safetensors"}, "LoRA adapter"),
        ({"adapter_config.json", "adapter_model.bin"}, "LoRA adapter"),
        ({"vision.safetensors"}, r"no config\.json"),
        ({"config.json", "unet/model.safetensors"}, "no weights"),
        (set(), "no weights"),
    ],
)
def test_repositories_of_another_kind(hub: Any, files: set[str], message: str) -> None:
    hub.files.update(dict.fromkeys(files, b"{}"))
    with pytest.raises(UnsupportedError, match=message):
        resolve("owner/model")
    assert hub.fetched() == set()


@pytest.mark.parametrize(
    "index", [b"{", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": "../x"}}']
)
def test_a_damaged_index(model: Any, index: bytes) -> None:
    model.files["model.safetensors.index.json"] = index
    with pytest.raises(CheckpointError, match="no index"):
        resolve("owner/model")


def test_a_shard_that_was_never_uploaded(model: Any) -> None:
    del model.files["model-00002-of-00002.safetensors"]
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        resolve("owner/model")
    assert "model-00001-of-00002.safetensors" not in model.fetched()


def test_a_disk_that_is_too_small(model: Any, tmp_path: Path) -> None:
    model.claimed_bytes["model-00001-of-00002.safetensors"] = 10**18
    with pytest.raises(CapacityError, match=r"1000000000\.0 GB") as caught:
        resolve("owner/model", cache_dir=tmp_path / "not" / "there" / "yet")
    assert "HF_HOME" in caught.value.hint
    assert "model-00001-of-00002.safetensors" not in model.fetched()


def test_a_cache_that_cannot_be_written(model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        resolve("owner/model", cache_dir=tmp_path / "file")
