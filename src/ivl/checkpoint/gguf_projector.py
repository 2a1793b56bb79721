"""The vision tower and projector of a GGUF pair, from the metadata of its `mmproj` file.

Every family of models has such files, and llama.cpp would run many of them with any decoder of the
right width. Here a file that is not InternVL's, or not this decoder's, is an error that says so.

Source: Keys.ClipVision in gguf-py/gguf/constants.py and conversion/intern_vision.py of
https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.gguf_keys import Keys
from ivl.checkpoint.gguf_names import FUSED_QKV
from ivl.config import DecoderConfig, VisionConfig
from ivl.errors import CheckpointError, UnsupportedError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
USED = frozenset(
    """projector_type has_vision_encoder has_audio_encoder use_gelu use_silu has_text_encoder
    vision.projector_type vision.image_size vision.patch_size vision.embedding_length
    vision.feed_forward_length vision.block_count vision.projection_dim vision.image_mean
    vision.image_std vision.attention.head_count vision.attention.layer_norm_epsilon
    vision.projector.scale_factor vision.preproc_min_tiles vision.preproc_max_tiles""".split()
)
HARMLESS = frozenset(
    """has_llava_projector vision.preproc_image_size vision.image_min_pixels
    vision.image_max_pixels""".split()
)
# Whose projectors are met most often, by what their files call them.
_FAMILIES = {
    "mlp": "LLaVA",
    "ldp": "MobileVLM",
    "ldpv2": "MobileVLM",
    "resampler": "MiniCPM-V",
    "qwen2vl_merger": "Qwen2-VL",
    "qwen2.5vl_merger": "Qwen2.5-VL",
    "qwen3vl_merger": "Qwen3-VL",
    "gemma3": "Gemma 3",
    "pixtral": "Pixtral",
    "idefics3": "SmolVLM",
    "llama4": "Llama 4",
    "mllama": "Llama 3.2 Vision",
}
_WHERE = "Take the mmproj file from the repository that the language model is from."


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorFile:
    """What the projector's file says of a model. The factor is that of pixel shuffle, a side."""

    vision: VisionConfig
    downsample_ratio: float
    min_tiles: int
    max_tiles: int


def read_projector(file: GGUFFile, decoder: DecoderConfig) -> ProjectorFile:
    """CheckpointError for a file that does not fit the decoder or contradicts itself,
    UnsupportedError for the projector of another family."""
    keys = Keys(file)
    _check_family(keys)
    keys.check("clip.", USED, HARMLESS)
    _check_normalisation(keys)
    names = file.tensors
    split = "v.blk.0.attn_q.bias", "v.blk.0.attn_qkv.bias"
    vision = VisionConfig(
        hidden_size=keys.count("clip.vision.embedding_length"),
        intermediate_size=keys.count("clip.vision.feed_forward_length"),
        num_layers=keys.count("clip.vision.block_count"),
        num_heads=keys.count("clip.vision.attention.head_count"),
        image_px=keys.count("clip.vision.image_size"),
        patch_px=keys.count("clip.vision.patch_size"),
        norm="layer_norm" if "v.blk.0.ln1.bias" in names else "rms_norm",
        norm_eps=keys.number("clip.vision.attention.layer_norm_epsilon"),
        qk_norm="v.blk.0.attn_q_norm.weight" in names,
        qkv_bias=split[FUSED_QKV in names] in names,
    )
    factor = keys.count("clip.vision.projector.scale_factor", 2)
    _check_tower(keys, vision)
    _check_width(keys, vision, factor, decoder)
    min_tiles = keys.count("clip.vision.preproc_min_tiles", 1)
    return ProjectorFile(
        vision=vision,
        downsample_ratio=1 / factor,
        min_tiles=min_tiles,
        max_tiles=keys.count("clip.vision.preproc_max_tiles", max(12, min_tiles)),
    )


def _check_family(keys: Keys) -> None:
    path = keys.file.path
    architecture = keys.text("general.architecture")
    kind = keys.text("clip.projector_type", "") or keys.text("clip.vision.projector_type", "")
    if architecture == "clip" and not kind:
        # Files older than the key are LLaVA's.
        kind = "mlp" if keys.truth("clip.has_llava_projector", False) else "nothing"
    elif architecture != "clip":
        kind = architecture
    if kind != "internvl":
        family = f" ({_FAMILIES[kind]})" if kind in _FAMILIES else ""
        raise UnsupportedError(f"{path} is a projector of type {kind!r}{family}.", _WHERE)
    if not keys.truth("clip.has_vision_encoder", True):
        raise UnsupportedError(f"{path} holds no vision tower.", _WHERE)
    for key, what in (("audio", "hears"), ("text", "holds a text encoder")):
        if keys.truth(f"clip.has_{key}_encoder", False):
            raise UnsupportedError(f"{path} is of a model that {what}.", _WHERE)
    if keys.truth("clip.use_silu", False) or not keys.truth("clip.use_gelu", True):
        raise UnsupportedError(f"{path}: the vision tower's activation is not GELU.", _WHERE)


def _check_normalisation(keys: Keys) -> None:
    for which, expected in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        found = keys.numbers(f"clip.vision.image_{which}")
        near = len(found) == 3 and all(
            abs(a - b) < 1e-3 for a, b in zip(found, expected, strict=True)
        )
        if not near:
            shown = ", ".join(f"{number:.4g}" for number in found[:4])
            raise CheckpointError(
                f"{keys.file.path} normalises images with the {which} {shown}, not with "
                f"ImageNet's {', '.join(map(str, expected))}.",
                "InternVL was trained with ImageNet's, so the file was written wrongly, or is "
                "of another model.",
            )


def _check_tower(keys: Keys, vision: VisionConfig) -> None:
    """The tiles and patches that the metadata ask for, against the tensors."""
    path, width = keys.file.path, vision.hidden_size
    patch = keys.shape("v.patch_embd.weight")
    if patch != (width, 3, vision.patch_px, vision.patch_px):
        raise CheckpointError(
            f"{path}: the tower's first layer has the shape {patch}, its metadata ask for "
            f"patches of {vision.patch_px} pixels and a width of {width}.",
            "Metadata and tensors are of different models; take another conversion.",
        )
    positions = keys.shape("v.position_embd.weight")
    if positions != (vision.num_patches + 1, width):
        raise CheckpointError(
            f"{path}: tiles of {vision.image_px} pixels have {vision.num_patches} patches and a "
            f"class token, but the position embeddings have the shape {positions}.",
            "Metadata and tensors are of different models; take another conversion.",
        )


def _check_width(keys: Keys, vision: VisionConfig, factor: int, decoder: DecoderConfig) -> None:
    path = keys.file.path
    if vision.patches_per_side % factor:
        raise CheckpointError(
            f"{path}: a pixel shuffle of {factor} does not divide "
            f"{vision.patches_per_side} patches a side.",
            "The file was written wrongly, or is of another model.",
        )
    keys.check_shape("mm.model.mlp.0.weight", (vision.hidden_size * factor**2,))
    found = keys.shape("mm.model.mlp.3.weight")[0]
    declared = keys.count("clip.vision.projection_dim", found)
    for width in (found, declared):
        if width != decoder.hidden_size:
            raise CheckpointError(
                f"{path} gives features of width {width}, the language model takes "
                f"{decoder.hidden_size}: they are of different sizes of the family.",
                _WHERE,
            )
