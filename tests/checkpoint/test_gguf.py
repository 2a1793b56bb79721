"""GGUF files: compared with the package `gguf`, which wrote them, and fuzzed."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivl.checkpoint.gguf import GGUFFile
from ivl.errors import CheckpointError, IvlError, UnsupportedError
from ivl.quant.formats import FORMATS

COLUMNS = 512


def write(path: Path, **options: Any) -> Path:
    """A file with metadata of every type and a tensor of every format."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen2", **options)
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000)
    writer.add_uint32("t.u32", 4000000000)
    writer.add_int32("t.i32", -2000000000)
    writer.add_float32("t.f32", 0.1)
    writer.add_uint64("t.u64", 2**63 + 1)
    writer.add_int64("t.i64", -(2**62))
    writer.add_float64("t.f64", 0.1)
    writer.add_bool("t.bool", True)
    writer.add_string("t.text", "書生 \n é")
    writer.add_array("t.texts", ["", "a", "👍🏽"])
    writer.add_array("t.numbers", [1, -2, 3])
    writer.add_array("t.floats", [0.5, -1.25])
    writer.add_array("t.bools", [True, False])
    for name, format_ in FORMATS.items():
        shape = (3, COLUMNS // format_.block_size * format_.block_bytes)
        raw = random.integers(0, 256, shape, np.uint8)
        writer.add_tensor(f"a.{name}", raw, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.add_tensor("patch", random.normal(size=(4, 3, 2, 2)).astype(np.float32))
    writer.add_tensor("bias", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "model.gguf")


def assert_equals_reader(ours: GGUFFile, oracle: gguf.GGUFReader) -> None:
    for tensor in oracle.tensors:
        entry = ours.tensors[tensor.name]
        assert entry.format.name == tensor.tensor_type.name
        assert entry.shape == tuple(tensor.shape.tolist())[::-1]
        assert ours.read(tensor.name).tobytes() == tensor.data.tobytes()
        assert ours.read(tensor.name).shape == (entry.rows, entry.row_bytes)


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_metadata_and_tensors_equal_those_of_the_reader(file: Path) -> None:
    ours, oracle = GGUFFile(file), gguf.GGUFReader(file)
    fields = {n: f for n, f in oracle.fields.items() if not n.startswith("GGUF.")}
    assert ours.metadata.keys() == fields.keys()
    for name, field in fields.items():
        assert plain(ours.metadata[name]) == field.contents(), name
        assert type(plain(ours.metadata[name])) is type(field.contents()), name
    assert len(ours.tensors) == len(oracle.tensors) == len(FORMATS) + 2
    assert_equals_reader(ours, oracle)


def test_views_are_not_copies_and_cannot_be_written_to(file: Path) -> None:
    first, again = (GGUFFile(file) for _ in range(2))
    assert np.shares_memory(first.read("bias"), first.read("bias"))
    with pytest.raises(ValueError, match="read-only"):
        first.read("bias")[0, 0] = 1
    view = again.read("bias")
    del again
    assert view.view(np.float32).tolist() == [[0, 1, 2, 3, 4]]


def test_version_2_and_other_alignments_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    writer.add_tensor("a", np.ones(3, np.float32))
    writer.add_tensor("b", np.full(3, 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", 2)
    path.write_bytes(content)
    ours = GGUFFile(path)
    assert ours.version == 2
    assert ours.tensors["b"].offset % 256 == 0
    assert ours.read("b").view(np.float32).tolist() == [[2, 2, 2]]


def test_leading_dimensions_of_one_say_nothing(tmp_path: Path) -> None:
    """llama.cpp's converter keeps them, for the class token and the positions; ggml does not."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_tensor("v.class_embd", np.ones((1, 1, 8), np.float32))
    writer.add_tensor("v.position_embd.weight", np.ones((1, 5, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shapes = {name: entry.shape for name, entry in GGUFFile(path).tensors.items()}
    assert shapes == {"v.class_embd": (8,), "v.position_embd.weight": (5, 8)}


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write(tmp_path / "model.gguf", split_max_tensors=6)
    return sorted(tmp_path.glob("*.gguf"))


def test_any_part_of_a_split_file_stands_for_all(parts: list[Path]) -> None:
    assert len(parts) == 3
    for path in parts:
        ours = GGUFFile(path)
        assert list(ours.files) == parts
        assert ours.metadata["t.text"] == "書生 \n é"
        assert len(ours.tensors) == len(FORMATS) + 2
        for part in parts:
            assert_equals_reader(ours, gguf.GGUFReader(part))


def test_missing_parts_are_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(
        CheckpointError, match=r"lacks 1 of 3 parts.*model-00002-of-00003"
    ) as caught:
        GGUFFile(parts[0])
    assert caught.value.hint


def test_renamed_and_mixed_up_parts_are_found(parts: list[Path]) -> None:
    spare = parts[0].with_name("spare.gguf")
    spare.write_bytes(parts[0].read_bytes())
    with pytest.raises(CheckpointError, match="one of 3 parts, but its name"):
        GGUFFile(spare)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(CheckpointError, match="not part 2 of 3"):
        GGUFFile(parts[0])


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, *, dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    layout = f"<I{len(dims)}QIQ"
    return text(name) + struct.pack(layout, len(dims), *dims, kind, offset)


def content(
    tensors: Sequence[bytes] = (), metadata: Sequence[bytes] = (), data: int = 64, **counts: int
) -> bytes:
    num_tensors = counts.get("num_tensors", len(tensors))
    num_metadata = counts.get("num_metadata", len(metadata))
    start = b"GGUF" + struct.pack("<IQQ", counts.get("version", 3), num_tensors, num_metadata)
    header = start + b"".join(metadata) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


def array(kind: int, count: int, rest: bytes = b"") -> bytes:
    return text("k") + struct.pack("<IIQ", 9, kind, count) + rest


NESTED = array(9, 1, struct.pack("<IQ", 9, 1) * 5 + struct.pack("<IQ", 0, 0))
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"GGUF", "truncated"),
    "no GGUF": (b"GIF89a" + bytes(99), "no GGUF file"),
    "many tensors": (content(num_tensors=2**60), "claims"),
    "many entries": (content(num_metadata=2**40), "claims"),
    "long name": (content(metadata=[struct.pack("<Q", 2**50)], data=99), "name of"),
    "long text": (content(metadata=[text("k") + struct.pack("<IQ", 8, 2**50)]), "truncated"),
    "long array": (content(metadata=[array(4, 2**50)]), "claims"),
    "many strings": (content(metadata=[array(8, 2**50)]), "claims"),
    "strings run out": (content(metadata=[array(8, 8, text("x" * 60))], data=0), "truncated"),
    "nested": (content(metadata=[NESTED]), "nests"),
    "unknown type": (content(metadata=[text("k") + struct.pack("<I", 77)]), "unknown type 77"),
    "truth": (content(metadata=[text("k") + struct.pack("<IB", 7, 2)]), "truth"),
    "no UTF-8": (content(metadata=[struct.pack("<Q", 1) + b"\xff"]), "UTF-8"),
    "twice": (content(metadata=[text("k") + struct.pack("<IB", 7, 1)] * 2), "twice"),
    "tensor twice": (content([entry("a"), entry("a", offset=32)]), "twice"),
    "alignment": (
        content(metadata=[text("general.alignment") + struct.pack("<II", 4, 48)]),
        "power of two",
    ),
    "dimensions": (content([entry("a", dims=(1,) * 5)]), "5 dimensions"),
    "no rows": (content([entry("a", dims=(8, 0))]), "shape"),
    "part of a block": (content([entry("a", dims=(33,), kind=8)]), "shape"),
    "unaligned": (content([entry("a", offset=8)]), "unaligned"),
    "overlap": (content([entry("a", dims=(16,)), entry("b", offset=32)]), "overlap"),
    "outside": (content([entry("a", dims=(8,), offset=2**40)]), "truncated"),
    "too large": (content([entry("a", dims=(2**62, 2**62))]), "truncated"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(DAMAGED[case][0])
    with pytest.raises(CheckpointError, match=DAMAGED[case][1]) as caught:
        GGUFFile(path)
    assert caught.value.hint


UNSUPPORTED: dict[str, tuple[bytes, str]] = {
    "version 1": (content(version=1), "version 1"),
    "big-endian": (content(version=3 << 24), "big-endian"),
    "IQ2_XS": (content([entry("a", dims=(256,), kind=17)]), "'a' is of type IQ2_XS"),
    "future type": (content([entry("a", kind=999)]), "'a' is of type number 999"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_read_is_named(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(UNSUPPORTED[case][0])
    with pytest.raises(UnsupportedError, match=UNSUPPORTED[case][1]) as caught:
        GGUFFile(path)
    assert caught.value.hint


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(CheckpointError):
            GGUFFile(path)


@pytest.mark.parametrize("start", [b"version https://git-lfs.github.com/spec/v1\n", b"tjgg"])
def test_hints_say_what_the_file_is_instead(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(start + bytes(99))
    with pytest.raises(CheckpointError, match=r"Git LFS pointer|older"):
        GGUFFile(path)


def small(path: Path) -> bytes:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_uint32("qwen2.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "", "def"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_tensor("a", np.ones((2, 8), np.float32))
    writer.add_tensor("b", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def survives(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], None]:
    """Reads a file to the end, or sees it refused, without taking much memory."""
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        refusal: IvlError | None = None
        tracemalloc.start()
        try:
            ours = GGUFFile(path)
            for name, info in ours.tensors.items():
                assert ours.read(name).nbytes == info.num_bytes <= len(data)
        except IvlError as error:
            refusal = error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert refusal is None or refusal.hint
        assert peak < 200_000 + 30 * len(data)

    return check


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small(tmp_path_factory.mktemp("seed") / "model.gguf")


fuzz = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]),
    st.integers(0, 300),
)


@fuzz
@given(changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4))
def test_changed_bytes_never_crash(
    changes: list[tuple[int, int]], seed: bytes, survives: Callable[[bytes], None]
) -> None:
    data = bytearray(seed)
    for at, value in changes:
        data[at % len(data)] = value
    survives(bytes(data))


@fuzz
@given(at=st.integers(0, 700), number=NUMBERS, length=st.integers(0, 1200))
def test_lying_numbers_and_cut_files_never_crash(
    at: int, number: int, length: int, seed: bytes, survives: Callable[[bytes], None]
) -> None:
    at %= len(seed)
    changed = seed[:at] + struct.pack("<Q", number) + seed[at + 8 :]
    survives(changed[: length or None])
    survives(changed)


def test_every_cut_of_a_file_is_noticed(seed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(seed)
    last = GGUFFile(path).tensors["b"]
    for length in range(0, last.offset + last.num_bytes, 7):
        path.write_bytes(seed[:length])
        with pytest.raises(CheckpointError):
            GGUFFile(path)
