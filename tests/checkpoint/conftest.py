"""A hub on localhost that speaks what huggingface_hub asks of one."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """One model, what the server is to do wrong, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    repo: str = "owner/model"
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    claimed_bytes: dict[str, int] = field(default_factory=dict)
    failure: tuple[int, dict[str, str]] | None = None
    failing_files: dict[str, int] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    """Bytes of a file after which the connection is cut, once."""
    listing: bytes | None = None
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    """Method, path and, where it was asked for, range of every request."""

    def fetched(self) -> set[str]:
        return {r.split("/")[-1].split()[0] for r in self.requests if r.startswith("GET /owner")}

    def description(self, revision: str) -> bytes:
        siblings = [
            {"rfilename": name, "size": self.claimed_bytes.get(name, len(data)), "blobId": "0"}
            for name, data in self.files.items()
        ]
        sha = self.commits.get(revision, revision)
        return json.dumps({"id": self.repo, "sha": sha, "siblings": siblings}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    # Headers and body in one packet: apart, they wait for each other's acknowledgement.
    wbufsize = 1 << 16
    hub: Hub

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        asked_range = self.headers.get("Range")
        hub.requests.append(f"{self.command} {path}{f' {asked_range}' if asked_range else ''}")
        if hub.failure is not None:
            return self._send(hub.failure[0], b"", hub.failure[1])
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        if found is None or found[1] != hub.repo:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if found[2] not in hub.commits and found[2] not in hub.commits.values():
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if api:
            return self._send(200, hub.listing or hub.description(api[2]), {})
        return self._send_file(found[3], hub.commits.get(found[2], found[2]), asked_range)

    def _send_file(self, name: str, commit: str, asked_range: str | None) -> None:
        data = self.hub.files.get(name)
        if data is None or name in self.hub.failing_files:
            status = self.hub.failing_files.get(name, 404)
            return self._send(status, b"", {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha1(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        status = 200
        if asked_range:
            start = int(asked_range.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        cut = self.hub.cut_after.pop(name, None) if self.command == "GET" else None
        return self._send(status, data, headers, cut)

    def _send(
        self, status: int, data: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub, set as HF_ENDPOINT."""
    state = Hub()
    handler = type("Handler", (_Handler,), {"hub": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", state.endpoint)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield state
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


@pytest.fixture
def model(hub: Hub) -> Hub:
    """A sharded model with everything that a real repository has beside it."""
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    hub.files.update(
        {
            ".gitattributes": b"*.safetensors lfs",
            "README.md": b"# Model",
            "config.json": b'{"model_type": "internvl_chat"}',
            "configuration_internvl_chat.py": b"raise SystemExit",
            "examples/image1.json": b"{}",
            "generation_config.json": b"{}",
            "merges.txt": b"#version: 0.2",
            "model-00001-of-00002.safetensors": bytes(range(256)) * 40,
            "model-00002-of-00002.safetensors": b"second",
            "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
            "consolidated.safetensors": b"the same again",
            "pytorch_model.bin": b"pickle",
            "tokenizer.model": b"pieces",
            "vocab.json": b'{"a": 0}',
        }
    )
    return hub


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def internlm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random InternLM2 model with the 6B tower's kind of layers and its own tokenizer."""
    import torch
    from safetensors.torch import save_file

    from bench.random_checkpoint import official_shapes
    from bench.tokenizer_files import write_tokenizer
    from ivl.config import read_config

    directory = tmp_path_factory.mktemp("models") / "internlm2-like"
    directory.mkdir()
    raw = json.loads((GOLDEN / "internvit-6b-like_internlm2/config.json").read_text("utf-8"))
    raw["llm_config"]["vocab_size"] = 92553
    raw["llm_config"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    raw["llm_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    write_tokenizer("internlm2", directory)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator).mul(0.1)
        for name, shape in official_shapes(read_config(directory)).items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
