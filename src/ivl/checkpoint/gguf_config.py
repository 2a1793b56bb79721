"""A model's configuration as the metadata of GGUF files, read and written.

What llama.cpp's metadata cannot say, ivl writes under keys of its own (`IVL_KEYS`); where they are
missing, InternVL 2.5's values hold. Every key of the architecture is used, known to be harmless,
or refused. What only the tensors tell (norms with or without bias) is read from their list. Written
are the keys of llama.cpp's converter, so that its programs take the files.

Every family of models has files of projectors, and llama.cpp would run many of them with any
decoder of the right width. Here one that is not InternVL's, or not this decoder's, is an error.

The chat template is a Jinja program, and programs that come with a checkpoint are never run. What
is read from it is whether it frames turns as ChatML does, and the system message at its beginning.

Source: Keys in gguf-py/gguf/constants.py, TextModel and MmprojModel in conversion/base.py,
conversion/internvl.py and intern_vision.py of https://github.com/ggml-org/llama.cpp;
`tokenizer.chat_template` in docs/gguf.md of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import cast, get_args

import numpy as np

from ivl.checkpoint.gguf import GGUFFile, Value
from ivl.checkpoint.gguf_writer import Written
from ivl.checkpoint.identity import Identity
from ivl.checkpoint.names import FUSED_QKV
from ivl.config import Architecture, DecoderConfig, ModelConfig, VisionConfig
from ivl.errors import CheckpointError, ConfigError, UnsupportedError
from ivl.json_values import RawObject
from ivl.prompt.template import IM_END, IM_START, IMG_CONTEXT
from ivl.prompt.tiles import IMAGENET_MEAN, IMAGENET_STD
from ivl.spelling import nearest

_DAMAGED = "The file was written wrongly or for another purpose; take another conversion."


class Keys:
    """The metadata of one file. Every method raises ConfigError for a missing key that has no
    default, and for a value of another type."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "text")
        return value

    def truth(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(key, value, "a whole number")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above zero."""
        value = self.whole(key, default)
        if value == 0:
            raise self._wrong(key, value, "a number above zero")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number; float32, which most files have, as the shortest decimal that gives it."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        return float(str(np.float32(value))) if np.float32(value) == value else float(value)

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if key in self.file.metadata else None

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self._get(key, None)
        if not isinstance(value, np.ndarray):
            raise self._wrong(key, value, "a list of numbers")
        return tuple(float(number) for number in value)

    def check(self, prefix: str, known: frozenset[str]) -> None:
        """UnsupportedError for a key below `prefix` that is not known; keys are given with the
        prefix or without it."""
        for key in self.file.metadata:
            own = key.removeprefix(prefix)
            if key.startswith(prefix) and key not in known and own not in known:
                near = nearest(own, known)
                raise UnsupportedError(
                    f"{self.file.path} has the setting {key}, which ivl does not know.",
                    f"The nearest that it knows is {near}."
                    if near
                    else "It may change what the model computes, so it is not passed over.",
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; CheckpointError where the file has none of that name."""
        entry = self.file.tensors.get(name)
        if entry is None:
            raise CheckpointError(f"{self.file.path} has no tensor {name}.", _DAMAGED)
        return entry.shape

    def check_shape(self, name: str, expected: tuple[int, ...]) -> None:
        """CheckpointError unless a tensor has the shape that the metadata ask for."""
        found = self.shape(name)
        if found != expected:
            raise CheckpointError(
                f"{self.file.path}: the tensor {name} has the shape {found}, "
                f"its metadata ask for {expected}.",
                _DAMAGED,
            )

    def _get(self, key: str, default: Value | None) -> Value:
        value = self.file.metadata.get(key, default)
        if value is None:
            raise ConfigError(f"{self.file.path} does not say {key}.", _DAMAGED)
        return value

    def _wrong(self, key: str, value: Value, wanted: str) -> ConfigError:
        return ConfigError(
            f"{self.file.path}: {key} must be {wanted}, not {str(value)[:40]!r}.", _DAMAGED
        )


DECODER_KEYS = frozenset(
    """context_length embedding_length block_count feed_forward_length vocab_size
    attention.head_count attention.head_count_kv attention.layer_norm_rms_epsilon
    attention.key_length attention.value_length rope.dimension_count rope.freq_base
    rope.scaling.type rope.scaling.factor expert_count""".split()
)
HARMLESS_DECODER_KEYS = frozenset(
    """rope.scaling.original_context_length rope.scaling.finetuned expert_used_count
    tensor_data_layout""".split()
)
IVL_KEYS = frozenset(
    """ivl.template ivl.rope.dynamic_factor ivl.use_thumbnail ivl.ps_version""".split()
)


def read_gguf_config(text: GGUFFile, mmproj: GGUFFile | None) -> ModelConfig:
    """The configuration of a text file and, for a model that takes images, its projector's file.

    CheckpointError for files that are damaged, the wrong way round or not of one model,
    UnsupportedError for models that ivl does not run, ConfigError for impossible values.
    """
    _check_roles(text, mmproj)
    keys = Keys(text)
    decoder = _read_decoder(keys)
    keys.check("ivl.", IVL_KEYS)
    template, system = read_template(keys, has_projector=mmproj is not None)
    config = ModelConfig(
        decoder=decoder,
        vision=None,
        layout="gguf",
        template=template,
        system=system,
        # bfloat16 stands for every shorter type: the models were trained in it.
        dtype="float32" if text.tensors["token_embd.weight"].format.name == "F32" else "bfloat16",
        use_thumbnail=keys.truth("ivl.use_thumbnail", True),
        ps_version="v1" if keys.text("ivl.ps_version", "v2") == "v1" else "v2",
    )
    return config if mmproj is None else read_projector(mmproj, config)


def _check_roles(text: GGUFFile, mmproj: GGUFFile | None) -> None:
    """Tells a text file from a projector's by their metadata, never by their names."""
    architecture = Keys(text).text("general.architecture")
    decoders = get_args(Architecture)
    other = None if mmproj is None else Keys(mmproj).text("general.architecture")
    if architecture == "clip":
        if mmproj is not None and other in decoders:
            raise CheckpointError(
                "The two GGUF files are the wrong way round: the text model was given as the "
                "projector.",
                f"The model is {mmproj.path.name}, the projector {text.path.name}.",
            )
        raise CheckpointError(
            f"{text.path} is a projector (mmproj), which is only half of a model.",
            "Give the GGUF file of the language model as well.",
        )
    kind = Keys(text).text("general.type", "model")
    if kind == "adapter":
        raise UnsupportedError(
            f"{text.path} is a LoRA adapter, not a whole model.",
            "Merge it first, with `llama-export-lora -m MODEL --lora ADAPTER -o OUT` of llama.cpp, "
            "and give the merged file.",
        )
    if kind != "model" or architecture not in decoders:
        what = f"a {architecture!r} model" if kind == "model" else f"of type {kind!r}, not a model"
        raise UnsupportedError(
            f"{text.path} is {what}.", f"ivl runs {', '.join(decoders)} decoders."
        )
    if mmproj is not None and other in decoders:
        raise CheckpointError(
            f"{mmproj.path} is a language model ({other}), not a projector.",
            "The projector of a model is the file whose name has mmproj in it.",
        )


def _read_decoder(keys: Keys) -> DecoderConfig:
    name = keys.text("general.architecture")
    keys.check(f"{name}.", DECODER_KEYS | HARMLESS_DECODER_KEYS)
    hidden_size = keys.count(f"{name}.embedding_length")
    num_heads = keys.count(f"{name}.attention.head_count")
    head_dim = keys.count(f"{name}.attention.key_length", hidden_size // num_heads)
    _check_decoder(keys, name, head_dim)
    config = DecoderConfig(
        architecture=cast("Architecture", name),  # one of them, as `_check_roles` says
        hidden_size=hidden_size,
        intermediate_size=keys.count(f"{name}.feed_forward_length"),
        num_layers=keys.count(f"{name}.block_count"),
        num_heads=num_heads,
        num_kv_heads=keys.count(f"{name}.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(keys, name),
        norm_eps=keys.number(f"{name}.attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number(f"{name}.rope.freq_base", 10000.0),
        rope_factor=keys.optional_number("ivl.rope.dynamic_factor"),
        max_position_embeddings=keys.count(f"{name}.context_length"),
        qkv_bias="blk.0.attn_q.bias" in keys.file.tensors,
        tied_embeddings="output.weight" not in keys.file.tensors,
    )
    keys.check_shape("token_embd.weight", (config.vocab_size, hidden_size))
    return config


def _check_decoder(keys: Keys, name: str, head_dim: int) -> None:
    """Refuses what would change the result and is not done: experts, other rotary settings."""
    if keys.whole(f"{name}.expert_count", 0):
        raise UnsupportedError(
            f"{keys.file.path} is a mixture of experts.", "InternVL 2.5 has none; ivl runs none."
        )
    for key in ("attention.value_length", "rope.dimension_count"):
        found = keys.count(f"{name}.{key}", head_dim)
        if found != head_dim:
            raise UnsupportedError(
                f"{keys.file.path}: {name}.{key} is {found}, the heads are {head_dim} wide.",
                "ivl runs decoders that turn whole heads and whose values are as wide as keys.",
            )
    scaling = keys.text(f"{name}.rope.scaling.type", "none")
    factor = keys.number(f"{name}.rope.scaling.factor", 1.0)
    scales = scaling != "none" and not (scaling == "linear" and factor == 1.0)
    if scales or "rope_freqs.weight" in keys.file.tensors:
        what = f"of type {scaling!r}" if scales else "by a table of frequencies"
        raise UnsupportedError(
            f"{keys.file.path}: rotary scaling {what} is not supported.",
            "InternVL 2.5 uses none (Qwen2), or dynamic NTK (InternLM2) beyond 32768 positions.",
        )


def _vocab_size(keys: Keys, name: str) -> int:
    """The rows of the embeddings; the tokenizer and the metadata must have as many."""
    rows = keys.shape("token_embd.weight")[0]
    tokens = keys.file.metadata.get("tokenizer.ggml.tokens")
    listed = len(tokens) if isinstance(tokens, list) else rows
    for found, what in ((listed, "tokenizer"), (keys.count(f"{name}.vocab_size", rows), "model")):
        if found != rows:
            raise CheckpointError(
                f"{keys.file.path}: the {what} has {found} tokens, the embeddings have {rows} "
                "rows.",
                "The tokenizer is that of another model, or the file was written wrongly.",
            )
    return rows


PROJECTOR_KEYS = frozenset(
    """projector_type has_vision_encoder has_audio_encoder use_gelu use_silu has_text_encoder
    vision.projector_type vision.image_size vision.patch_size vision.embedding_length
    vision.feed_forward_length vision.block_count vision.projection_dim vision.image_mean
    vision.image_std vision.attention.head_count vision.attention.layer_norm_epsilon
    vision.projector.scale_factor vision.preproc_min_tiles vision.preproc_max_tiles""".split()
)
HARMLESS_PROJECTOR_KEYS = frozenset(
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


def read_projector(file: GGUFFile, config: ModelConfig) -> ModelConfig:
    """The configuration of a text file, with what the projector's file says of a model.

    CheckpointError for a file that does not fit the decoder or contradicts itself,
    UnsupportedError for the projector of another family.
    """
    keys = Keys(file)
    _check_family(keys)
    keys.check("clip.", PROJECTOR_KEYS | HARMLESS_PROJECTOR_KEYS)
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
    _check_width(keys, vision, factor, config.decoder)
    min_tiles = keys.count("clip.vision.preproc_min_tiles", 1)
    return replace(
        config,
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


_SYSTEM = re.compile(
    re.escape(f"{IM_START}system")
    # The end of a string behind the opening: the message is one that is given at run time.
    + r"(?:\\n|\n)(?:(?P<given>['\"]|\{\{)|(?P<text>(?:\\['\"n]|[^{}'\"\\])*)"
    + re.escape(IM_END)
    + r"|(?P<other>))"
)
_ESCAPES = {"\\n": "\n", "\\'": "'", '\\"': '"'}


def read_template(keys: Keys, *, has_projector: bool) -> tuple[str, str | None]:
    """The template's name, and the model's own system message where it is not the template's.

    A model of this family has InternVL's. UnsupportedError for a text model that talks otherwise
    than in ChatML, or whose system message cannot be made out.
    """
    tokens = keys.file.metadata.get("tokenizer.ggml.tokens")
    is_family = has_projector or (isinstance(tokens, list) and IMG_CONTEXT in tokens)
    own = keys.text("tokenizer.chat_template", "")
    if "ivl.template" in keys.file.metadata or is_family or not own:
        return keys.text("ivl.template", "internvl2_5" if is_family else "chatml"), None
    if IM_START not in own:
        raise UnsupportedError(
            f"{keys.file.path} asks for a chat template that is not ChatML.",
            f"ivl runs models whose turns are framed by {IM_START} and {IM_END}.",
        )
    found = list(_SYSTEM.finditer(own))
    texts = {match["text"] for match in found if match["text"] is not None}
    if len(texts) > 1 or any(match["other"] is not None for match in found):
        raise UnsupportedError(
            f"{keys.file.path} has a chat template whose system message cannot be made out.",
            "ivl never runs a checkpoint's own template; take another model.",
        )
    if not texts:
        return "chatml", None
    return "chatml", re.sub(r"\\['\"n]", lambda match: _ESCAPES[match[0]], texts.pop())


QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION of ggml.h: how blocks are laid out."""


def text_metadata(
    config: ModelConfig,
    tokenizer: RawObject,
    *,
    name: str,
    licence: Identity | None = None,
    num_weights: int,
    file_type: int,
    chat_template: str,
) -> dict[str, Written]:
    """Of the decoder's file. `tokenizer`: the entries of `prompt.gguf_tokenizer`; `file_type`: of
    the mix; `licence`: as the source states it."""
    decoder = config.decoder
    kind = decoder.architecture
    values: dict[str, Written] = {
        "block_count": decoder.num_layers,
        "context_length": decoder.max_position_embeddings,
        "embedding_length": decoder.hidden_size,
        "feed_forward_length": decoder.intermediate_size,
        "attention.head_count": decoder.num_heads,
        "attention.head_count_kv": decoder.num_kv_heads,
        "rope.freq_base": float(decoder.rope_theta),
        "attention.layer_norm_rms_epsilon": float(decoder.norm_eps),
    }
    if kind == "llama":
        values |= {"vocab_size": decoder.vocab_size, "rope.dimension_count": decoder.head_dim}
    if decoder.head_dim * decoder.num_heads != decoder.hidden_size:
        values |= {
            "attention.key_length": decoder.head_dim,
            "attention.value_length": decoder.head_dim,
        }
    metadata = _general(kind, "model", name, num_weights, licence, file_type)
    metadata |= {f"{kind}.{key}": value for key, value in values.items()}
    metadata["ivl.template"] = config.template
    if decoder.rope_factor is not None:
        metadata["ivl.rope.dynamic_factor"] = float(decoder.rope_factor)
    if config.vision is not None:
        metadata["ivl.use_thumbnail"] = config.use_thumbnail
        metadata["ivl.ps_version"] = config.ps_version
    return {**metadata, **tokenizer, "tokenizer.chat_template": chat_template}


def mmproj_metadata(
    config: ModelConfig, *, name: str, num_weights: int, file_type: int,
    licence: Identity | None = None,
) -> dict[str, Written]:  # fmt: skip
    """Of the file of the vision tower and the projector."""
    vision = config.vision
    if vision is None:
        raise UnsupportedError("This is a text-only model: it has no projector to write.")
    return _general("clip", "mmproj", name, num_weights, licence, file_type) | {
        "clip.has_vision_encoder": True,
        "clip.vision.projection_dim": config.decoder.hidden_size,
        "clip.vision.image_size": vision.image_px,
        "clip.vision.patch_size": vision.patch_px,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.block_count": vision.num_layers,
        "clip.vision.attention.head_count": vision.num_heads,
        "clip.vision.image_mean": np.array(IMAGENET_MEAN, np.float32),
        "clip.vision.image_std": np.array(IMAGENET_STD, np.float32),
        "clip.projector_type": "internvl",
        "clip.vision.attention.layer_norm_epsilon": float(vision.norm_eps),
        "clip.use_gelu": True,
        "clip.vision.projector.scale_factor": round(1 / config.downsample_ratio),
        "clip.vision.preproc_min_tiles": config.min_tiles,
        "clip.vision.preproc_max_tiles": config.max_tiles,
    }


def size_label(num_weights: int) -> str:
    """Such as `630M` or `3.1B`, with two digits at least."""
    steps = ((12, "T"), (9, "B"), (6, "M"))
    exponent, letter = next((s for s in steps if num_weights >= 10 ** s[0]), (3, "K"))
    scaled = num_weights / 10**exponent
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{letter}"


def _general(
    architecture: str,
    kind: str,
    name: str,
    num_weights: int,
    licence: Identity | None,
    file_type: int,
) -> dict[str, Written]:
    metadata: dict[str, Written] = {
        "general.architecture": architecture,
        "general.type": kind,
        "general.name": name,
        "general.size_label": size_label(num_weights),
        "general.file_type": file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    if licence is not None and licence.licence:
        metadata["general.license"] = licence.licence
        if licence.licence_link:
            metadata["general.license.link"] = licence.licence_link
    return metadata
