"""What a checkpoint says of its name and licence, in the ways that publishers say it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivl.checkpoint.identity import identity_of_directory, identity_of_gguf

APACHE = "            Apache License\n          Version 2.0, January 2004\n"


@pytest.mark.parametrize(
    ("files", "licence", "source"),
    [
        ({}, None, ""),
        ({"README.md": "# A model\nlicense: mit\n"}, None, ""),  # no front matter
        ({"README.md": "---\nlicense: mit\n---\n"}, "mit", "README.md"),
        ({"README.md": "\ufeff---\nlicense: 'mit'\n---"}, "mit", "README.md"),
        ({"README.md": "---\ntags: [license]\nlicense: []\n---\n"}, None, ""),
        ({"README.md": "---\nlicense: other\n---\n"}, "other", "README.md"),
        ({"README.md": "---\nlicense: [mit, 'bsd']\n---\n"}, "mit, bsd", "README.md"),
        ({"LICENSE": APACHE}, "Apache License, Version 2.0", "LICENSE"),
        ({"LICENSE.txt": "\n# MIT License\n\nCopyright"}, "MIT License", "LICENSE.txt"),
        ({"LICENSE": "", "COPYING": "Own terms\n"}, "Own terms", "COPYING"),
        ({"LICENSE": APACHE, "README.md": "---\nlicense: mit\n---\n"}, "mit", "README.md"),
    ],
)
def test_licences(files: dict[str, str], licence: str | None, source: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = identity_of_directory(tmp_path)
    assert (found.licence, found.licence_source) == (licence, source)


def test_a_licence_of_its_own_is_named_with_its_link(tmp_path: Path) -> None:
    """As the card of InternVL2_5-78B has it."""
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: qwen\n"
        "license_link: https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE\n---\n"
    )
    found = identity_of_directory(tmp_path)
    assert found.licence == "qwen"
    assert found.licence_link is not None
    assert found.licence_link.endswith("/LICENSE")


@pytest.mark.parametrize(
    ("card", "path", "name", "source"),
    [
        ("---\nlicense: mit\n---\n# InternVL3-8B\n", "", "InternVL3-8B", "README.md"),
        ("# [InternVL2-8B](https://x.y) **new**\n", "", "InternVL2-8B new", "README.md"),
        ("# Model Card for model\n", "org/name", "org/name", "config.json"),
        (None, "org/name-1.5_b", "org/name-1.5_b", "config.json"),
        (None, "/home/me/out", None, ""),
        (None, "./out", None, ""),
        (None, "C:\\models\\x", None, ""),
        (None, "a/b/c", None, ""),
        (None, "", None, ""),
    ],
)
def test_names(card: str | None, path: str, name: str | None, source: str, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": path}))
    found = identity_of_directory(tmp_path)
    assert (found.name, found.name_source) == (name, source)


def test_a_download_is_called_as_its_repository(tmp_path: Path) -> None:
    directory = tmp_path / "models--OpenGVLab--InternVL2_5-8B" / "snapshots" / "0123"
    directory.mkdir(parents=True)
    assert identity_of_directory(directory).name == "OpenGVLab/InternVL2_5-8B"


def test_metadata_of_gguf_files() -> None:
    text = {"general.name": " A name ", "general.license": "other", "general.license.name": "own"}
    found = identity_of_gguf(text)
    assert (found.name, found.licence) == ("A name", "own")
    other = identity_of_gguf({"general.basename": "base"}, {"general.license": ["mit", "bsd"]})
    assert (other.name, other.licence) == ("base", "mit, bsd")
    assert other.licence_source == "general.license of the projector"
    assert identity_of_gguf({"general.name": "", "general.license": 3}).licence is None
