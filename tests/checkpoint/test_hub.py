"""Models by name: directories, a hub on localhost, and everything that goes wrong on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ivl.checkpoint.hub import resolve as resolve_files
from ivl.errors import CheckpointError, ConfigError


def resolve(*arguments: Any, **options: Any) -> Path:
    """The directory of a model of safetensors."""
    return resolve_files(*arguments, **options).path


COMMIT = "c0ffee" + "0" * 34
OTHER_COMMIT = "beef" + "1" * 36


WANTED = {
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.model",
    "vocab.json",
}


def names_in(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


# --- Names ---------------------------------------------------------------------------------------


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve(tmp_path, offline=True) == tmp_path
    with pytest.raises(ConfigError, match="no revision"):
        resolve(tmp_path, revision="v1")


def test_a_directory_below_the_home(isolated_home: Path) -> None:
    (isolated_home / "model").mkdir()
    assert resolve("~/model") == isolated_home / "model"


def test_a_directory_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/model").samefile(tmp_path / "owner" / "model")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("./modls/x", "no such directory"),
        ("/nowhere/at/all", "no such directory"),
        ("a/b/c", "no such directory"),
        ("models\\x", "no such directory"),
        ("models/x.gguf", "no such directory"),
        ("InternVL2_5-8B", "OpenGVLab/InternVL2_5-8B"),
        ("llava", "OpenGVLab/InternVL2_5-4B"),
        ("", "OpenGVLab/InternVL2_5-4B"),
        ("https://huggingface.co/owner/model/tree/main", "owner/model"),
        ("owner/mo del", "owner/name"),
        ("x" * 5000, "hub id"),
        ("nul\0", "hub id"),
    ],
)
def test_names_that_are_no_model(hub: Any, name: str, hint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(name)
    assert hint in caught.value.hint
    assert hub.requests == []


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file") as caught:
        resolve(str(file))
    assert str(tmp_path) in caught.value.hint


# --- Fetching ------------------------------------------------------------------------------------


def test_only_what_a_model_needs_is_fetched(model: Any, tmp_path: Path) -> None:
    directory = resolve("owner/model", cache_dir=tmp_path / "cache")
    assert names_in(directory) == WANTED
    assert model.fetched() == WANTED
    for name in WANTED:
        assert (directory / name).read_bytes() == model.files[name]
    assert directory.is_relative_to(tmp_path / "cache")


def test_without_an_index_the_single_file_is_enough(model: Any) -> None:
    del model.files["model.safetensors.index.json"]
    assert "consolidated.safetensors" in names_in(resolve("owner/model"))
    model.files["model.safetensors"] = b"all"
    directory = resolve("owner/model")
    assert "model.safetensors" in names_in(directory)


def test_a_second_call_fetches_nothing(model: Any) -> None:
    first = resolve("owner/model")
    model.requests.clear()
    assert resolve("owner/model") == first
    assert model.requests == ["GET /api/models/owner/model/revision/main"]


def test_the_cache_is_where_the_environment_says_now(
    model: Any, tmp_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve("owner/model").is_relative_to(isolated_home / ".cache/huggingface/hub")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "one"))
    assert resolve("owner/model").is_relative_to(tmp_path / "one" / "hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "two"))
    assert resolve("owner/model").is_relative_to(tmp_path / "two")


def test_the_cache_is_that_of_huggingface_hub(model: Any) -> None:
    import os

    import huggingface_hub

    directory = resolve("owner/model")
    found = huggingface_hub.snapshot_download(
        "owner/model",
        cache_dir=f"{os.environ['HF_HOME']}/hub",
        allow_patterns="*.safetensors",
        local_files_only=True,
    )
    assert Path(found) == directory


def test_revisions_are_pinned(model: Any) -> None:
    model.commits["v1.0"] = OTHER_COMMIT
    assert resolve("owner/model").name == COMMIT
    model.files["config.json"] = b'{"older": 1}'
    tagged = resolve("owner/model@v1.0")
    assert tagged.name == OTHER_COMMIT
    assert (tagged / "config.json").read_bytes() == b'{"older": 1}'
    assert resolve("owner/model", revision="v1.0") == tagged
    assert resolve(f"owner/model@{OTHER_COMMIT}") == tagged
    with pytest.raises(ConfigError, match="Give one"):
        resolve("owner/model@v1.0", revision="main")


def test_a_cut_connection_is_taken_up_where_it_broke(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 512)
    name = "model-00001-of-00002.safetensors"
    model.cut_after[name] = 6000
    directory = resolve("owner/model")
    assert (directory / name).read_bytes() == model.files[name]
    ranges = [r for r in model.requests if "bytes=" in r]
    assert len(ranges) == 1
    assert int(ranges[0].split("bytes=")[1].rstrip("-")) >= 5000


def test_what_is_complete_is_kept_when_a_download_breaks_off(model: Any) -> None:
    model.failing_files["model-00002-of-00002.safetensors"] = 403
    with pytest.raises(CheckpointError, match="refuses access"):
        resolve("owner/model")
    model.failing_files.clear()
    model.requests.clear()
    directory = resolve("owner/model")
    assert names_in(directory) == WANTED
    assert model.fetched() == {"model-00002-of-00002.safetensors"}


class _Terminal:
    """A stderr that looks like a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [True, False])
def test_progress_on_a_terminal(
    model: Any, monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    resolve("owner/model", progress=progress)
    assert ("owner/model: 100%" in terminal.text) == progress
    assert "safetensors" not in terminal.text


def test_no_progress_in_a_log(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    resolve("owner/model")
    assert capsys.readouterr() == ("", "")


# --- Offline -------------------------------------------------------------------------------------


def test_offline(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="switched off"):
        resolve("owner/model", offline=True)
    directory = resolve("owner/model")
    model.requests.clear()
    assert resolve("owner/model", offline=True) == directory
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("owner/model") == directory
    assert resolve(f"owner/model@{COMMIT}") == directory
    with pytest.raises(CheckpointError, match="switched off"):
        resolve("owner/model@v2")
    assert model.requests == []


def test_offline_wants_a_complete_copy(model: Any) -> None:
    directory = resolve("owner/model")
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not complete"):
        resolve("owner/model", offline=True)


def test_a_copy_is_used_while_the_hub_is_down(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    directory = resolve("owner/model")
    model.failure = (503, {})
    assert resolve("owner/model") == directory
    assert "from the cache" in caplog.text


def test_an_update_that_breaks_off_leaves_the_old_copy(model: Any) -> None:
    old = resolve("owner/model")
    model.commits["main"] = OTHER_COMMIT
    model.files["model-00002-of-00002.safetensors"] = b"newer"
    model.failing_files["model-00002-of-00002.safetensors"] = 403
    with pytest.raises(CheckpointError, match="refuses access"):
        resolve("owner/model")
    assert resolve("owner/model", offline=True) == old
    model.failing_files.clear()
    assert resolve("owner/model").name == OTHER_COMMIT
    assert resolve("owner/model", offline=True).name == OTHER_COMMIT


def test_importing_does_not_load_the_library() -> None:
    code = "import sys, ivl.checkpoint.hub as h; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
