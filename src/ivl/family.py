"""The seven sizes of InternVL 2.5.

Source: the `config.json` files and model cards of OpenGVLab's repositories; of the 26B's rotary
embeddings that of its base, internlm/internlm2_5-20b-chat.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ivl.config import DecoderConfig, ModelConfig, VisionConfig

INTERNVIT_300M = VisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_layers=24,
    num_heads=16,
    image_px=448,
    patch_px=14,
    norm="layer_norm",
    norm_eps=1e-6,
    qk_norm=False,
    qkv_bias=True,
)
INTERNVIT_6B = VisionConfig(
    hidden_size=3200,
    intermediate_size=12800,
    num_layers=45,
    num_heads=25,
    image_px=448,
    patch_px=14,
    norm="rms_norm",
    norm_eps=1e-6,
    qk_norm=True,
    qkv_bias=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One member of the family. Licences: of the code and tower, and of the decoder's weights."""

    name: str
    vision: VisionConfig
    vision_name: str
    decoder: DecoderConfig
    decoder_name: str
    licence: str

    @property
    def hub_id(self) -> str:
        return f"OpenGVLab/{self.repository}"

    @property
    def repository(self) -> str:
        return f"InternVL2_5-{self.name.upper()}"

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            vision=self.vision,
            decoder=self.decoder,
            layout="official",
            template="internvl2_5",
            dtype="bfloat16",
        )


def _qwen2(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int) -> DecoderConfig:
    return DecoderConfig(
        architecture="qwen2",
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=151674,
        norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=32768,
        qkv_bias=True,
    )


def _internlm2(
    layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, *,
    rope_theta: float = 1e6, rope_factor: float = 2.0,
) -> DecoderConfig:  # fmt: skip
    return replace(
        _qwen2(layers, hidden, ffn, heads, kv_heads),
        architecture="internlm2",
        vocab_size=92553,
        norm_eps=1e-5,
        rope_theta=rope_theta,
        rope_factor=rope_factor,
        qkv_bias=False,
    )


_SMALL = {"vision": INTERNVIT_300M, "vision_name": "InternViT-300M-448px-V2_5"}
_LARGE = {"vision": INTERNVIT_6B, "vision_name": "InternViT-6B-448px-V2_5"}
_APACHE = "MIT; decoder Apache-2.0"
_INTERNLM = "MIT; decoder under InternLM's terms"

FAMILY: tuple[Size, ...] = (
    Size(
        name="1b", **_SMALL, decoder=_qwen2(24, 896, 4864, 14, 2),
        decoder_name="Qwen2.5-0.5B-Instruct", licence=_APACHE,
    ),
    Size(
        name="2b", **_SMALL, decoder=_internlm2(24, 2048, 8192, 16, 8),
        decoder_name="internlm2_5-1_8b-chat", licence=_INTERNLM,
    ),
    Size(
        name="4b", **_SMALL, decoder=_qwen2(36, 2048, 11008, 16, 2),
        decoder_name="Qwen2.5-3B-Instruct",
        licence="MIT; decoder Qwen Research (not for commercial use)",
    ),
    Size(
        name="8b", **_SMALL, decoder=_internlm2(32, 4096, 14336, 32, 8),
        decoder_name="internlm2_5-7b-chat", licence=_INTERNLM,
    ),
    Size(
        name="26b", **_LARGE,
        decoder=_internlm2(48, 6144, 16384, 48, 8, rope_theta=5e7, rope_factor=2.5),
        decoder_name="internlm2_5-20b-chat", licence=_INTERNLM,
    ),
    Size(
        name="38b", **_LARGE, decoder=_qwen2(64, 5120, 27648, 40, 8),
        decoder_name="Qwen2.5-32B-Instruct", licence=_APACHE,
    ),
    Size(
        name="78b", **_LARGE, decoder=_qwen2(80, 8192, 29568, 64, 8),
        decoder_name="Qwen2.5-72B-Instruct", licence="MIT; decoder under the Qwen licence",
    ),
)  # fmt: skip


def find(name: str) -> Size | None:
    """The size called `1b` to `78b`, or by its repository's name; None if there is none."""
    wanted = name.lower().removeprefix("opengvlab/").removeprefix("internvl2_5-")
    return next((size for size in FAMILY if size.name == wanted), None)


def recognise(config: ModelConfig) -> Size | None:
    """The size whose shapes a configuration has. That is no name: InternVL2 and InternVL3 have
    sizes of the same shapes, and so has every model that was trained further."""
    for size in FAMILY:
        ours, theirs = size.decoder, config.decoder
        if size.vision == config.vision and (
            (ours.num_layers, ours.hidden_size, ours.intermediate_size, ours.vocab_size)
            == (theirs.num_layers, theirs.hidden_size, theirs.intermediate_size, theirs.vocab_size)
        ):
            return size
    return None
