"""Names, order of rows and configuration of GGUF pairs, and the files that do not make a pair.

The pairs are written by the package `gguf`, under the names that its own tables give, from the
small checkpoints in tests/golden.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.gguf_config import read_gguf_config
from ivl.checkpoint.names import (
    check_names,
    order_of,
    rotary_order,
    text_sources,
    vision_sources,
)
from ivl.config import ModelConfig, read_config
from ivl.errors import CheckpointError, ConfigError, IvlError, UnsupportedError

Arrays = Mapping[str, npt.NDArray[Any]]
GOLDEN = Path(__file__).parents[1] / "golden"
QWEN2 = GOLDEN / "internvit-300m-like_qwen2"
INTERNLM2 = GOLDEN / "internvit-6b-like_internlm2"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def interleaved(rows: npt.NDArray[Any], num_heads: int) -> npt.NDArray[Any]:
    """The first half of a head's rows at even places, the second at odd ones."""
    out = np.empty_like(rows)
    for ours, theirs in zip(np.split(rows, num_heads), np.split(out, num_heads), strict=True):
        theirs[0::2], theirs[1::2] = np.split(ours, 2)
    return out


def unpacked(wqkv: npt.NDArray[Any], config: ModelConfig) -> Arrays:
    """InternLM2's packed matrix as llama.cpp writes it."""
    decoder = config.decoder
    heads, kv = decoder.num_heads, decoder.num_kv_heads
    groups = [np.split(group, heads // kv + 2) for group in np.split(wqkv, kv)]
    q = np.concatenate([head for group in groups for head in group[:-2]])
    k, v = (np.concatenate([group[at] for group in groups]) for at in (-2, -1))
    return {"q": interleaved(q, heads), "k": interleaved(k, kv), "v": v}


name_table = functools.cache(gguf.get_tensor_name_map)


def gguf_name(arch: gguf.MODEL_ARCH, num_layers: int, name: str) -> str:
    found = name_table(arch, num_layers).get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def text_tensors(weights: Arrays, config: ModelConfig) -> Arrays:
    arch = {"qwen2": gguf.MODEL_ARCH.QWEN2, "internlm2": gguf.MODEL_ARCH.INTERNLM2}
    out: dict[str, npt.NDArray[Any]] = {}
    for name, value in weights.items():
        if not name.startswith("language_model."):
            continue
        short = name.removeprefix("language_model.")
        if short.endswith("attention.wqkv.weight"):
            layer = short.split(".")[2]
            for which, part in unpacked(value, config).items():
                out[f"blk.{layer}.attn_{which}.weight"] = part
            continue
        kind = arch[config.decoder.architecture]
        out[gguf_name(kind, config.decoder.num_layers, short)] = value
    return out


def vision_tensors(weights: Arrays, config: ModelConfig, *, fused: bool = False) -> Arrays:
    assert config.vision is not None
    out: dict[str, npt.NDArray[Any]] = {}
    for name, value in weights.items():
        if name.startswith("language_model."):
            continue
        foreign = f"vision_tower.{name}" if name.startswith("vision_model.") else name
        if name.endswith((".ls1", ".ls2", "position_embedding")):
            foreign += ".weight"
        parts = {foreign: value.squeeze()}
        if ".attn.qkv." in name and not fused:
            split = np.split(value, 3)
            parts = {
                foreign.replace("attn.qkv", f"self_attn.{which}_proj"): part
                for which, part in zip("qkv", split, strict=True)
            }
        elif ".attn.qkv." in name:
            layer, kind = name.split(".")[3], name.split(".")[-1]
            out[f"v.blk.{layer}.attn_qkv.{kind}"] = value
            continue
        for part_name, part in parts.items():
            num_layers = 8  # enough for the layers, and for the four places of mlp1
            out[gguf_name(gguf.MODEL_ARCH.MMPROJ, num_layers, part_name)] = part
    return out


def save(path: Path, arch: str, tensors: Arrays, metadata: Mapping[str, Any]) -> GGUFFile:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path)


def text_metadata(config: ModelConfig) -> dict[str, Any]:
    decoder = config.decoder
    values = {
        "context_length": decoder.max_position_embeddings,
        "embedding_length": decoder.hidden_size,
        "block_count": decoder.num_layers,
        "feed_forward_length": decoder.intermediate_size,
        "attention.head_count": decoder.num_heads,
        "attention.head_count_kv": decoder.num_kv_heads,
        "attention.layer_norm_rms_epsilon": float(decoder.norm_eps),
        "rope.freq_base": float(decoder.rope_theta),
    }
    tokens = [f"t{n}" for n in range(decoder.vocab_size)]
    named = {f"{decoder.architecture}.{key}": value for key, value in values.items()}
    return {"general.type": "model", **named, "tokenizer.ggml.tokens": tokens}


def vision_metadata(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision
    assert vision is not None
    return {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "internvl",
        "clip.use_gelu": True,
        "clip.vision.image_size": vision.image_px,
        "clip.vision.patch_size": vision.patch_px,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.block_count": vision.num_layers,
        "clip.vision.projection_dim": config.decoder.hidden_size,
        "clip.vision.attention.head_count": vision.num_heads,
        "clip.vision.attention.layer_norm_epsilon": float(vision.norm_eps),
        "clip.vision.image_mean": MEAN,
        "clip.vision.image_std": STD,
        "clip.vision.projector.scale_factor": 2,
    }


class Model:
    """A golden checkpoint, from which files are written with or without changes."""

    def __init__(self, source: Path, directory: Path) -> None:
        self.config = read_config(source)
        self.weights = load_file(source / "model.safetensors")
        self.directory = directory

    def text(self, tensors: Arrays = {}, arch: str = "", **metadata: Any) -> GGUFFile:  # noqa: B006
        name = arch or self.config.decoder.architecture
        changed = {f"{name}.{k}" if "." not in k else k: v for k, v in metadata.items()}
        known = {**text_metadata(self.config), **changed}
        all_tensors = {**text_tensors(self.weights, self.config), **tensors}
        return save(self.directory / "text.gguf", name, all_tensors, known)

    def mmproj(
        self,
        metadata: Mapping[str, Any] = {},
        tensors: Arrays = {},  # noqa: B006
        *,
        arch: str = "clip",
        fused: bool = False,
    ) -> GGUFFile:
        known = {**vision_metadata(self.config), **metadata}
        kept = {key: value for key, value in known.items() if value is not None}
        all_tensors = {**vision_tensors(self.weights, self.config, fused=fused), **tensors}
        return save(self.directory / "mmproj.gguf", arch, all_tensors, kept)


@pytest.fixture(params=[QWEN2, INTERNLM2], ids=lambda path: path.name)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return Model(request.param, tmp_path)


@pytest.fixture
def qwen2(tmp_path: Path) -> Model:
    return Model(QWEN2, tmp_path)


@pytest.mark.parametrize("fused", [False, True])
def test_the_configuration_is_that_of_config_json(model: Model, fused: bool) -> None:
    found = read_gguf_config(model.text(), model.mmproj(fused=fused))
    expected = replace(
        model.config, layout="gguf", decoder=replace(model.config.decoder, rope_factor=None)
    )
    assert found == expected


def test_keys_of_ivl_say_what_llama_cpp_leaves_out(tmp_path: Path) -> None:
    internlm2 = Model(INTERNLM2, tmp_path)
    own = {"ivl.rope.dynamic_factor": 2.0, "ivl.use_thumbnail": False, "ivl.ps_version": "v1"}
    tiles = {"clip.vision.preproc_min_tiles": 2, "clip.vision.preproc_max_tiles": 6}
    found = read_gguf_config(
        internlm2.text(**own, **{"ivl.template": "Hermes-2"}), internlm2.mmproj(tiles)
    )
    assert found == replace(
        internlm2.config,
        layout="gguf",
        use_thumbnail=False,
        ps_version="v1",
        template="Hermes-2",
        min_tiles=2,
        max_tiles=6,
    )


def expected_tensors(model: Model) -> Arrays:
    """The checkpoint's tensors under our names, put together from the official layout."""
    from ivl.checkpoint.names import sources

    decoder = model.config.decoder
    out: dict[str, npt.NDArray[Any]] = {}
    for ours, source in sources(model.config).items():
        value = model.weights[source.names[0]]
        if source.combine.startswith("wqkv"):
            per_group = decoder.num_heads // decoder.num_kv_heads + 2
            packed = value.reshape(decoder.num_kv_heads, per_group, decoder.head_dim, -1)
            at = {"q": slice(-2), "k": slice(-2, -1), "v": slice(-1, None)}[source.combine[-1]]
            value = packed[:, at].reshape(-1, packed.shape[-1])
        out[ours] = value
    return out


@pytest.mark.parametrize("fused", [False, True])
def test_every_tensor_is_found_under_our_name(model: Model, fused: bool) -> None:
    text, mmproj = model.text(), model.mmproj(fused=fused)
    config = read_gguf_config(text, mmproj)
    assert config.vision is not None
    tables = (
        (text, text_sources(config.decoder)),
        (mmproj, vision_sources(config.vision, mmproj.tensors)),
    )
    found: dict[str, npt.NDArray[Any]] = {}
    for file, table in tables:
        check_names(table, file.tensors, file.path.name)
        for ours, source in table.items():
            rows = np.concatenate([file.read(name).view(np.float32) for name in source.names])
            order = order_of(source, config)
            found[ours] = rows if order is None else rows[order]
    expected = expected_tensors(model)
    assert found.keys() == expected.keys()
    for ours, value in expected.items():
        assert np.array_equal(found[ours].reshape(-1), value.reshape(-1)), ours


def test_rotary_order_turns_the_same_pairs() -> None:
    """Turning halves of our rows gives the scores that turning neighbours of theirs gives."""
    random, heads, dim = np.random.default_rng(1), 3, 8
    theirs = random.normal(size=(2, heads * dim))
    ours = theirs[:, rotary_order(heads, dim)].reshape(2, heads, 2, dim // 2)
    angles = np.exp(1j * random.normal(size=dim // 2))
    by_halves = (ours[:, :, 0] + 1j * ours[:, :, 1]) * angles
    pairs = theirs.reshape(2, heads, dim // 2, 2)
    by_neighbours = (pairs[..., 0] + 1j * pairs[..., 1]) * angles
    assert np.allclose(by_halves, by_neighbours)
    order = rotary_order(heads, dim)
    assert np.array_equal(theirs[:, order][:, np.argsort(order)], theirs)


def test_missing_and_unexpected_tensors_are_named(qwen2: Model) -> None:
    file = qwen2.text({"blk.0.attn_q_norm.weight": np.ones(4)})
    table = text_sources(qwen2.config.decoder)
    with pytest.raises(CheckpointError, match=r"also holds 1 tensor: blk.0.attn_q_norm.weight"):
        check_names(table, file.tensors, "text.gguf")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor: blk.1.ffn_up.weight"):
        check_names(table, file.tensors.keys() - {"blk.1.ffn_up.weight"}, "text.gguf")


def refused(text: GGUFFile, mmproj: GGUFFile | None, kind: type[IvlError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        read_gguf_config(text, mmproj)
    assert type(caught.value) is kind
    assert caught.value.hint


def test_a_text_file_alone_is_a_text_model(qwen2: Model) -> None:
    found = read_gguf_config(qwen2.text(), None)
    assert found.vision is None
    assert found.decoder == qwen2.config.decoder


def test_files_in_each_others_place_are_told_apart(qwen2: Model) -> None:
    text, mmproj = qwen2.text(), qwen2.mmproj()
    refused(mmproj, text, CheckpointError, "wrong way round")
    refused(mmproj, None, CheckpointError, "is a projector")
    refused(text, text, CheckpointError, r"is a language model \(qwen2\)")


PROJECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "'mlp' .LLaVA": ("clip", {"clip.projector_type": "mlp", "clip.has_llava_projector": True}),
    "'mlp' .LLaVA.": ("clip", {"clip.projector_type": None, "clip.has_llava_projector": True}),
    "Llama 3.2 Vision": ("mllama", {}),
    "Qwen2-VL": ("clip", {"clip.projector_type": "qwen2vl_merger"}),
    "Llama 4": ("clip", {"clip.projector_type": None, "clip.vision.projector_type": "llama4"}),
    "'nothing'": ("clip", {"clip.projector_type": None}),
    "no vision tower": ("clip", {"clip.has_vision_encoder": False}),
    "hears": ("clip", {"clip.has_audio_encoder": True}),
    "not GELU": ("clip", {"clip.use_gelu": False, "clip.use_silu": True}),
    "clip.vision.n_wa_pattern": ("clip", {"clip.vision.n_wa_pattern": 8}),
    "clip.vision.feature_layer": ("clip", {"clip.vision.feature_layer": [3]}),
}


@pytest.mark.parametrize("match", PROJECTORS)
def test_projectors_of_other_families_are_refused(match: str, qwen2: Model) -> None:
    arch, metadata = PROJECTORS[match]
    refused(qwen2.text(), qwen2.mmproj(metadata, arch=arch), UnsupportedError, match)


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "normalises images with the mean 0.4815": {
        "clip.vision.image_mean": [0.48145466, 0.4578275, 0.40821073]
    },
    "normalises images with the std 0.5": {"clip.vision.image_std": [0.5, 0.5, 0.5]},
    "tiles of 224 pixels have 256 patches": {"clip.vision.image_size": 224},
    "patches of 28 pixels": {"clip.vision.patch_size": 28},
    "pixel shuffle of 3": {"clip.vision.projector.scale_factor": 3},
    "mm.model.mlp.0.weight has the shape": {"clip.vision.projector.scale_factor": 4},
    "features of width 999": {"clip.vision.projection_dim": 999},
}


@pytest.mark.parametrize("match", CONTRADICTIONS)
def test_projectors_that_contradict_themselves_are_refused(match: str, qwen2: Model) -> None:
    refused(qwen2.text(), qwen2.mmproj(CONTRADICTIONS[match]), CheckpointError, match)


def test_a_projector_of_another_width_is_refused(qwen2: Model) -> None:
    wide = {"mm.model.mlp.3.weight": np.ones((512, qwen2.config.decoder.hidden_size))}
    refused(qwen2.text(), qwen2.mmproj({}, wide), CheckpointError, "features of width 512")


def test_what_the_projector_must_say_is_asked_for(qwen2: Model) -> None:
    text = qwen2.text()
    for key in ("clip.vision.image_mean", "clip.vision.block_count"):
        refused(text, qwen2.mmproj({key: None}), ConfigError, f"does not say {key}")
    wrong = qwen2.mmproj({"clip.vision.block_count": "two"})
    refused(text, wrong, ConfigError, "block_count must be a whole number, not 'two'")


TEXTS: dict[str, tuple[type[IvlError], dict[str, Any]]] = {
    "the tokenizer has 2 tokens": (CheckpointError, {"tokenizer.ggml.tokens": ["a", "b"]}),
    "the model has 77 tokens": (CheckpointError, {"vocab_size": 77}),
    "token_embd.weight has the shape": (CheckpointError, {"embedding_length": 4096}),
    "type 'yarn'": (UnsupportedError, {"qwen2.rope.scaling.type": "yarn"}),
    "type 'linear'": (
        UnsupportedError,
        {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0},
    ),
    "mixture of experts": (UnsupportedError, {"expert_count": 8}),
    "rope.dimension_count is 8": (UnsupportedError, {"qwen2.rope.dimension_count": 8}),
    "setting qwen2.attention.sliding_window": (
        UnsupportedError,
        {"qwen2.attention.sliding_window": 4096},
    ),
    "setting ivl.tempalte": (UnsupportedError, {"ivl.tempalte": "x"}),
    "of type 'imatrix'": (UnsupportedError, {"general.type": "imatrix"}),
}


@pytest.mark.parametrize("match", TEXTS)
def test_decoders_that_are_not_run_are_refused(match: str, qwen2: Model) -> None:
    kind, metadata = TEXTS[match]
    refused(qwen2.text(**metadata), None, kind, match)


def test_other_architectures_and_rotary_tables_are_refused(qwen2: Model) -> None:
    refused(qwen2.text(arch="gemma3"), None, UnsupportedError, "'gemma3' model")
    table = qwen2.text({"rope_freqs.weight": np.ones(8)})
    refused(table, None, UnsupportedError, "table of frequencies")
