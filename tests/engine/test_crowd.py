"""Among many others an answer in 16 bits is the same, token by token, as alone.

The tiny models of the other tests compute in float32, and random weights are seldom in doubt. Here
the bundled model reads print that it cannot be sure of, where the last bit of a sum decides.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import ivl
from ivl.api import Model
from ivl.engine.answer import Ended, Event, Piece
from ivl.engine.engine import EngineLimits
from ivl.engine.options import GenerationOptions
from ivl.engine.request import EngineRequest
from ivl.kernels import cpu
from ivl.kernels.matrix import layers_are_faster
from ivl.model.cache import KVCache, Segment
from ivl.prompt.template import user_message

NUM_PAGES = 16
MAX_TOKENS = 40
WORDS = "Total 12.40 rice tea Hamburg 2019 paid no. 0071 milk eggs B8 cash O0 l1 rn m vv w".split()


@pytest.fixture(scope="module")
def demo() -> Model:
    extension = cpu.extension()
    if extension is None or not extension.has_bfloat16_products():
        pytest.skip("sums of bfloat16 have one order where the processor multiplies pairs of them")
    if not layers_are_faster(torch.bfloat16, 512, of_prompt=True):
        pytest.skip("torch multiplies here, whose sums depend on the number of rows")
    return ivl.load("demo", device="cpu", dtype="bfloat16")


def blurred_page(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(180, 420)), int(rng.integers(180, 420)))
    page = Image.new("L", size, 235)
    draw = ImageDraw.Draw(page)
    points = float(rng.uniform(9, 15))
    for line in range(int(rng.integers(4, 9))):
        text = " ".join(str(word) for word in rng.choice(WORDS, 4))
        place = (8, 8 + line * points * 1.6)
        draw.text(place, text, fill=60, font=ImageFont.load_default(size=points))
    return page.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.4)))).convert("RGB")


def tokens_of(demo: Model, at_once: int) -> list[list[int]]:
    """What is written for every page, with so many of them read at once."""
    engine = demo.engine.with_limits(
        EngineLimits(max_sequences=at_once, kv_tokens=at_once * 1024, vision_cache_bytes=0)
    )
    found: list[list[Event]] = [[] for _ in range(NUM_PAGES)]
    for seed, events in enumerate(found):
        request = EngineRequest.chat(
            engine,
            [user_message("Read all the text in the image.", 1)],
            [blurred_page(seed)],
            options=GenerationOptions(max_tokens=MAX_TOKENS),
        )
        engine.submit(engine.prepare(request, events.append))
    while engine.step():
        pass
    assert all(isinstance(events[-1], Ended) for events in found)
    pieces = [[event for event in events if isinstance(event, Piece)] for events in found]
    return [[token.id for piece in page for token in piece.tokens] for page in pieces]


def test_sixteen_pages_at_once_are_read_as_one_at_a_time(demo: Model) -> None:
    alone = tokens_of(demo, 1)
    assert sum(map(len, alone)) > 15 * NUM_PAGES, "there is something to read"
    assert tokens_of(demo, NUM_PAGES) == alone


CUTS = [(512,), (1,), (100, 103, 137, 600, 895), (16, 32, 48, 300, 899)]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_a_prompt_is_the_same_wherever_it_is_cut(demo: Model, cuts: tuple[int, ...]) -> None:
    x = embeddings(demo, 900)
    assert torch.equal(read_prompt(demo, x, cuts), read_prompt(demo, x, ()))


@pytest.mark.parametrize("num_read", [0, 3, 200])
def test_a_written_token_is_the_same_whoever_else_is_there(demo: Model, num_read: int) -> None:
    """Beside others who write, and beside a chunk of a prompt."""
    x, given = embeddings(demo, 32), embeddings(demo, 200)[:num_read]
    prompt = read_prompt(demo, given, ())
    expected = torch.cat([write(demo, x[i : i + 1], given[:0])[0] for i in range(len(x))])
    for count in (2, 7, 8, 9, 16, 31, 32):
        logits, read = write(demo, x[:count], given)
        assert torch.equal(logits, expected[:count])
        assert torch.equal(read, prompt)


def embeddings(demo: Model, count: int) -> torch.Tensor:
    model = demo.engine.model
    width = model.config.decoder.hidden_size
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count)).to(model.dtype)


def read_prompt(demo: Model, x: torch.Tensor, cuts: tuple[int, ...]) -> torch.Tensor:
    """Hidden states of a prompt, read in chunks that end at `cuts`."""
    model, out = demo.engine.model, []
    cache = KVCache(model.new_store(32), range(32))
    with torch.inference_mode():
        for start, end in zip((0, *cuts), (*cuts, len(x)), strict=True):
            if end > start:
                segment = Segment(cache, end - start, len(x), is_prompt=True)
                out.append(model.decoder.extend(x[start:end], [segment]))
    return torch.cat(out) if out else x


def write(demo: Model, x: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits behind one token of each row of x, all of which follow the same prompt of 640 tokens,
    and hidden states of another prompt that is read with them."""
    model = demo.engine.model
    store = model.new_store(20 + len(x) + 32)
    shared = KVCache(store, range(20))
    with torch.inference_mode():
        before = embeddings(demo, 640)
        model.decoder.extend(before, [Segment(shared, 640, 640, is_prompt=True)])
        segments = []
        for i in range(len(x)):
            cache = KVCache(store, [*range(20), 20 + i])
            cache.length = 640
            segments.append(Segment(cache, 1))
        if len(given):
            cache = KVCache(store, range(20 + len(x), 20 + len(x) + 32))
            segments.append(Segment(cache, len(given), len(given), is_prompt=True))
        hidden = model.decoder.extend(torch.cat([x, given]), segments)
        return model.decoder.lm_head(hidden[: len(x)]), hidden[len(x) :]
