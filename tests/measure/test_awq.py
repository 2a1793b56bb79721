"""Making AWQ checkpoints: better than rounding, the same model otherwise, and resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import ivl
from ivl.checkpoint import awq as awq_files
from ivl.config import DecoderConfig, read_config
from ivl.documents.prompts import READ_QUESTION
from ivl.engine.prompt_builder import prepare_images, tokenize
from ivl.errors import IvlError, RequestError, UnsupportedError
from ivl.measure import awq
from ivl.measure.awq import Activations, fold_scales, gathering, quantize_awq
from ivl.measure.data import CALIBRATION
from ivl.model.build import build_model
from ivl.model.decoder import DecoderLayer, Rotary
from ivl.prompt.template import Message, render, user_message
from ivl.prompt.tiles import tile_grid
from tests.model.test_awq import MATRICES, quantize_directory

GOLDEN = Path(__file__).parents[1] / "golden"
DEMO = Path(ivl.__file__).parent / "assets" / "demo"
SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture(scope="module")
def demo_awq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("awq") / "demo-AWQ"
    result = quantize_awq(DEMO, out)
    images = [Image.open(path) for path in CALIBRATION.glob("*.png")]
    assert len(images) == 4
    tiles = sum(tile_grid(*image.size, max_tiles=2, tile_px=336).num_tiles for image in images)
    assert result.num_image_tokens == 144 * tiles
    return out


@dataclass(frozen=True)
class Page:
    image: Image.Image
    text: str


def held_out_pages() -> list[Page]:
    """Pages with their true texts that calibration has not seen."""
    texts = sorted(SAMPLES.glob("*.txt"))
    return [Page(Image.open(t.with_suffix(".png")), t.read_text("utf-8").strip()) for t in texts]


@torch.inference_mode()
def log_probabilities(directory: Path, pages: list[Page]) -> Tensor:
    """Of every token after the image, given the true text."""
    model = ivl.load(directory, device="cpu", dtype="float32")
    found = []
    for page in pages:
        tiles, counts = prepare_images([page.image], model.config)
        assert tiles is not None
        prompt = render(
            [user_message(READ_QUESTION, 1), Message("assistant", page.text)],
            tiles_per_image=counts,
            tokens_per_tile=model.config.tokens_per_tile,
            add_generation_prompt=False,
        )
        tokens = tokenize(prompt, model.engine.tokenizer)
        logits = model.logits(tokens.ids, model.encode_tiles(tiles))
        text = len(tokens) - tokens.is_image[::-1].index(True)
        found.append(logits[text:].log_softmax(-1))
    return torch.cat(found)


def test_reads_better_than_plain_rounding(demo_awq: Path, tmp_path: Path) -> None:
    pages = held_out_pages()
    assert len(pages) >= 8
    quantize_directory(DEMO, tmp_path / "plain", tmp_path / "rounded", "llm_config")
    original = log_probabilities(DEMO, pages)

    def divergence(directory: Path) -> float:
        ours = log_probabilities(directory, pages)
        return float((original.exp() * (original - ours)).sum(-1).mean())

    assert divergence(demo_awq) < 0.9 * divergence(tmp_path / "rounded")


def test_what_is_not_quantized_is_the_original_bit_by_bit(demo_awq: Path) -> None:
    before, after = (load_file(d / "model.safetensors") for d in (DEMO, demo_awq))
    folded = ("layernorm.weight", "v_proj.bias")
    for name, tensor in before.items():
        if "vision" not in name and name.endswith(tuple(MATRICES)):
            parts = {part: after.pop(name.removesuffix("weight") + part) for part in
                     ("qweight", "qzeros", "scales")}  # fmt: skip
            assert [t.dtype for t in parts.values()] == [torch.int32, torch.int32, torch.float16]
        else:
            kept = after.pop(name)
            assert kept.dtype == tensor.dtype
            assert torch.equal(kept, tensor) or name.endswith(folded), name
    assert not after
    assert not demo_awq.with_name(demo_awq.name + ".partial").exists()


def test_engines_are_told_what_it_is(demo_awq: Path) -> None:
    raw = json.loads((demo_awq / "config.json").read_text())
    for section in (raw, raw["llm_config"]):
        settings = section["quantization_config"]
        assert settings | {"quant_method": "awq", "bits": 4, "group_size": 128} == settings
        assert (settings["version"], settings["zero_point"]) == ("gemm", True)
        assert {"vision_model", "mlp1"} <= set(settings["modules_to_not_convert"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (demo_awq / name).read_bytes() == (DEMO / name).read_bytes()


def test_scales_are_held_by_bfloat16_too(demo_awq: Path) -> None:
    tensors = load_file(demo_awq / "model.safetensors")
    for name in (n for n in tensors if n.endswith(".scales")):
        assert torch.equal(tensors[name].float(), tensors[name].bfloat16().float())


def test_folded_scales_leave_the_layer_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped heads and biases included; the norms are kept in bfloat16 meanwhile."""
    config = DecoderConfig(
        architecture="qwen2", hidden_size=128, intermediate_size=256, num_layers=1,
        num_heads=4, num_kv_heads=2, head_dim=32, vocab_size=8, norm_eps=1e-6, rope_theta=1e4,
        max_position_embeddings=128, qkv_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    layer = DecoderLayer(config).requires_grad_(False)
    for p in layer.parameters():
        nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.3 if p.ndim == 1 else 0.1)
    x = torch.randn(1, 48, 128) * torch.linspace(0.1, 8, 128)
    cos, sin = Rotary(config)(torch.arange(48), 48, torch.float32)
    with torch.inference_mode(), gathering(layer, every=1) as inputs:
        before = layer(x, cos, sin, None, 0)

    def any_scales(_: list[Tensor], of: Activations, tie: Callable[..., Tensor] = Tensor.clone):
        return tie(torch.rand(len(of.mean)) * 3 + 0.3)

    monkeypatch.setattr(awq, "search_scales", any_scales)
    fold_scales(layer, inputs, config, torch.bfloat16)
    with torch.inference_mode():
        after = layer(x, cos, sin, None, 0)
    assert (after - before).norm() < 1e-5 * before.norm()


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awq_files, "MAX_SHARD_BYTES", 1)
    source, page = GOLDEN / "internvit-6b-like_internlm2", tmp_path / "page.txt"
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    page.write_text("What goes into a layer, one hundred times. " * 10)
    monkeypatch.setattr(awq, "check_tokenizer", lambda *_: LettersOnly())
    quantize_awq(source, whole, [page])

    def stop(doing: str, done: int, total: int) -> None:
        if doing == "quantizing layers" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_awq(source, resumed, [page], doing=stop)
    assert not resumed.exists()
    first = next((tmp_path / "resumed.partial").glob("model-00002*"))
    written = first.stat().st_mtime_ns
    quantize_awq(source, resumed, [page])
    assert {f.name: f.read_bytes() for f in whole.iterdir()} == {
        f.name: f.read_bytes() for f in resumed.iterdir()
    }
    assert (resumed / first.name).stat().st_mtime_ns == written
    original, quantized = (
        build_model(read_config(directory), directory, dtype=torch.float32)
        for directory in (source, resumed)
    )
    ids = torch.arange(90)
    nowhere = torch.zeros(90, dtype=torch.bool)
    with torch.inference_mode():
        logits = [m.logits(ids, nowhere, None) for m in (original, quantized)]
    assert (logits[0] - logits[1]).norm() < 0.3 * logits[0].norm()


class LettersOnly:
    """A tokenizer for checkpoints that have none."""

    bos_id = 1

    def encode_text(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("model", "out", "error", "message"),
    [
        ("demo", "there", RequestError, "exists"),
        ("awq", "new", UnsupportedError, "already"),
        ("tiny", "new", UnsupportedError, "multiple of 128"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    model: str,
    out: str,
    error: type[IvlError],
    message: str,
    tmp_path: Path,
    demo_awq: Path,
    tiny_model_dir: Path,
) -> None:
    (tmp_path / "there").mkdir()
    directory = {"demo": DEMO, "awq": demo_awq, "tiny": tiny_model_dir}[model]
    with pytest.raises(error, match=message):
        quantize_awq(directory, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["there"]


def test_foreign_leftovers_are_not_touched(tmp_path: Path) -> None:
    leftover = tmp_path / "out.partial" / "mine.txt"
    leftover.parent.mkdir()
    leftover.write_text("mine")
    with pytest.raises(RequestError, match=r"out\.partial"):
        quantize_awq(DEMO, tmp_path / "out")
    assert leftover.read_text() == "mine"


def test_a_copy_of_other_weights_starts_anew(tmp_path: Path) -> None:
    """What was finished is of use for the very same model and data only."""
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "unfinished.json").write_text(json.dumps({"ivl": "0", "source": "", "task": ""}))
    (partial / "model.safetensors").write_bytes(b"of another model")
    shutil.copytree(GOLDEN / "internvit-300m-like_qwen2", tmp_path / "model")
    with pytest.raises(IvlError):  # it has no tokenizer: that is told before anything is removed
        quantize_awq(tmp_path / "model", tmp_path / "out")
    assert (partial / "model.safetensors").exists()
