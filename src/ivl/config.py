"""A model's configuration, read once from a checkpoint's `config.json`.

Two layouts are read: the official one (`internvl_chat`) and that of transformers (`internvl`).
Every key is used, known to be harmless, or refused: a setting that would change what the model
computes never passes unseen. The keys are in `ivl.config_keys`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ivl.config_keys import NULL_SAYS, Section, check_keys
from ivl.config_quantization import Quantization, read_quantization
from ivl.errors import CheckpointError, ConfigError, UnsupportedError
from ivl.json_values import RawObject
from ivl.refused import refuse_adapter, refuse_lfs_pointer

# Far above any real model: a damaged file may claim billions of layers, and there is work for each.
MAX_LAYERS, MAX_COUNT = 1000, 2**31 - 1

Architecture = Literal["qwen2", "internlm2", "llama"]
Norm = Literal["layer_norm", "rms_norm"]
Layout = Literal["official", "huggingface", "gguf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """An InternViT. Sizes are in channels unless the name says otherwise."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_px: int
    patch_px: int
    norm: Norm
    norm_eps: float
    qk_norm: bool
    qkv_bias: bool
    num_channels: int = 3

    def __post_init__(self) -> None:
        _positive(self, "hidden_size", "intermediate_size", "num_layers", "num_heads")
        _positive(self, "image_px", "patch_px")
        _above_zero(self, "norm_eps")
        _one_of("norm_type", self.norm, get_args(Norm))
        _divides("vision hidden_size", self.hidden_size, "num_attention_heads", self.num_heads)
        _divides("image_size", self.image_px, "patch_size", self.patch_px)

    @property
    def patches_per_side(self) -> int:
        return self.image_px // self.patch_px

    @property
    def num_patches(self) -> int:
        return self.patches_per_side**2


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A Qwen2, InternLM2 or Llama decoder."""

    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    qkv_bias: bool
    rope_factor: float | None = None
    """Factor of dynamic NTK scaling beyond `max_position_embeddings`; None: no scaling."""
    tied_embeddings: bool = False
    """The head is the embeddings' matrix, unless the checkpoint holds a head of its own."""

    def __post_init__(self) -> None:
        _positive(self, "hidden_size", "intermediate_size", "num_layers", "num_heads")
        _positive(self, "num_kv_heads", "head_dim", "vocab_size", "max_position_embeddings")
        _above_zero(self, "norm_eps", "rope_theta")
        if self.rope_factor is not None:
            _above_zero(self, "rope_factor")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even, for rotary pairs, not {self.head_dim}.")
        _divides("num_attention_heads", self.num_heads, "num_key_value_heads", self.num_kv_heads)

    @property
    def longest_context(self) -> int:
        """Tokens; only a decoder with dynamic rotary scaling reaches beyond its training."""
        return int(self.max_position_embeddings * (self.rope_factor or 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A whole model. `vision` is None for a text-only one."""

    decoder: DecoderConfig
    vision: VisionConfig | None
    layout: Layout
    template: str
    dtype: str
    quantization: Quantization | None = None
    """How the decoder's linear layers are stored; None: as plain numbers."""
    system: str | None = None
    """The model's own system message, where it is not that of its template."""
    max_tiles: int = 12
    min_tiles: int = 1
    use_thumbnail: bool = True
    downsample_ratio: float = 0.5
    ps_version: Literal["v1", "v2"] = "v2"
    projector_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.vision is None:
            return
        _positive(self, "min_tiles", "max_tiles")
        _above_zero(self, "downsample_ratio")
        _one_of("ps_version", self.ps_version, ("v1", "v2"))
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ConfigError(
                f"min_dynamic_patch {self.min_tiles} and max_dynamic_patch {self.max_tiles} "
                "are not a range of tile counts."
            )
        inverse = 1 / self.downsample_ratio
        if not inverse.is_integer() or self.vision.patches_per_side % inverse:
            raise ConfigError(
                f"downsample_ratio {self.downsample_ratio} does not fold "
                f"{self.vision.patches_per_side} patches a side."
            )

    @property
    def tile_px(self) -> int:
        return self._vision.image_px

    @property
    def patches_per_side(self) -> int:
        return self._vision.patches_per_side

    @property
    def tokens_per_tile(self) -> int:
        return (self._vision.patches_per_side // self._fold) ** 2

    @property
    def shuffled_size(self) -> int:
        """Channels of one image token after pixel shuffle."""
        return self._vision.hidden_size * self._fold**2

    @property
    def _fold(self) -> int:
        """Patches a side that pixel shuffle folds into one."""
        return round(1 / self.downsample_ratio)

    @property
    def _vision(self) -> VisionConfig:
        if self.vision is None:
            raise UnsupportedError(NO_IMAGES, self.blind_hint)
        return self.vision

    @property
    def blind_hint(self) -> str:
        """What to do about a model that has no vision tower."""
        if self.layout == "gguf":
            return (
                "It was loaded from a GGUF file without a projector: put the projector's (mmproj) "
                "file beside it, or name it with `mmproj`."
            )
        return "Take a model of the InternVL family, or leave the images out."


FETCH_AGAIN = "Fetch the file again; a download may have been cut short."
NO_IMAGES = "This is a text-only model: it cannot look at images."


def read_config(directory: Path) -> ModelConfig:
    """Reads `config.json` of a directory, and `preprocessor_config.json` where it matters.

    Raises CheckpointError when there is none or it is no JSON, ConfigError for impossible values,
    UnsupportedError for models that ivl does not run and for adapters that are not merged.
    """
    refuse_adapter(directory)
    raw = read_json(directory / "config.json")
    return parse_config(raw, read_optional(directory / "preprocessor_config.json"))


def read_json(path: Path) -> RawObject:
    """A JSON object from a file; CheckpointError when it is missing or something else."""
    refuse_lfs_pointer(path)
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}.",
            "A model directory holds config.json, tokenizer files and *.safetensors.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.", FETCH_AGAIN) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.", FETCH_AGAIN)
    return value


def read_optional(path: Path) -> RawObject:
    """The JSON object of a file, {} where there is none. CheckpointError when it is damaged."""
    return read_json(path) if path.exists() else {}


def parse_config(raw: RawObject, preprocessor: RawObject | None = None) -> ModelConfig:
    """The configuration from the contents of `config.json`, in either layout."""
    raw, preprocessor = _stated(raw), _stated(preprocessor or {})
    kind = raw.get("model_type")
    if kind == "internvl_chat":
        return _parse_official(raw)
    if kind == "internvl":
        return _parse_huggingface(raw, preprocessor)
    if kind in get_args(Architecture):
        quantization = read_quantization(raw)
        return ModelConfig(
            decoder=_parse_decoder(raw),
            vision=None,
            layout="official" if kind == "internlm2" else "huggingface",
            template="internvl2_5",
            dtype=_dtype(raw),
            quantization=quantization,
        )
    raise UnsupportedError(
        f"The configuration is of a {kind!r} model."
        if kind
        else "The configuration does not say what model it is of: it has no 'model_type'.",
        "ivl runs InternVL 2.5 (model_type internvl_chat, or internvl as transformers writes it).",
    )


def _stated(section: RawObject, depth: int = 3) -> RawObject:
    """Without the keys that are null, here and in the sections of it: all but a few say nothing
    then. The deepest section is that of the rotary settings."""
    return {
        key: _stated(value, depth - 1) if depth > 1 and isinstance(value, dict) else value
        for key, value in section.items()
        if value is not None or key in NULL_SAYS
    }


def _parse_official(raw: RawObject) -> ModelConfig:
    _decoder_kind(_subsection(raw, "llm_config"))
    quantization = read_quantization(raw, _subsection(raw, "llm_config"))
    check_keys(raw, Section.OFFICIAL)
    vision = _subsection(raw, "vision_config")
    check_keys(vision, Section.OFFICIAL_VISION)
    image_px = _square(_required(vision, "image_size"))
    if raw.get("force_image_size") not in (None, image_px):
        raise UnsupportedError(
            f"force_image_size {raw['force_image_size']} differs from the vision tower's "
            f"image_size {image_px}.",
            "Official checkpoints of InternVL 2.5 have 448 for both.",
        )
    return ModelConfig(
        decoder=_parse_decoder(_subsection(raw, "llm_config")),
        vision=VisionConfig(
            hidden_size=_required(vision, "hidden_size"),
            intermediate_size=_required(vision, "intermediate_size"),
            num_layers=_all_layers(vision, raw.get("select_layer", -1)),
            num_heads=_required(vision, "num_attention_heads"),
            image_px=image_px,
            patch_px=_square(_required(vision, "patch_size")),
            norm=vision.get("norm_type", "rms_norm"),
            norm_eps=vision.get("layer_norm_eps", 1e-6),
            qk_norm=bool(vision.get("qk_normalization", True)),
            qkv_bias=bool(vision.get("qkv_bias", False)),
        ),
        layout="official",
        template=str(_required(raw, "template")),
        dtype=_dtype(raw),
        quantization=quantization,
        max_tiles=raw.get("max_dynamic_patch", 6) if raw.get("dynamic_image_size", False) else 1,
        min_tiles=raw.get("min_dynamic_patch", 1) if raw.get("dynamic_image_size", False) else 1,
        use_thumbnail=bool(raw.get("use_thumbnail", False)),
        downsample_ratio=raw.get("downsample_ratio", 0.5),
        ps_version=raw.get("ps_version", "v1"),
    )


def _parse_huggingface(raw: RawObject, preprocessor: RawObject) -> ModelConfig:
    _decoder_kind(_subsection(raw, "text_config"))
    quantization = read_quantization(raw, _subsection(raw, "text_config"))
    check_keys(raw, Section.HUGGINGFACE)
    vision = _subsection(raw, "vision_config")
    check_keys(vision, Section.HUGGINGFACE_VISION)
    decoder = _parse_decoder(_subsection(raw, "text_config"))
    # Which of the two flags counts depends on the version of transformers that wrote the file.
    tied = decoder.tied_embeddings or bool(raw.get("tie_word_embeddings", False))
    return ModelConfig(
        decoder=replace(decoder, tied_embeddings=tied),
        vision=VisionConfig(
            hidden_size=_required(vision, "hidden_size"),
            intermediate_size=_required(vision, "intermediate_size"),
            num_layers=_all_layers(vision, raw.get("vision_feature_layer", -1)),
            num_heads=_required(vision, "num_attention_heads"),
            image_px=_square(vision.get("image_size", 448)),
            patch_px=_square(vision.get("patch_size", 14)),
            norm=vision.get("norm_type", "layer_norm"),
            norm_eps=vision.get("layer_norm_eps", 1e-6),
            qk_norm=bool(vision.get("use_qk_norm", False)),
            qkv_bias=bool(vision.get("attention_bias", False)),
        ),
        layout="huggingface",
        template="internvl2_5",
        dtype=_dtype(raw),
        quantization=quantization,
        max_tiles=preprocessor.get("max_patches", 12),
        min_tiles=preprocessor.get("min_patches", 1),
        use_thumbnail=True,
        downsample_ratio=raw.get("downsample_ratio", 0.5),
    )


def _parse_decoder(raw: RawObject) -> DecoderConfig:
    kind = _decoder_kind(raw)
    check_keys(raw, Section.DECODER)
    hidden_size, num_heads = _count(raw, "hidden_size"), _count(raw, "num_attention_heads")
    rope = _rope_section(raw, "rope_parameters")
    scaling = _rope_section(raw, "rope_scaling") or rope
    return DecoderConfig(
        architecture=kind,
        hidden_size=hidden_size,
        intermediate_size=_required(raw, "intermediate_size"),
        num_layers=_required(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=raw.get("head_dim") or hidden_size // num_heads,
        vocab_size=_required(raw, "vocab_size"),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=raw.get("rope_theta") or rope.get("rope_theta") or 10000.0,
        rope_factor=_rope_factor(scaling),
        max_position_embeddings=raw.get("max_position_embeddings", 32768),
        qkv_bias=kind == "qwen2",
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )


def _decoder_kind(raw: RawObject) -> Architecture:
    """Which decoder a section describes, by its type or else by its class.

    It is asked before any key of the file is looked at: those of another decoder mean nothing here.
    """
    classes = raw.get("architectures")
    name = classes[0] if isinstance(classes, list) and len(classes) == 1 else None
    kind = raw.get("model_type") or _CLASSES.get(name, name) or _required(raw, "model_type")
    # A class of another name may compute something else from weights of the same kind.
    if kind in get_args(Architecture) and name is not None and _CLASSES.get(name) != kind:
        kind = name
    for known in get_args(Architecture):
        if known == kind:
            return known
    raise UnsupportedError(
        f"The language model is a {kind!r}.", "ivl runs Qwen2, InternLM2 and Llama decoders."
    )


_CLASSES: dict[Any, Architecture] = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2Model": "qwen2",
    "InternLM2ForCausalLM": "internlm2",
    "InternLM2Model": "internlm2",
    "LlamaForCausalLM": "llama",
    "LlamaModel": "llama",
}


def _rope_section(raw: RawObject, key: str) -> RawObject:
    """Rotary settings of a decoder, checked; empty where there are none."""
    if not raw.get(key):
        return {}
    section = _subsection(raw, key)
    kind = _rope_kind(section)
    if kind not in ("default", "dynamic"):
        raise UnsupportedError(
            f"Rotary scaling of type {kind!r} is not supported.",
            "InternVL 2.5 uses none (Qwen2) or 'dynamic' (InternLM2).",
        )
    check_keys(section, Section.ROPE)
    return section


def _rope_factor(section: RawObject) -> Any:
    if _rope_kind(section) != "dynamic":
        return None
    if section.get("factor") is None:
        raise ConfigError("The configuration does not say the factor of its rope_scaling.")
    return section["factor"]


def _rope_kind(section: RawObject) -> Any:
    kind = section.get("rope_type") or section.get("type") or "default"
    # Positions divided by one are positions.
    return "default" if kind == "linear" and section.get("factor") == 1 else kind


def _all_layers(vision: RawObject, select_layer: int) -> int:
    """The number of layers, all of which run: the features are those of the last one."""
    num_layers = _count(vision, "num_hidden_layers")
    if select_layer not in (-1, num_layers):
        raise UnsupportedError(
            f"The vision features are taken from layer {select_layer}.",
            "InternVL 2.5 takes them from the last one (select_layer -1).",
        )
    return num_layers


def _dtype(raw: RawObject) -> str:
    """The type that the weights were trained in; newer files say `dtype`, older `torch_dtype`."""
    return str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")


def _square(value: Any) -> int:
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise UnsupportedError(f"Tiles and patches must be square, not {value}.")
    return sides[0]


def _subsection(raw: RawObject, key: str) -> RawObject:
    value = raw.get(key)
    if value is None:
        raise ConfigError(f"The configuration has no {key!r} section.")
    if not isinstance(value, dict):
        raise ConfigError(f"{key!r} is {value!r}, and must be a section: {{...}}.")
    return value


def _required(raw: RawObject, key: str) -> Any:
    if raw.get(key) is None:
        raise ConfigError(f"The configuration does not say {key!r}.")
    return raw[key]


def _count(raw: RawObject, key: str) -> int:
    value = _required(raw, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} must be a positive integer, not {value!r}.")
    return value


_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "rope_factor": "the factor of rope_scaling",
    "image_px": "image_size",
    "patch_px": "patch_size",
    "min_tiles": "min_dynamic_patch",
    "max_tiles": "max_dynamic_patch",
}
"""What fields are called in `config.json`, where that is another name."""


def _positive(config: object, *names: str) -> None:
    for name in names:
        key = _KEYS.get(name, name)
        count = _count({key: getattr(config, name)}, key)
        if count > (MAX_LAYERS if name == "num_layers" else MAX_COUNT):
            raise ConfigError(f"{key} is {count}, more than any model has.", "Is it damaged?")


def _above_zero(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            in_vision = isinstance(config, VisionConfig)
            norm = {"norm_eps": "layer_norm_eps" if in_vision else "rms_norm_eps"}
            key = (_KEYS | norm).get(name, name)
            raise ConfigError(f"{key} must be a number above 0, not {value!r}.")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be {' or '.join(allowed)}, not {value!r}.")


def _divides(what: str, whole: int, by_what: str, part: int) -> None:
    if whole % part:
        raise ConfigError(f"{what} {whole} is no multiple of {by_what} {part}.")
