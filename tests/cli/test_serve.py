"""`ivl serve` as a process: its start, a signal while it works, and what keeps it from starting."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import ivl
from ivl.cli.main import run
from ivl.cli.options import ModelChoice
from ivl.cli.serve import _models
from ivl.errors import CheckpointError, ConfigError
from ivl.server.settings import ServerSettings

TIMEOUT_S = 60


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, its address, and the lines of its log so far, which is ready."""
    command = ["-m", "ivl.cli.main", "serve", "--model", str(model), "--port", "0", *options]
    with started(command) as found:
        yield found


@contextmanager
def started(arguments: list[str]) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """As `serving`, of a Python program that serves."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if " ready: " in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(TIMEOUT_S)
        found = re.search(r"listening on (\S+)", "".join(lines))
        assert found, "".join(lines)
        yield process, found[1], lines
    finally:
        process.kill()
        process.wait()
        reader.join()


def test_a_signal_lets_running_answers_end_and_refuses_new_ones(tiny_model_dir: Path) -> None:
    with serving(tiny_model_dir, "--name", "tiny") as (process, url, lines):
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
        body = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 300}
        texts, begun = [], threading.Barrier(4)

        def ask() -> None:
            with httpx.stream(
                "POST",
                f"{url}/v1/chat/completions",
                json={**body, "stream": True},
                timeout=TIMEOUT_S,
            ) as answer:
                pieces = (line for line in answer.iter_lines() if line.startswith("data: "))
                next(pieces)
                begun.wait(TIMEOUT_S)
                texts.append(list(pieces))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        begun.wait(TIMEOUT_S)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert process.wait(TIMEOUT_S) == 0
        for pieces in texts:
            assert pieces[-1] == "data: [DONE]"
            reason = json.loads(pieces[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
            assert reason == "length"
        assert len(texts) == 3
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        assert not [line for line in lines if "Traceback" in line or "ERROR" in line]


def test_answers_that_outlast_the_drain_are_cut_off_with_an_error(tiny_model_dir: Path) -> None:
    with serving(tiny_model_dir, "--drain", "0") as (process, url, _):
        body = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 400}
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json={**body, "stream": True}, timeout=TIMEOUT_S
        ) as answer:
            pieces = (line for line in answer.iter_lines() if line.startswith("data: "))
            next(pieces)
            process.send_signal(signal.SIGTERM)
            rest = list(pieces)
        assert "stopping" in rest[-1] or rest[-1] == "data: [DONE]"
        assert process.wait(TIMEOUT_S) == 0


def test_the_function_behind_the_command(tiny_model_dir: Path) -> None:
    """It serves until a signal comes, and returns: with models by name, and limits."""
    program = f"""
import ivl
tiny = ivl.LoadOptions(model={str(tiny_model_dir)!r}, context=512)
ivl.serve(
    {{"tiny": tiny, "other": "demo"}},
    port=0,
    settings=ivl.ServerSettings(api_key="k"),
    limits=ivl.EngineLimits(max_sequences=2),
)
print("returned", file=__import__("sys").stderr)
"""
    with started(["-c", program]) as (process, url, lines):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        key = {"Authorization": "Bearer k"}
        names = [m["id"] for m in httpx.get(f"{url}/v1/models", headers=key).json()["data"]]
        assert names == ["tiny", "other"]
        body = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 3}
        path = f"{url}/v1/chat/completions"
        answer = httpx.post(path, json=body, headers=key, timeout=TIMEOUT_S)
        assert answer.json()["usage"]["completion_tokens"] == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
    assert lines[-1] == "returned\n"


def test_what_cannot_be_served_is_told_before_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model to serve"):
        ivl.serve({}, port=0, log_level=None)
    with pytest.raises(ConfigError, match="`port` is 70000"):
        ivl.serve(port=70000, log_level=None)
    with pytest.raises(ConfigError, match="no `log_level` 'loud'"):
        ivl.serve(port=0, log_level="loud")
    with pytest.raises(ConfigError, match="`tls_cert` and `tls_key`"):
        ivl.serve(port=0, tls_cert=tmp_path / "a", log_level=None)
    with pytest.raises(ConfigError, match="There is no file"):
        ivl.serve(port=0, tls_cert=tmp_path / "a", tls_key=tmp_path / "b", log_level=None)
    with pytest.raises(CheckpointError, match="There is no model 'nosuch'"):
        ivl.serve({"a": "demo", "b": "nosuch"}, port=0, log_level=None)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], tiny_model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["serve", "--model", str(tiny_model_dir), "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"port {port}, cannot be used" in error
    assert "--port" in error


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--port", "x"], "'--port': it must be a whole number."),
        (["--log-level", "loud"], "no --log-level 'loud'"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key belong together"),
        (["--max-sequences", "0"], "--max-sequences"),
        (["--also", "demo"], "--also"),
        (["demo"], "ivl serve --model demo"),
        (["--model", "nosuch"], "There is no model 'nosuch'"),
        (["--also", "x=nosuch"], "There is no model 'nosuch'"),
        (["--api-key", ""], "--api-key is empty"),
        (["--api-key", "a b"], "no header can have"),
        (["--cors", "null"], "sandboxed frame"),
        (["--threads", "9999"], "--threads"),
        (["--threads", "100000000000"], "--threads"),
        (["--host", "8.8.8.8"], "--host is an address of this machine"),
        (["--kv-tokens", "5"], "larger --kv-tokens"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *options]) == 2
    assert word in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["serve", "--model", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "none" in capsys.readouterr().err


def test_another_model_has_no_revision_of_the_first() -> None:
    choice = ModelChoice(model="OpenGVLab/InternVL2_5-1B", revision="v1", mmproj=Path("a.gguf"))
    models = _models(choice, None, ["small=demo"])
    assert models["small"] == replace(choice, model="demo", revision=None, mmproj=None)


@pytest.mark.parametrize(
    "origin",
    ["localhost:3000", "http://a.example/", "http://", "http://a b", "http://u@a", "a.example", ""],
)
def test_an_origin_that_no_browser_would_send(origin: str) -> None:
    with pytest.raises(ConfigError, match="is no origin of web pages") as caught:
        ServerSettings(cors_origins=(origin,))
    assert caught.value.hint
    for right in ("*", "http://localhost:3000", "https://a.example", "http://[::1]:80"):
        ServerSettings(cors_origins=(right, "chrome-extension://abc"))


def test_an_origin_without_a_scheme_on_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["serve", "--cors", "localhost:3000", "--port", "0"]) == 2
    assert "hint: An origin has a scheme: http://localhost:3000" in capsys.readouterr().err


def test_an_open_door_is_said(tiny_model_dir: Path) -> None:
    with serving(tiny_model_dir, "--host", "0.0.0.0") as (_, _, lines):
        assert any("everybody who can reach" in line and "--api-key" in line for line in lines)
    with serving(tiny_model_dir, "--host", "0.0.0.0", "--api-key", "k") as (_, _, lines):
        assert not any("everybody" in line for line in lines)


def test_a_server_guesses_ahead(tiny_model_dir: Path) -> None:
    """Its answers stay the same, and its metrics say what was guessed."""
    body = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 200}
    texts = []
    for options in ((), ("--draft", "lookup", "--draft-tokens", "3")):
        with serving(tiny_model_dir, "--dtype", "float32", *options) as (_, url, _):
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=TIMEOUT_S).json()
            texts.append(answer["choices"][0]["message"]["content"])
            metrics = httpx.get(f"{url}/metrics").text
        found = re.search(r"ivl_kept_tokens_total\{.*\} ([0-9.]+)", metrics)
        assert found
        assert (float(found[1]) > 0) == bool(options)
    assert texts[0] == texts[1]


def test_a_draft_that_cannot_guess_keeps_the_server_from_starting(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--context", "512", "--draft", str(tiny_model_dir), "--port", "0"]) == 2
    assert "its tiles differ" in capsys.readouterr().err
