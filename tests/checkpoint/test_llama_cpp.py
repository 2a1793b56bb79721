"""llama.cpp's own programs on our files. They run where IVL_LLAMA_CPP names a build of it:

IVL_LLAMA_CPP=/path/to/llama.cpp/build pytest tests/checkpoint/test_llama_cpp.py
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ivl
from ivl.checkpoint.gguf import GGUFFile
from ivl.cli.main import run

# Read when the module is: the fixture that isolates tests hides the variables of the user.
BUILD = os.environ.get("IVL_TEST_LLAMA_CPP") or os.environ.get("IVL_LLAMA_CPP") or ""
SAMPLES = Path(__file__).parents[2] / "samples"
MIXES = ["Q8_0", "Q4_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "Q6_K"]

pytestmark = pytest.mark.skipif(
    not (Path(BUILD) / "bin" / "llama-quantize").exists(),
    reason="IVL_LLAMA_CPP names no build of llama.cpp",
)


def peer(program: str, *arguments: str | Path) -> str:
    command = [str(Path(BUILD) / "bin" / program), *map(str, arguments)]
    environment = os.environ | {"LD_LIBRARY_PATH": str(Path(BUILD) / "bin")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("pair")
    assert run(["convert", "demo", str(out), "--type", "F32", "--vision", "F32", "-q"]) == 0
    return out / "demo-F32.gguf", out / "mmproj-demo-F32.gguf"


@pytest.mark.parametrize("sample", ["label", "note", "receipt", "tag"])
def test_the_pair_reads_as_it_does_here(
    sample: str, pair: tuple[Path, Path], changed: Callable[..., Path], tmp_path: Path
) -> None:
    """All that the demo answers, to the last character, about one tile that nobody has to resize.

    llama.cpp puts the class token behind the patches and adds the positions in the order of the
    file, where the class token's is the first: each patch gets its neighbour's. Given the positions
    in that order, it computes what InternVL computes.
    """
    positions = GGUFFile(pair[1]).read("v.position_embd.weight").view(np.float32)
    turned = {"v.position_embd.weight": np.roll(positions, -1, 0)}
    mmproj = changed(pair[1], tmp_path / "mmproj.gguf", {}, turned)
    model = ivl.load("demo", dtype="float32")
    px = model.config.tile_px
    page = tmp_path / "page.png"
    Image.open(SAMPLES / f"{sample}.png").convert("RGB").resize((px, px)).save(page)
    question = "Read all the text in the image."
    theirs = peer(
        "llama-mtmd-cli", "-m", pair[0], "--mmproj", mmproj, "--image", page,
        "-p", f"<__media__>\n{question}", "--jinja", "--temp", "0", "-n", "150", "-t", "2",
        "-ctk", "f32", "-ctv", "f32", "-fa", "off",
    )  # fmt: skip
    ours = model.ask(page, question, max_tokens=150).text.strip()
    assert len(ours) > 30
    assert theirs.strip() == ours


@pytest.mark.parametrize("mix", MIXES)
def test_tensors_get_the_same_types(mix: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    peer("llama-quantize", pair[0], tmp_path / "theirs.gguf", mix, "2")
    assert run(["quantize", str(pair[0]), str(tmp_path / "ours.gguf"), mix, "-q"]) == 0
    theirs, ours = (GGUFFile(tmp_path / f"{name}.gguf") for name in ("theirs", "ours"))
    found = {name: entry.format.name for name, entry in ours.tensors.items()}
    assert found == {name: entry.format.name for name, entry in theirs.tensors.items()}
    assert ours.metadata["general.file_type"] == theirs.metadata["general.file_type"]


def test_an_importance_matrix_is_taken(pair: tuple[Path, Path], tmp_path: Path) -> None:
    matrix, out = tmp_path / "imatrix.gguf", tmp_path / "out.gguf"
    assert run(["imatrix", "demo", str(SAMPLES), "-o", str(matrix), "-q"]) == 0
    log = peer("llama-quantize", "--imatrix", matrix, pair[0], out, "Q4_0", "2")
    assert "did not find weights for blk" not in log
    assert GGUFFile(out).metadata["quantize.imatrix.entries_count"] == 66
