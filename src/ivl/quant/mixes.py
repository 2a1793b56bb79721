"""Mixes: which format each tensor gets in a file called Q4_K_M and its like.

For a decoder's file the rules are llama.cpp's (`llama_tensor_get_type` in src/llama-quant.cpp, at
commit 007dbbf3), for decoders of Qwen2's and Llama's kind; InternLM2 is written as Llama. In short:
most matrices get the format that the mix is named after; the value projection, the FFN's second
matrix and attention's output, where errors hurt most, get more bits in some or all layers; the
output head gets Q6_K or Q8_0, and so do embeddings that are the head too. Vectors and norms stay
F32. A format whose blocks do not divide a tensor's rows is replaced by one of 32 weights a block.

In a projector's file (tower and projector; conversion/base.py, conversion/intern_vision.py,
`tensor_allows_quantization` in src/llama-quant.cpp) matrices get the one format that is asked for,
or F16 where its blocks do not divide the rows; vectors, the class token and the positions stay F32;
the first layer, which runs as a convolution, is F16 in a file of F16 and F32 in any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ivl.config import DecoderConfig
from ivl.errors import UnsupportedError
from ivl.quant.block_sizes import BLOCK_SIZES, stored_bytes
from ivl.spelling import nearest

_ALIGNMENT_BYTES = 32

_FALLBACKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}  # fmt: skip
"""What replaces a format of 256 weights a block in rows that are no multiple of 256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixContext:
    """What the rules ask about a model."""

    num_layers: int
    queries_per_kv: int
    """Query heads for each key/value head."""
    tied_embeddings: bool = False
    """There is no `output.weight`: the embeddings are the head as well."""
    has_importance: bool = False
    """Quantized with an importance matrix."""

    @classmethod
    def of(cls, config: DecoderConfig, *, has_importance: bool = False) -> MixContext:
        return cls(
            num_layers=config.num_layers,
            queries_per_kv=config.num_heads // config.num_kv_heads,
            tied_embeddings=config.tied_embeddings,
            has_importance=has_importance,
        )

    @property
    def is_70b(self) -> bool:
        """llama.cpp's class of 80-layer models with shared key/value heads."""
        return self.num_layers == 80 and self.queries_per_kv > 1


Rule = Callable[[int, MixContext], str | None]
"""From a layer's number to a format; None leaves the mix's base format."""


def _in_all(name: str) -> Rule:
    return lambda layer, context: name


def _in_first(name: str, share: int, otherwise: str | None = None) -> Rule:
    """In the first 1 / share of the layers."""
    return lambda layer, context: name if layer < context.num_layers // share else otherwise


def _below(layers: int, name: str, otherwise: str | None = None) -> Rule:
    return lambda layer, context: name if layer < layers else otherwise


def _more_bits(layer: int, context: MixContext) -> str | None:
    """Q6_K in the first and last eighth of the layers and in every third between them."""
    first, last = context.num_layers // 8, 7 * context.num_layers // 8
    chosen = layer < first or layer >= last or (layer - first) % 3 == 2
    return "Q6_K" if chosen else None


def _with_importance(rule: Rule) -> Rule:
    return lambda layer, context: rule(layer, context) if context.has_importance else None


def _by_sharing(layer: int, context: MixContext) -> str | None:
    """A value projection that many query heads share is small, so more bits cost little."""
    return "Q4_K" if context.queries_per_kv >= 4 else "Q3_K"


def _shared_value(layer: int, context: MixContext) -> str | None:
    return "Q5_K" if context.queries_per_kv >= 4 else None


def _without_importance(rule: Rule) -> Rule:
    return lambda layer, context: None if context.has_importance else rule(layer, context)


def _keep(layer: int, context: MixContext) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """A mix: its base format and where it departs from it."""

    name: str
    file_type: int
    """`general.file_type` in GGUF metadata (llama_ftype in llama.h)."""
    base: str
    value: Rule = _keep
    attention_output: Rule = _keep
    down: Rule = _keep


_ALL = (
    Mix(name="F32", file_type=0, base="F32"),
    Mix(name="F16", file_type=1, base="F16"),
    Mix(name="BF16", file_type=32, base="BF16"),
    Mix(name="Q8_0", file_type=7, base="Q8_0"),
    Mix(name="Q4_0", file_type=2, base="Q4_0", down=_with_importance(_in_first("Q4_1", 8))),
    Mix(name="Q4_1", file_type=3, base="Q4_1"),
    Mix(name="Q5_0", file_type=8, base="Q5_0", down=_with_importance(_in_first("Q5_1", 8))),
    Mix(name="Q5_1", file_type=9, base="Q5_1"),
    Mix(
        name="Q2_K", file_type=10, base="Q2_K",
        value=_by_sharing, attention_output=_in_all("Q3_K"), down=_in_all("Q3_K"),
    ),
    Mix(name="Q3_K_S", file_type=11, base="Q3_K"),
    Mix(
        name="Q3_K_M", file_type=12, base="Q3_K",
        value=_below(2, "Q5_K", otherwise="Q4_K"),
        attention_output=_in_all("Q4_K"),
        down=_in_first("Q5_K", 16, otherwise="Q4_K"),
    ),
    Mix(
        name="Q3_K_L", file_type=13, base="Q3_K",
        value=_in_all("Q5_K"), attention_output=_in_all("Q5_K"), down=_in_all("Q5_K"),
    ),
    Mix(
        name="Q4_K_S", file_type=14, base="Q4_K",
        value=_below(4, "Q5_K"), down=_in_first("Q5_K", 8),
    ),
    Mix(name="Q4_K_M", file_type=15, base="Q4_K", value=_more_bits, down=_more_bits),
    Mix(name="Q5_K_S", file_type=16, base="Q5_K"),
    Mix(name="Q5_K_M", file_type=17, base="Q5_K", value=_more_bits, down=_more_bits),
    Mix(name="Q6_K", file_type=18, base="Q6_K"),
)  # fmt: skip

MIXES: dict[str, Mix] = {mix.name: mix for mix in _ALL}
"""Every mix by name."""

READ_MIXES: dict[str, Mix] = {
    name: Mix(
        name=name, file_type=file_type, base=name,
        value=_shared_value, down=_without_importance(_in_first("Q5_K", 8)),
    )
    for name, file_type in (("IQ4_NL", 25), ("IQ4_XS", 30))
}  # fmt: skip
"""Mixes of files that ivl reads and does not write: they can be planned."""


def find_mix(name: str) -> Mix:
    """The mix of a name, in any case. Raises UnsupportedError that names the nearest."""
    found = MIXES.get(name.upper())
    if found is None:
        near = nearest(name, MIXES)
        hint = f"Did you mean {near}? " if near else ""
        raise UnsupportedError(
            f"There is no quantization called {name!r}.", f"{hint}ivl has {', '.join(MIXES)}."
        )
    return found


def mix_of_file_type(file_type: object) -> str | None:
    """The name of the mix that a GGUF file says it has; None for numbers of other programs."""
    return next((mix.name for mix in MIXES.values() if mix.file_type == file_type), None)


def tensor_type(mix: str, name: str, shape: tuple[int, ...], context: MixContext) -> str:
    """The format of a decoder's tensor, by its name in GGUF, such as `blk.3.attn_v.weight`.

    `shape` is (rows, columns), the columns lying next to each other in memory (GGUF's own order is
    the reverse). Raises UnsupportedError for an unknown mix.
    """
    chosen = READ_MIXES.get(mix) or find_mix(mix)
    if len(shape) < 2 or not name.endswith("weight") or name.endswith("_norm.weight"):
        return "F32"
    if chosen.base in ("F32", "F16", "BF16"):
        return chosen.base
    columns = shape[-1]
    is_head = name == "output.weight" or (name == "token_embd.weight" and context.tied_embeddings)
    wanted = _head_type(chosen, columns) if is_head else _layer_type(chosen, name, context)
    return _fitting(wanted, columns)


def _head_type(mix: Mix, columns: int) -> str:
    if mix.base == "Q8_0" or columns % BLOCK_SIZES[mix.base].size:
        return "Q8_0"
    return "Q6_K"


def _layer_type(mix: Mix, name: str, context: MixContext) -> str:
    found = re.fullmatch(r"blk\.(\d+)\.(attn_v|attn_output|ffn_down)\.weight", name)
    if found is None:
        return mix.base
    layer, which = int(found[1]), found[2]
    rules = {"attn_v": mix.value, "attn_output": mix.attention_output, "ffn_down": mix.down}
    wanted = rules[which](layer, context) or mix.base
    if which == "attn_v" and context.is_70b and wanted in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return wanted


def _fitting(wanted: str, columns: int) -> str:
    if columns % BLOCK_SIZES[wanted].size == 0:
        return wanted
    smaller = _FALLBACKS.get(wanted)
    if smaller is None or columns % BLOCK_SIZES[smaller].size:
        return "F16"
    return smaller


def decoder_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Names in GGUF and shapes, (rows, columns) or (length,), of all tensors of a decoder file."""
    width, ffn = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab_size, width)}
    for layer in range(config.num_layers):
        block = {
            "attn_norm.weight": (width,),
            "attn_q.weight": (q, width),
            "attn_k.weight": (kv, width),
            "attn_v.weight": (kv, width),
            "attn_output.weight": (width, q),
            "ffn_norm.weight": (width,),
            "ffn_gate.weight": (ffn, width),
            "ffn_up.weight": (ffn, width),
            "ffn_down.weight": (width, ffn),
        }
        if config.qkv_bias:
            block |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    tensors["output_norm.weight"] = (width,)
    if not config.tied_embeddings:
        tensors["output.weight"] = (config.vocab_size, width)
    return tensors


def file_bytes(config: DecoderConfig, mix: str, *, has_importance: bool = False) -> int:
    """Bytes of all tensors of a decoder's GGUF file, each padded to 32.

    The metadata, some megabytes of tokenizer, come on top.
    """
    context = MixContext.of(config, has_importance=has_importance)
    total = 0
    for name, shape in decoder_tensors(config).items():
        tensor_bytes = stored_bytes(tensor_type(mix, name, shape, context), shape)
        total += -(-tensor_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return total


VISION_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q4_0")
"""K-quants are not among them: 3200, the width of the 6B tower, is no multiple of 256."""


def find_vision_type(name: str) -> str:
    """The type of a name in any case. Raises UnsupportedError that names the nearest."""
    found = name.upper()
    if found not in VISION_TYPES:
        near = nearest(found, VISION_TYPES)
        hint = f"Did you mean {near}? " if near else ""
        if found in MIXES:
            hint = "K-quants do not divide the rows of the 6B tower. " if "K" in found else ""
        raise UnsupportedError(
            f"The vision tower cannot be {name!r}.", f"{hint}It may be {', '.join(VISION_TYPES)}."
        )
    return found


def vision_file_type(vision_type: str) -> int:
    """`general.file_type` of a projector's file."""
    return MIXES[vision_type].file_type


def vision_tensor_type(vision_type: str, name: str, shape: tuple[int, ...]) -> str:
    """The format of a tensor by its name in GGUF, such as `v.blk.3.ffn_up.weight`.

    `shape` is (..., rows, columns), the columns lying next to each other in memory.
    """
    if len(shape) < 2 or not name.endswith("weight") or name == "v.position_embd.weight":
        return "F32"
    if name == "v.patch_embd.weight":
        return "F16" if vision_type == "F16" else "F32"
    if shape[-1] % BLOCK_SIZES[vision_type].size:
        return "F16"
    return vision_type
