"""What a model computes beside a file of reference outputs, and recording such a file.

The file is a safetensors file that another implementation wrote:

    tiles_u8        uint8 (n, tile_px, tile_px, 3)
    input_ids       integer (tokens,), with one id in the places of image tokens
    image_features  float (n, tokens_per_tile, hidden)
    last_logits     float (k, vocab), of the last k positions of the prompt
    greedy          integer (m,), the tokens that follow, each the likeliest

The id that stands for image tokens is `image_token_id` in the file's metadata, and the last id of
the vocabulary where the metadata are silent.

`record_reference` lets transformers write one, which shares no code with ours. Hugging Face's own
layout is read by transformers itself. For the official layout it has no code (and code that comes
with a checkpoint is never run), so the weights are put into transformers' classes under the names
that its own conversion gives them; InternLM2 becomes Llama, which computes the same. This mapping
is written out here again, apart from `ivl.checkpoint.names`, so that a mistake in either shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ivl.checkpoint.hub import locate_pair
from ivl.checkpoint.safetensors import SafetensorsDirectory, read_header
from ivl.config import DecoderConfig, ModelConfig
from ivl.engine.prompt_builder import build_prompt, prepare_images
from ivl.errors import CheckpointError, RequestError, UnsupportedError
from ivl.footprint.placement import fit, require_room
from ivl.footprint.tensors import planned_tensors
from ivl.footprint.workload import Workload
from ivl.kernels.cpu import use_threads
from ivl.loading import devices_here
from ivl.measure.data import Doing
from ivl.measure.integrity import sample_tile
from ivl.model.cache import KVCache
from ivl.model.internvl import InternVL
from ivl.model.source import open_source
from ivl.pages.reader import ImageSource
from ivl.prompt.template import IMG_CONTEXT, user_message
from ivl.prompt.tiles import IMAGENET_MEAN, IMAGENET_STD

IMAGE_TOKEN_KEY = "image_token_id"
TENSORS = ("tiles_u8", "input_ids", "image_features", "last_logits", "greedy")

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative error by the type that the model computes in, for references in float32.

float32 differs by about 1e-6 when only the order of sums does; 1e-3 leaves room for other kernels.
bfloat16 rounds to 8 bits at every step, and the errors add up over the layers: random models of the
family's depths (45 + 48 layers) come out 2.5e-2 away, float16 with its 11 bits an eighth of that.
A small mistake in one layer gives about 2e-2, so only float32 finds every one.
"""

REPAIR = "Record it again with `ivl check MODEL --record FILE`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The tensors of a reference file; ids are int64, floats float32."""

    tiles_u8: Tensor
    input_ids: Tensor
    image_token_id: int
    image_features: Tensor
    last_logits: Tensor
    greedy: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """One quantity. `relative_error` is norm(ours - reference) / norm(reference).

    For the greedy tokens it is the share of tokens that differ, and `agrees` also when each of
    them is a near tie, which `detail` then says.
    """

    quantity: str
    relative_error: float
    agrees: bool
    detail: str = ""


def read_reference(file: Path, config: ModelConfig) -> Reference:
    """Reads a reference file for a model of this configuration.

    CheckpointError when it is damaged, or of a model of other shapes.
    """
    _require_vision(config)
    if not file.is_file():
        raise CheckpointError(f"There is no reference file {file}.", REPAIR)
    missing = [name for name in TENSORS if name not in read_header(file)]
    if missing:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}: it is not a reference.", REPAIR)
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in TENSORS}
            image_id = (content.metadata() or {}).get(IMAGE_TOKEN_KEY)
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read: {error}.", REPAIR) from None
    vocab = config.decoder.vocab_size
    if image_id is not None and not (image_id.isascii() and image_id.isdigit()):
        raise CheckpointError(f"{file}: {IMAGE_TOKEN_KEY} is {image_id!r}, no token id.", REPAIR)
    reference = Reference(
        tiles_u8=tensors["tiles_u8"],
        input_ids=tensors["input_ids"].long(),
        image_token_id=vocab - 1 if image_id is None else int(image_id),
        image_features=tensors["image_features"].float(),
        last_logits=tensors["last_logits"].float(),
        greedy=tensors["greedy"].long(),
    )
    _check_shapes(reference, config, file)
    return reference


def _require_vision(config: ModelConfig) -> None:
    if config.vision is None:
        raise UnsupportedError("This is a text-only model: references are of models that see.")


def _check_shapes(reference: Reference, config: ModelConfig, file: Path) -> None:
    num_tiles, px, decoder = reference.tiles_u8.shape[:1], config.tile_px, config.decoder
    wanted = {
        "tiles_u8": (*num_tiles, px, px, 3),
        "image_features": (*num_tiles, config.tokens_per_tile, decoder.hidden_size),
        "last_logits": (*reference.last_logits.shape[:1], decoder.vocab_size),
        "input_ids": (reference.input_ids.numel(),),
        "greedy": (reference.greedy.numel(),),
    }
    for name, shape in wanted.items():
        found = tuple(getattr(reference, name).shape)
        if found != shape:
            raise CheckpointError(
                f"{file}: {name} is of shape {list(found)}, and this model makes {list(shape)}.",
                "The reference is of another model.",
            )
    if reference.tiles_u8.dtype != torch.uint8:
        raise CheckpointError(f"{file}: tiles_u8 must be of type uint8.", REPAIR)
    ids = torch.cat([reference.input_ids, reference.greedy])
    if not ids.numel() or ids.min() < 0 or ids.max() >= decoder.vocab_size:
        raise CheckpointError(f"{file}: its tokens are not of this vocabulary.", REPAIR)
    if not 1 <= len(reference.last_logits) <= len(reference.input_ids):
        raise CheckpointError(f"{file}: last_logits are of more positions than there are.", REPAIR)


@torch.inference_mode()
def deviations(
    model: InternVL, reference: Reference, *, tolerance: float | None = None, vision_batch: int = 4
) -> list[Deviation]:
    """Image features, logits and greedy tokens of a model beside those of a reference.

    `tolerance` by default is that of the model's type, see `TOLERANCE`. The logits follow from
    the model's own features. At every greedy step the model is given the reference's tokens, so
    that each step is compared for itself.
    """
    tolerance = TOLERANCE[model.dtype] if tolerance is None else tolerance
    features = model.encode_tiles(reference.tiles_u8, vision_batch)
    ids = reference.input_ids.to(model.device)
    cache = model.new_cache(len(ids) + len(reference.greedy))
    embeddings = model.embed(ids, ids == reference.image_token_id, features)
    logits = model.prefill(embeddings, cache, num_logits=len(reference.last_logits)).cpu()
    compared = [
        _compare("image features", features.float().cpu(), reference.image_features, tolerance),
        _compare("logits", logits, reference.last_logits, tolerance),
    ]
    largest = float((logits - reference.last_logits).abs().max()) if compared[1].agrees else 0.0
    return [*compared, _compare_greedy(model, cache, logits[-1], reference.greedy, largest)]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """norm(ours - theirs) / norm(theirs); infinite for a reference of zeros that is not met."""
    difference, norm = float((ours - theirs).norm()), float(theirs.norm())
    if norm == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / norm


def _compare(quantity: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Deviation:
    error = relative_error(ours, theirs)
    # Written so that NaN, which compares false, does not agree.
    return Deviation(quantity=quantity, relative_error=error, agrees=error <= tolerance)


def _compare_greedy(
    model: InternVL, cache: KVCache, logits: Tensor, greedy: Tensor, largest_error: float
) -> Deviation:
    """Another token than the reference's is a near tie if the errors seen in the logits explain it.

    If we prefer one token by `gap` and the reference prefers the other, then one of the two logits
    is off by at least half of `gap`.
    """
    different: list[str] = []
    agrees = True
    for step, wanted in enumerate(greedy.tolist()):
        if step:
            logits = model.step(int(greedy[step - 1]), cache).cpu()
        chosen = int(logits.argmax())
        if chosen == wanted:
            continue
        gap = float(logits[chosen] - logits[wanted])
        near_tie = gap <= 2 * largest_error
        agrees = agrees and near_tie
        different.append(
            f"token {step + 1} is {chosen} and not {wanted}, whose logit is {gap:.2g} lower"
            + (" (a near tie)" if near_tie else "")
        )
    share = len(different) / max(1, len(greedy))
    detail = f"{len(greedy) - len(different)} of {len(greedy)} equal"
    if different:
        detail += f"; {different[0]}"
    return Deviation(quantity="greedy tokens", relative_error=share, agrees=agrees, detail=detail)


NUM_POSITIONS = 10
NUM_GREEDY = 16

# The official names, and those of transformers' InternVLForConditionalGeneration.
RENAMES = (
    (r"vision_model\.embeddings\.class_embedding", "model.vision_tower.embeddings.cls_token"),
    (
        r"vision_model\.embeddings\.position_embedding",
        "model.vision_tower.embeddings.position_embeddings",
    ),
    (
        r"vision_model\.embeddings\.patch_embedding\.",
        "model.vision_tower.embeddings.patch_embeddings.projection.",
    ),
    (r"vision_model\.encoder\.layers\.", "model.vision_tower.encoder.layer."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls1$", ".lambda_1"),
    (r"\.ls2$", ".lambda_2"),
    (r"mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"language_model\.model\.", "model.language_model."),
    (r"language_model\.(lm_head|output)\.", "lm_head."),
    (r"\.tok_embeddings\.", ".embed_tokens."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
)


QUESTION = "Describe the image."


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenReference:
    """A reference file, and how long the prompt in it is."""

    file: Path
    num_tokens: int
    num_tiles: int


def record_reference(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    mmproj: str | os.PathLike[str] | None = None,
    image: ImageSource | None = None,
    question: str = QUESTION,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    show_progress: bool = False,
    doing: Doing = lambda *_: None,
) -> WrittenReference:
    """Writes what transformers computes, in float32 on the CPU, of a question about an image; by
    default a drawn one. `show_progress`: of a download.

    RequestError for a file that is there, UnsupportedError without transformers and for models that
    it does not run, CapacityError when the memory is too small.
    """
    require_transformers()
    use_threads(threads)
    out = Path(out)
    if out.exists():
        raise RequestError(f"{out} is there already.", "Remove it, or choose another name.")
    if not out.parent.is_dir():
        raise RequestError(f"There is no directory {out.parent}.", "Make it first.")
    files = locate_pair(
        model, mmproj, revision=revision, offline=offline, show_progress=show_progress
    )
    source = open_source(files.path, files.mmproj)
    if source.pair is not None:
        raise UnsupportedError(
            "transformers does not run the GGUF files of a model that sees.",
            "Record from the safetensors of the same model.",
        )
    config, tokenizer = source.config, source.tokenizer()
    if image is None:
        tiles = sample_tile(config.tile_px)
    else:
        cut, _ = prepare_images([image], config)
        assert cut is not None
        tiles = torch.from_numpy(cut)
    ids = build_prompt([user_message(question, 1)], config, tokenizer, [len(tiles)]).ids
    here = devices_here([torch.device("cpu")])
    if here.host is not None:
        work = Workload(context=len(ids), tiles=(len(tiles),), vision_batch=len(tiles))
        found = fit(config, planned_tensors(config, "F32", "F32"), work, here)
        require_room(found, here, work.context, itemsize=torch.float32.itemsize)
    doing("computing with transformers", 0, 0)
    context_id = tokenizer.control(IMG_CONTEXT)
    tensors = record(source.path, config, tiles_u8=tiles, input_ids=ids, image_token_id=context_id)
    write_reference(out, tensors, context_id)
    return WrittenReference(file=out, num_tokens=len(ids), num_tiles=len(tiles))


def record(
    directory: Path,
    config: ModelConfig,
    *,
    tiles_u8: Tensor,
    input_ids: list[int],
    image_token_id: int,
) -> dict[str, Tensor]:
    """The tensors of a reference file, computed in float32 on the CPU by transformers.

    Raises UnsupportedError when transformers is not installed or has no such model.
    """
    oracle = _load_oracle(directory, config, image_token_id)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = ((tiles_u8.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    ids = torch.tensor(input_ids)
    with torch.inference_mode():
        features = oracle.get_image_features(pixel_values=pixels)
        out = oracle(
            input_ids=ids[None],
            pixel_values=pixels,
            use_cache=True,
            logits_to_keep=min(NUM_POSITIONS, len(ids)),
        )
        logits = out.logits[0].float()
        greedy = [int(logits[-1].argmax())]
        while len(greedy) < NUM_GREEDY:
            last = torch.tensor([greedy[-1:]])
            out = oracle(input_ids=last, past_key_values=out.past_key_values, use_cache=True)
            greedy.append(int(out.logits[0, -1].argmax()))
    return {
        "tiles_u8": tiles_u8.contiguous(),
        "input_ids": ids,
        # Before version 5, the features themselves are returned.
        "image_features": getattr(features, "pooler_output", features).float().contiguous(),
        "last_logits": logits.contiguous(),
        "greedy": torch.tensor(greedy),
    }


def write_reference(file: Path, tensors: dict[str, Tensor], image_token_id: int) -> None:
    """CheckpointError when the file cannot be written."""
    try:
        save_file(tensors, file, metadata={IMAGE_TOKEN_KEY: str(image_token_id)})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be written: {error}.") from None


def require_transformers() -> None:
    """UnsupportedError when it is not installed, before anything else is done."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UnsupportedError(
            "References are recorded with transformers, which is not installed.",
            "`pip install transformers`, version 4.52 or newer.",
        ) from None


def _load_oracle(directory: Path, config: ModelConfig, image_token_id: int) -> Any:
    require_transformers()
    _require_vision(config)
    if config.layout == "huggingface":
        return _load_huggingface(directory, image_token_id)
    if config.ps_version != "v2":
        raise UnsupportedError("transformers has pixel shuffle v2 alone; this model has v1.")
    from transformers import InternVLForConditionalGeneration

    oracle = InternVLForConditionalGeneration(_oracle_config(config, image_token_id))
    _fill(oracle, directory, config)
    return oracle.float().eval()


def _load_huggingface(directory: Path, image_token_id: int) -> Any:
    from transformers import AutoModelForImageTextToText

    oracle = AutoModelForImageTextToText.from_pretrained(
        directory,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        attn_implementation="eager",
    )
    if oracle.config.image_token_id != image_token_id:
        raise CheckpointError(
            f"config.json says that {oracle.config.image_token_id} is the image token, and the "
            f"tokenizer says {image_token_id}.",
            "The tokenizer's files are not those of this model.",
        )
    return oracle.eval()


def _oracle_config(config: ModelConfig, image_token_id: int) -> Any:
    from transformers import InternVLConfig
    from transformers.models.internvl import InternVLVisionConfig

    assert config.vision is not None
    vision = config.vision
    oracle = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_heads,
            image_size=[vision.image_px, vision.image_px],
            patch_size=[vision.patch_px, vision.patch_px],
            norm_type=vision.norm,
            layer_norm_eps=vision.norm_eps,
            use_qk_norm=vision.qk_norm,
            attention_bias=vision.qkv_bias,
        ),
        text_config=_text_config(config.decoder),
        downsample_ratio=config.downsample_ratio,
        image_token_id=image_token_id,
        image_seq_length=config.tokens_per_tile,
        tie_word_embeddings=False,
    )
    oracle._attn_implementation = "eager"
    return oracle


def _text_config(decoder: DecoderConfig) -> Any:
    from transformers import LlamaConfig, Qwen2Config

    scaling = None
    if decoder.rope_factor is not None:
        scaling = {"rope_type": "dynamic", "factor": decoder.rope_factor}
    kind: Any = Qwen2Config if decoder.architecture == "qwen2" else LlamaConfig
    return kind(
        hidden_size=decoder.hidden_size,
        intermediate_size=decoder.intermediate_size,
        num_hidden_layers=decoder.num_layers,
        num_attention_heads=decoder.num_heads,
        num_key_value_heads=decoder.num_kv_heads,
        head_dim=decoder.head_dim,
        vocab_size=decoder.vocab_size,
        rms_norm_eps=decoder.norm_eps,
        max_position_embeddings=decoder.max_position_embeddings,
        # These two names are understood before version 5 and since.
        rope_theta=decoder.rope_theta,
        rope_scaling=scaling,
        tie_word_embeddings=False,
    )


def _fill(oracle: Any, directory: Path, config: ModelConfig) -> None:
    """Copies every tensor to its place, one by one."""
    files = SafetensorsDirectory(directory)
    places = dict(oracle.named_parameters())
    filled = set()
    with torch.no_grad():
        for name in files.tensors:
            for place, tensor in convert(name, files.read(name), config):
                if place in places:
                    places[place].copy_(tensor.reshape(places[place].shape))
                    filled.add(place)
        if "lm_head.weight" not in filled and config.decoder.tied_embeddings:
            places["lm_head.weight"].copy_(places["model.language_model.embed_tokens.weight"])
            filled.add("lm_head.weight")
    missing = sorted(places.keys() - filled)
    if missing:
        raise CheckpointError(
            f"{directory} has nothing for {len(missing)} tensors of transformers: {missing[0]}."
        )


def convert(name: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """An official tensor under the names of transformers, taken apart where it is packed."""
    renamed = name
    for pattern, replacement in RENAMES:
        renamed = re.sub(pattern, replacement, renamed)
    packed = re.fullmatch(r"(.*\.attention)\.qkv\.(weight|bias)", renamed)
    if packed:
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{packed[1]}.{part}_proj.{packed[2]}", rows
        return
    packed = re.fullmatch(r"(.*)\.attention\.wqkv\.weight", renamed)
    if packed:
        heads = config.decoder.num_heads // config.decoder.num_kv_heads
        width = config.decoder.head_dim
        groups = tensor.reshape(config.decoder.num_kv_heads, heads + 2, width, -1)
        for part, rows in (("q", groups[:, :-2]), ("k", groups[:, -2]), ("v", groups[:, -1])):
            yield f"{packed[1]}.self_attn.{part}_proj.weight", rows.reshape(-1, groups.shape[-1])
        return
    yield renamed, tensor
