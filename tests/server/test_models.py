"""Several models by name where the memory holds one, and https."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ivl.cli.main import run
from ivl.engine.engine import EngineLimits
from ivl.engine.service import Service
from ivl.errors import CapacityError, ConfigError
from ivl.loading import LoadOptions
from ivl.server.ollama import parameter_size
from ivl.server.run import make_server
from ivl.server.settings import ServerSettings
from ivl.serving import stored_facts
from tests.cli.test_serve import serving
from tests.server.conftest import TIMEOUT_S

BODY = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 4}


class Room:
    """Memory for one model: who loads another before the first is closed gets CapacityError."""

    def __init__(self, model: Any) -> None:
        self.model, self.loads = model, []
        self.inside: Service | None = None

    def loader(self, name: str) -> Any:
        def load() -> Service:
            if self.inside is not None and self.inside.is_alive:
                raise CapacityError("The memory holds one model.", "Close the other.")
            self.loads.append(name)
            self.inside = Service(
                self.model.engine.with_limits(EngineLimits(for_many=True, kv_tokens=2048))
            )
            return self.inside

        return load


@contextmanager
def served(loaders: dict[str, Any], **more: Any) -> Iterator[httpx.Client]:
    server = make_server(loaders, ServerSettings(drain_s=5.0), port=0, **more)
    thread = threading.Thread(target=server.serve_models)
    thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def test_one_model_takes_the_place_of_another(tiny: Any) -> None:
    room = Room(tiny)
    with served({"a": room.loader("a"), "b": room.loader("b")}) as client:
        for name in ("a", "b", "b", "a"):
            answer = client.post("/v1/chat/completions", json={**BODY, "model": name})
            assert answer.status_code == 200
            assert answer.json()["model"] == name
            shown = client.get("/api/ps").json()["models"]
            assert [model["name"] for model in shown] == [f"{name}:latest"]
        assert room.loads == ["a", "b", "a"]
        assert client.post("/v1/chat/completions", json={**BODY, "model": "c"}).status_code == 404


def test_a_model_in_use_ends_its_answers_before_it_goes(tiny: Any) -> None:
    room = Room(tiny)
    with served({"a": room.loader("a"), "b": room.loader("b")}) as client:
        long = {**BODY, "model": "a", "max_tokens": 300, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=long) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("data: "))
            next(lines)
            other: list[int] = []

            def ask() -> None:
                body = {**BODY, "model": "b"}
                url = f"{client.base_url}/v1/chat/completions"
                other.append(httpx.post(url, json=body, timeout=TIMEOUT_S).status_code)

            thread = threading.Thread(target=ask)
            thread.start()
            rest = list(lines)
        thread.join(TIMEOUT_S)
        assert rest[-1] == "data: [DONE]"
        assert '"length"' in rest[-2]
        assert other == [200]
        assert room.loads == ["a", "b"]


def test_users_that_overlap_do_not_keep_another_model_out(tiny: Any) -> None:
    """As long as somebody asks for the one, there is always a user of it."""
    room = Room(tiny)
    with served({"a": room.loader("a"), "b": room.loader("b")}) as client:
        url, stop = f"{client.base_url}/v1/chat/completions", threading.Event()
        statuses: list[int] = []

        def keep_asking() -> None:
            while not stop.is_set():
                body = {**BODY, "model": "a", "max_tokens": 60}
                statuses.append(httpx.post(url, json=body, timeout=TIMEOUT_S).status_code)

        threads = [threading.Thread(target=keep_asking) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            answer = client.post("/v1/chat/completions", json={**BODY, "model": "b"})
        finally:
            stop.set()
            for thread in threads:
                thread.join(TIMEOUT_S)
        assert answer.status_code == 200
        assert answer.json()["model"] == "b"
        assert set(statuses) == {200}


def test_a_client_that_leaves_while_its_model_is_loaded_leaves_nothing_behind(tiny: Any) -> None:
    room, begun, go_on = Room(tiny), threading.Event(), threading.Event()

    def slow() -> Service:
        begun.set()
        assert go_on.wait(TIMEOUT_S)
        return room.loader("b")()

    with served({"a": room.loader("a"), "b": slow}) as client:
        client.post("/v1/chat/completions", json={**BODY, "model": "a"})
        room.inside = None  # there is room for both
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json={**BODY, "model": "b"}, timeout=0.3)
        assert begun.is_set()
        go_on.set()
        answer = client.post("/v1/chat/completions", json={**BODY, "model": "b"})
        assert answer.status_code == 200
        assert room.loads == ["a", "b"]
        unload = {"model": "b", "messages": [], "keep_alive": 0}
        assert client.post("/api/chat", json=unload).json()["done_reason"] == "unload"
        names = [model["name"] for model in client.get("/api/ps").json()["models"]]
        assert names == ["a:latest"]


def test_keep_alive_lets_a_model_go_and_it_comes_back(tiny: Any) -> None:
    room = Room(tiny)
    with served({"a": room.loader("a")}) as client:
        ask = {"model": "a", "stream": False, "messages": BODY["messages"]}
        ask["options"] = {"num_predict": 2}
        for seconds in (0, "100ms"):
            answer = client.post("/api/chat", json={**ask, "keep_alive": seconds})
            assert answer.json()["done_reason"] == "length"
            until = time.monotonic() + TIMEOUT_S
            while client.get("/api/ps").json()["models"]:
                assert time.monotonic() < until
                time.sleep(0.02)
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (200, "idle")
        client.post("/api/chat", json={**ask, "keep_alive": "300ms"})
        client.post("/api/chat", json={**ask, "keep_alive": -1})
        time.sleep(0.5)
        assert client.get("/api/ps").json()["models"]
        assert room.loads == ["a", "a", "a"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_fails_ends_the_server(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is told so with 503, and not to come back to this one."""
    loaders = {
        "a": lambda: Service(tiny.engine.with_limits(EngineLimits(for_many=True, kv_tokens=2048)))
    }
    server = make_server(loaders, ServerSettings(drain_s=1.0), port=0)
    raised: list[BaseException] = []

    def serve() -> None:
        try:
            server.serve_models()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
        assert client.post("/v1/chat/completions", json=BODY).status_code == 200

        def fault(*_: Any) -> Any:
            raise RuntimeError("CUDA error: device-side assert triggered")

        monkeypatch.setattr(tiny.engine.model, "extend", fault)
        answer = client.post("/v1/chat/completions", json=BODY)
        assert answer.status_code == 503
        assert "failed" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"]
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert "device-side" in str(raised[0])


def test_what_cannot_be_loaded_is_an_error_and_the_others_stay(tiny: Any) -> None:
    room = Room(tiny)

    def broken() -> Service:
        raise ConfigError("This model is damaged.")

    with served({"a": room.loader("a"), "broken": broken}) as client:
        answer = client.post("/v1/chat/completions", json={**BODY, "model": "broken"})
        assert answer.status_code >= 400
        assert answer.json()["error"]["message"]
        answer = client.post("/v1/chat/completions", json={**BODY, "model": "a"})
        assert answer.status_code == 200
        assert room.loads == ["a"]


def test_sizes_of_models_are_told_before_they_are_loaded(
    tiny: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    weights = tiny_model_dir / "model.safetensors"
    facts = stored_facts(LoadOptions(model=tiny_model_dir))
    assert facts is not None
    assert facts.num_bytes == weights.stat().st_size
    assert (facts.format, facts.kind) == ("safetensors", "F32")
    assert facts.num_parameters == sum(p.numel() for p in tiny.engine.model.parameters())
    assert stored_facts(LoadOptions(model=tmp_path / "none")) is None
    room = Room(tiny)
    loaders = {"a": room.loader("a"), "b": room.loader("b")}
    stored = {"b": lambda: stored_facts(LoadOptions(model=tiny_model_dir))}
    with served(loaders, stored=stored) as client:
        models = {model["name"]: model for model in client.get("/api/tags").json()["models"]}
        assert models["b:latest"]["size"] == weights.stat().st_size
        details = models["b:latest"]["details"]
        assert details["parameter_size"] == parameter_size(facts.num_parameters)
        assert (details["format"], details["quantization_level"]) == ("safetensors", "F32")
        assert "b" not in room.loads


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=ivl",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    command += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_https(tls: tuple[Path, Path], tiny_model_dir: Path) -> None:
    cert, key = tls
    with serving(tiny_model_dir, "--tls-cert", str(cert), "--tls-key", str(key)) as (_, url, _):
        assert url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(cert))
        body = {**BODY, "model": tiny_model_dir.name}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, verify=trusting)
        assert answer.status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")  # nobody vouches for the certificate
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http{url.removeprefix('https')}/health")


def test_tls_files_that_do_not_belong_together(
    tls: tuple[Path, Path], tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cert, _ = tls
    for key in (cert, tiny_model_dir / "config.json"):
        options = ["--tls-cert", str(cert), "--tls-key", str(key), "--port", "0"]
        assert run(["serve", "--model", str(tiny_model_dir), *options]) == 2
        assert "TLS" in capsys.readouterr().err
