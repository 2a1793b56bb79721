"""`ivl plan`: what it prints, without torch and without anything being fetched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ivl.cli.main import run
from ivl.family import FAMILY

Output = pytest.CaptureFixture[str]


def record_of(arguments: list[str], capsys: Output) -> dict:
    assert run(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [[], ["78b", "--device", "a6000"], ["8b", "PICTURE"]])
def test_it_runs_where_torch_is_not_installed(arguments: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    Image.new("RGB", (1240, 1754)).save(picture)
    words = ["plan", *(str(picture) if word == "PICTURE" else word for word in arguments)]
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # every import of it fails
        f"from ivl.cli.main import run\nsys.exit(run({words}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom ivl.cli.main import run\n"
        "assert run(['plan', '8b', '--json']) == 0 and run(['plan']) == 0\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'rich'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_size_in_one_table(capsys: Output) -> None:
    rows = record_of(["--memory", "24GB", "--device", "cpu"], capsys)["rows"]
    assert {row["model"] for row in rows} == {size.name for size in FAMILY}
    fits = {(row["model"], row["type"]): row["fits"] for row in rows}
    assert fits["8b", "Q4_K_M"]
    assert not fits["78b", "Q4_K_M"]
    assert run(["plan", "--memory", "24GB", "--device", "cpu"]) == 0
    assert "78b" in capsys.readouterr().out


def test_pages_of_real_files(tmp_path: Path, capsys: Output) -> None:
    """A page of A4 is 2 x 3 tiles and a thumbnail, in a PDF too; lying on its side it is nearer to
    4 x 3."""
    picture = tmp_path / "page.png"
    Image.new("RGB", (1240, 1754), "white").save(picture)
    document = tmp_path / "pages.pdf"
    pages = [Image.new("RGB", size, "white") for size in ((1240, 1754), (1754, 1240))]
    pages[0].save(document, save_all=True, append_images=pages[1:], resolution=150)
    record = record_of(["8b", str(picture), str(document)], capsys)
    shown = [(page["grid"], page["num_tiles"]) for page in record["pages"]]
    assert shown == [([2, 3], 7), ([2, 3], 7), ([4, 3], 13)]
    assert record["work"]["tiles"] == [13]  # of the page that has the most
    assert all(page["num_tokens"] > 7 * 256 for page in record["pages"])
    assert run(["plan", "8b", str(document)]) == 0
    assert "page 2 of 2" in capsys.readouterr().out


def test_a_damaged_pdf(tmp_path: Path, capsys: Output) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7\nnothing")
    assert run(["plan", "8b", str(broken)]) == 2
    assert "hint:" in capsys.readouterr().err


def test_real_tensors_of_a_model_on_disk(tiny_model_dir: Path, capsys: Output) -> None:
    record = record_of([str(tiny_model_dir)], capsys)
    stored = sum(file.stat().st_size for file in tiny_model_dir.glob("*.safetensors"))
    planned = record["model"]["decoder_file_bytes"] + record["model"]["vision_file_bytes"]
    assert record["model"]["on_disk"]
    assert planned == pytest.approx(stored, rel=0.02)


def test_the_bars_show_what_is_missing(capsys: Output) -> None:
    assert run(["plan", "78b", "--device", "3090", "--backend", "llama.cpp"]) == 0
    out = capsys.readouterr().out
    assert "MISSING" in out
    assert "to run it" not in out or "FITS IF" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["9b"], "1b, 2b, 4b, 8b"),
        (["8b", "--device", "GTX Potato"], "NAME:24GB"),
        (["8b", "--images", "-1"], "0 or more"),
        (["--type", "Q8_0"], "ivl plan 8b"),
        (["8b", "nowhere.pdf"], "spelling"),
    ],
)
def test_nonsense(arguments: list[str], told: str, capsys: Output) -> None:
    assert run(["plan", *arguments]) == 2
    assert told in capsys.readouterr().err
