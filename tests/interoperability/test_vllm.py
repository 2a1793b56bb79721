"""AWQ checkpoints of ours in vLLM: it loads them and gives the tokens that ivl gives.

Runs where IVL_VLLM_PYTHON names an interpreter with vLLM (docs/awq.md says how to make one).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import ivl
from ivl.checkpoint.names import sources
from ivl.config import parse_config
from ivl.documents.prompts import READ_QUESTION
from ivl.engine.prompt_builder import prepare_images, tokenize
from ivl.measure.awq import quantize_awq
from ivl.prompt.template import Prompt, prompt_string, render, user_message
from tests.random_model import random_model

HERE = Path(__file__).parent
SAMPLES = HERE.parents[1] / "samples"
DEMO = Path(ivl.__file__).parent / "assets" / "demo"
NUM_TOKENS = 24
NEAR_TIE = 0.02
"""Of logits: what float16 in vLLM and float32 here may differ by, relative to their spread."""


def prompts(config: Any) -> list[tuple[Path | None, Prompt]]:
    """A question about each sample, and one about none."""
    asked: list[tuple[Path | None, Prompt]] = []
    for image in (*sorted(SAMPLES.glob("*.png")), None):
        tiles = [] if image is None else prepare_images([image], config)[1]
        message = user_message(READ_QUESTION, len(tiles))
        prompt = render(
            [message],
            template=config.template,
            tiles_per_image=tiles,
            tokens_per_tile=config.tokens_per_tile,
        )
        asked.append((image, prompt))
    return asked


def vllm_tokens(python: Path, directory: Path, asked: list[tuple[Path | None, Prompt]]) -> Any:
    questions = [
        {
            # vLLM puts the image's tokens, and the marks around them, in the place of <image>.
            "prompt": prompt_string(prompt)
            .replace("<IMG_CONTEXT>", "")
            .replace("<img></img>", "<image>"),
            "image": None if image is None else str(image),
            "max_tokens": NUM_TOKENS,
        }
        for image, prompt in asked
    ]
    done = subprocess.run(
        [str(python), str(HERE / "vllm_tokens.py"), str(directory), "float16"],
        input=json.dumps(questions),
        env={**os.environ, "PYTHONPATH": str(HERE / "vllm_site")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@torch.inference_mode()
def assert_greedy(model: Any, image: Path | None, prompt: Prompt, theirs: list[int]) -> int:
    """Each of their tokens is the likeliest here after those before it, or nearly as likely.

    Returns how many are the likeliest.
    """
    network, config = model.engine.model, model.config
    tokens = tokenize(prompt, model.engine.tokenizer)
    tiles = None if image is None else prepare_images([image], config)[0]
    features = None if tiles is None else network.encode_tiles(torch.from_numpy(tiles))
    cache = network.new_cache(len(tokens) + len(theirs))
    places = torch.tensor(tokens.is_image)
    logits = network.prefill(network.embed(torch.tensor(tokens.ids), places, features), cache)
    equal = 0
    for token in theirs:
        equal += token == int(logits.argmax())
        gap = (logits.max() - logits[token]) / (logits.max() - logits.min())
        assert gap <= NEAR_TIE, f"token {equal} of {theirs}: {token} is {gap:.3f} behind"
        logits = network.step(token, cache)
    return equal


def compare(python: Path, directory: Path) -> None:
    model = ivl.load(directory, device="cpu", dtype="float32")
    asked = prompts(model.config)
    answers = vllm_tokens(python, directory, asked)
    equal = sum(
        assert_greedy(model, *question, theirs)
        for question, theirs in zip(asked, answers, strict=True)
    )
    total = NUM_TOKENS * len(asked)
    print(f"{equal} of {total} tokens are the same")
    assert equal >= 0.95 * total


def test_the_demo(vllm_python: Path, tmp_path: Path) -> None:
    quantize_awq(DEMO, tmp_path / "awq")
    compare(vllm_python, tmp_path / "awq")


def test_random_weights_of_true_proportions(vllm_python: Path, tmp_path: Path) -> None:
    """Tiles of 448 px, several for an image, heads of 128 in groups, as the Qwen2 sizes have."""
    raw = json.loads((DEMO / "config.json").read_text())
    raw |= {"force_image_size": 448, "max_dynamic_patch": 2}
    raw["vision_config"] |= {"image_size": 448, "num_hidden_layers": 1}
    raw["llm_config"] |= {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
    }
    source = tmp_path / "random"
    source.mkdir()
    for file in DEMO.glob("token*"):
        (source / file.name).write_bytes(file.read_bytes())
    (source / "config.json").write_text(json.dumps(raw))
    config = parse_config(raw)
    tensors = random_model(config).state_dict()
    tensors["decoder.lm_head.weight"] *= 4
    official = {origin.names[0]: tensors[ours] for ours, origin in sources(config).items()}
    for name in ("class_embedding", "position_embedding"):
        official[f"vision_model.embeddings.{name}"].unsqueeze_(0)
    official["vision_model.embeddings.class_embedding"].unsqueeze_(0)
    save_file(official, source / "model.safetensors", metadata={"format": "pt"})
    quantize_awq(source, tmp_path / "awq")
    compare(vllm_python, tmp_path / "awq")
