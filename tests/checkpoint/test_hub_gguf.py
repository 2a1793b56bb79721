"""GGUF pairs from a hub: which files are fetched, and which questions a repository leaves open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ivl.checkpoint.hub import resolve
from ivl.cli.main import run
from ivl.errors import CheckpointError, ConfigError, UnsupportedError

Output = pytest.CaptureFixture[str]
COMMIT = "c0ffee" + "0" * 34


@pytest.fixture(scope="module")
def tiny_pair(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("pair")
    for kind in ("Q8_0", "F16"):
        arguments = ["convert", str(tiny_model_dir), str(out), "--type", kind, "--vision", kind]
        assert run([*arguments, "-q"]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def holds(hub: Any, *names: str) -> None:
    hub.files.update({name: name.encode() for name in names})


def test_the_only_pair_answers(hub: Any, tiny_pair: dict[str, bytes], capsys: Output) -> None:
    hub.files |= {name: tiny_pair[name] for name in ("tiny-Q8_0.gguf", "mmproj-tiny-F16.gguf")}
    hub.files |= {"README.md": b"# A model", ".gitattributes": b"*.gguf lfs"}
    assert run(["ask", "What?", "--model", "owner/model", "--max-tokens", "4"]) == 0
    assert len(capsys.readouterr().out.strip()) == 4
    assert hub.fetched() == {"tiny-Q8_0.gguf", "mmproj-tiny-F16.gguf"}
    hub.requests.clear()
    assert run(["info", "owner/model"]) == 0
    shown = capsys.readouterr().out
    assert "Q8_0" in shown
    assert "4 tokens" in shown
    assert hub.requests == []


def test_several_types_are_for_the_person_to_choose(
    hub: Any, tiny_pair: dict[str, bytes], tmp_path: Path, capsys: Output
) -> None:
    hub.files |= tiny_pair
    picture = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (60, 60), "red").save(picture)
    asked = ["ask", str(picture), "What?", "--max-tokens", "2", "--model"]
    assert run([*asked, "owner/model"]) == 2
    error = capsys.readouterr().err
    assert "2 models in GGUF files: tiny-F16.gguf" in error
    assert re.search(r"owner/model:(F16|Q8_0)", error)
    assert hub.fetched() == set()
    # Of the projectors one is usual; another may be named, as may a file on the disk.
    assert run([*asked, "owner/model:q8_0"]) == 0
    assert hub.fetched() == {"tiny-Q8_0.gguf", "mmproj-tiny-F16.gguf"}
    assert run([*asked, "owner/model:tiny-Q8_0.gguf", "--mmproj", "Q8_0"]) == 0
    assert hub.fetched() == {"tiny-Q8_0.gguf", "mmproj-tiny-F16.gguf", "mmproj-tiny-Q8_0.gguf"}
    own = tmp_path / "own.gguf"
    own.write_bytes(tiny_pair["mmproj-tiny-Q8_0.gguf"])
    hub.requests.clear()
    assert run([*asked, "owner/model:F16", "--mmproj", str(own)]) == 0
    assert hub.fetched() == {"tiny-F16.gguf"}
    assert run([*asked, "owner/model:Q8_0", "--offline"]) == 0
    capsys.readouterr()
    assert run([*asked, "owner/model:Q4_K_M"]) == 2
    assert "no GGUF file called Q4_K_M" in capsys.readouterr().err
    assert run([*asked, "owner/model:Q8_0", "--mmproj", "Q4_0"]) == 2
    assert "no file Q4_0" in capsys.readouterr().err


def test_a_split_model_in_a_folder(hub: Any) -> None:
    parts = [f"Q4_K_M/big-Q4_K_M-{part:05}-of-00003.gguf" for part in (1, 2, 3)]
    holds(hub, *parts, "Q8_0/big-Q8_0.gguf", "mmproj-big-BF16.gguf", "big-imatrix.gguf")
    found = resolve("owner/model@main:Q4_K_M")
    assert found.path.relative_to(found.path.parents[1]) == Path(parts[0])
    assert found.mmproj is not None
    assert found.mmproj.read_bytes() == b"mmproj-big-BF16.gguf"
    assert all((found.path.parents[1] / part).exists() for part in parts)
    assert resolve("owner/model:Q4_K_M", offline=True) == found
    assert resolve("owner/model:Q4_K_M", mmproj="").mmproj is None


def test_parts_that_were_never_uploaded(hub: Any) -> None:
    holds(hub, "big-Q4_K_M-00001-of-00003.gguf", "big-Q4_K_M-00003-of-00003.gguf")
    with pytest.raises(CheckpointError, match="2 of the 3 parts"):
        resolve("owner/model")
    assert hub.fetched() == set()


def test_safetensors_come_first_unless_a_gguf_file_is_asked_for(model: Any) -> None:
    with pytest.raises(UnsupportedError, match="no GGUF files"):
        resolve("owner/model:Q4_K_M")
    holds(model, "model-Q4_K_M.gguf", "mmproj-model-f16.gguf")
    assert (resolve("owner/model").path / "config.json").exists()
    assert "model-Q4_K_M.gguf" not in model.fetched()
    assert resolve("owner/model:Q4_K_M").path.name == "model-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("mmproj-a-F16.gguf",), "no language model"),
        (("a-Q4_0.gguf", "mmproj-x.gguf", "mmproj-y.gguf"), "2 projectors"),
        (("a-Q4_0.gguf", "b-Q4_0.gguf"), "2 models"),
    ],
)
def test_what_cannot_be_chosen(names: tuple[str, ...], message: str, hub: Any) -> None:
    holds(hub, *names)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve("owner/model")
    assert caught.value.hint
    assert hub.fetched() == set()


def test_offline_wants_the_type_that_was_fetched(hub: Any) -> None:
    holds(hub, "a-Q4_0.gguf", "a-Q8_0.gguf")
    resolve("owner/model:Q4_0")
    assert resolve("owner/model", offline=True).path.name == "a-Q4_0.gguf"
    with pytest.raises(ConfigError, match="no GGUF file called Q8_0"):
        resolve("owner/model:Q8_0", offline=True)
