"""A model's configuration from the metadata of GGUF files: the decoder's, and the projector's.

What llama.cpp's metadata cannot say, ivl writes under keys of its own (`IVL_KEYS`); where they are
missing, InternVL 2.5's values hold. Every key of the architecture is used, known to be harmless,
or refused. What only the tensors tell (norms with or without bias) is read from their list.

Source: Keys in gguf-py/gguf/constants.py of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from typing import get_args

from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.gguf_keys import Keys
from ivl.checkpoint.gguf_projector import read_projector
from ivl.checkpoint.gguf_template import read_template
from ivl.config import Architecture, DecoderConfig, ModelConfig
from ivl.errors import CheckpointError, UnsupportedError

USED = frozenset(
    """context_length embedding_length block_count feed_forward_length vocab_size
    attention.head_count attention.head_count_kv attention.layer_norm_rms_epsilon
    attention.key_length attention.value_length rope.dimension_count rope.freq_base
    rope.scaling.type rope.scaling.factor expert_count""".split()
)
HARMLESS = frozenset(
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
    decoder = _read_decoder(text)
    keys = Keys(text)
    keys.check("ivl.", IVL_KEYS, frozenset())
    # bfloat16 stands for every shorter type: the models were trained in it.
    dtype = "float32" if text.tensors["token_embd.weight"].format.name == "F32" else "bfloat16"
    template, system = read_template(keys, has_projector=mmproj is not None)
    if mmproj is None:
        return ModelConfig(
            decoder=decoder,
            vision=None,
            layout="gguf",
            template=template,
            system=system,
            dtype=dtype,
        )
    projector = read_projector(mmproj, decoder)
    ps_version = keys.text("ivl.ps_version", "v2")
    return ModelConfig(
        decoder=decoder,
        vision=projector.vision,
        layout="gguf",
        template=template,
        system=system,
        dtype=dtype,
        max_tiles=projector.max_tiles,
        min_tiles=projector.min_tiles,
        use_thumbnail=keys.truth("ivl.use_thumbnail", True),
        downsample_ratio=projector.downsample_ratio,
        ps_version="v1" if ps_version == "v1" else "v2",
    )


def _check_roles(text: GGUFFile, mmproj: GGUFFile | None) -> None:
    """Tells a text file from a projector's by their metadata, never by their names."""
    architecture = Keys(text).text("general.architecture")
    other = None if mmproj is None else Keys(mmproj).text("general.architecture")
    if architecture == "clip":
        if other in get_args(Architecture):
            raise CheckpointError(
                "The two GGUF files are the wrong way round: the text model was given as the "
                "projector.",
                f"The model is {mmproj.path.name if mmproj else ''}, "
                f"the projector {text.path.name}.",
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
    if kind != "model" or architecture not in get_args(Architecture):
        what = f"a {architecture!r} model" if kind == "model" else f"of type {kind!r}, not a model"
        raise UnsupportedError(
            f"{text.path} is {what}.", f"ivl runs {', '.join(get_args(Architecture))} decoders."
        )
    if mmproj is not None and other in get_args(Architecture):
        raise CheckpointError(
            f"{mmproj.path} is a language model ({other}), not a projector.",
            "The projector of a model is the file whose name has mmproj in it.",
        )


def _read_decoder(file: GGUFFile) -> DecoderConfig:
    keys = Keys(file)
    name = keys.text("general.architecture")
    architecture: Architecture = (
        "qwen2" if name == "qwen2" else "llama" if name == "llama" else "internlm2"
    )
    keys.check(f"{name}.", USED, HARMLESS)
    hidden_size = keys.count(f"{name}.embedding_length")
    num_heads = keys.count(f"{name}.attention.head_count")
    head_dim = keys.count(f"{name}.attention.key_length", hidden_size // num_heads)
    _check_decoder(keys, name, head_dim)
    config = DecoderConfig(
        architecture=architecture,
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
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        tied_embeddings="output.weight" not in file.tensors,
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
