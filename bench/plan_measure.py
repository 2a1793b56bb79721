"""One model, one context, one image: the memory, or the times, of a process that does nothing else.

    python -m bench.plan_measure MODEL --context 2048 --tiles 1 [--times]

Prints JSON. For memory, what can be alive together is made so, without work that changes nothing
in it: one batch of tiles goes through the tower, and its features stand for all; a chunk of the
prompt is read; then the whole cache is written, one more chunk is read at its end, and a batch of
tiles goes through the tower beside it, as when a long conversation comes to its next image.
`--times` asks a question as a person would, and then times single steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from bench.shapes import resident_bytes

CHUNK = 512
GRID_SIZES = {1: (448, 448), 5: (896, 896), 7: (896, 1344), 13: (1792, 1344)}
"""Tiles, thumbnail counted -> width and height of an image that has them."""
QUESTION = "What is this?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--tiles", type=int, default=1, choices=sorted(GRID_SIZES))
    parser.add_argument("--kv", default="16bit")
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(json.dumps(measure_times(options) if options.times else measure_memory(options)))


def load(options: argparse.Namespace) -> Any:
    """In the tower's arithmetic that plans assume, whatever a noisy moment would choose."""
    import ivl
    from ivl.kernels.dense import arithmetics

    vision = "float16" if "float16" in arithmetics() else "torch"
    return ivl.load(options.model, context=options.context, kv=options.kv, vision=vision)


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peaks of resident memory, mapped pages of files counted, while loading and in all."""
    model = load(options)
    loaded = resident_bytes("VmHWM")
    use_all(model, options.tiles)
    return {"loaded_bytes": loaded, "peak_bytes": resident_bytes("VmHWM")}


def use_all(model: Any, num_tiles: int) -> None:
    import torch

    from ivl.engine.prompt_builder import prepare_images

    engine, network = model.engine, model.engine.model
    tiles, counts = prepare_images([random_image(num_tiles)], engine.config, max(1, num_tiles - 1))
    assert tiles is not None
    assert counts == [num_tiles], counts
    batch = min(engine.vision_batch, num_tiles)
    vocabulary = network.config.decoder.vocab_size
    with torch.inference_mode():
        some = network.encode_tiles(torch.from_numpy(tiles[:batch]), batch)
        features = some.repeat(-(-num_tiles // batch), 1, 1)[:num_tiles]
        num_places = features.shape[0] * features.shape[1]
        ids = torch.arange(num_places + CHUNK) % vocabulary
        places = torch.arange(len(ids)) < num_places
        x = network.embed(ids, places, features)
        cache = network.new_cache(engine.context)
        network.prefill(x[:, :CHUNK], cache)
        for layer in cache.store.layers:
            layer.zero_()
        cache.length = engine.context - CHUNK - 1
        network.prefill(x[:, -CHUNK:], cache)
        network.step(0, cache)
        network.encode_tiles(torch.from_numpy(tiles[:batch]), batch)


def measure_times(options: argparse.Namespace) -> dict[str, Any]:
    """Medians: of questions as they are asked, and of single steps behind as many tokens as the
    prompt has, for random weights may end an answer at once."""
    from ivl.engine.options import GenerationOptions

    model = load(options)
    image = random_image(options.tiles)
    decode, encode, first, prompt_tokens = [], [], [], 0
    for _ in range(options.rounds):
        talk = model.conversation()
        chosen = GenerationOptions(max_tokens=1)
        limit = max(1, options.tiles - 1)
        times = talk.ask(QUESTION, [image], max_tiles=limit, options=chosen).result().timings
        assert times.num_tiles == options.tiles, times
        encode.append(times.encode_s)
        first.append(times.encode_s + times.prefill_s)
        prompt_tokens = times.num_prompt_tokens
        decode.append(steps_per_s(model, prompt_tokens, options.tokens))
    return {
        "prompt_tokens": prompt_tokens,
        "encode_s": statistics.median(encode),
        "first_token_s": statistics.median(first),
        "tokens_per_s": statistics.median(decode),
    }


def steps_per_s(model: Any, before: int, tokens: int) -> float:
    """Tokens a second, one after another, behind `before` tokens."""
    import torch

    network = model.engine.model
    cache = network.new_cache(model.engine.context)
    for layer in cache.store.layers:
        layer.zero_()
    cache.length = before
    with torch.inference_mode():
        network.step(0, cache)
        began = time.perf_counter()
        for token in range(tokens):
            network.step(token, cache)
    return tokens / (time.perf_counter() - began)


def random_image(tiles: int) -> Any:
    import numpy as np
    from PIL import Image

    width, height = GRID_SIZES[tiles]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


if __name__ == "__main__":
    main()
