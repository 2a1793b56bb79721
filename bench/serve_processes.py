"""Servers in processes of their own, on loopback: ours, and llama.cpp's."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

READY_S = 120


@contextmanager
def ivl_server(
    model: str, mmproj: str | None = None, *, more: tuple[str, ...] = ()
) -> Iterator[tuple[str, int]]:
    """`ivl serve`, which is ready; its address and its process id."""
    command = [sys.executable, "-m", "ivl.cli.main", "serve", "--model", model]
    command += ["--port", "0", "--max-queued", "256", *more]
    command += ["--mmproj", mmproj] if mmproj else []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        if found := re.search(r"listening on (\S+)", line):
            url = found[1]
        if " ready: " in line:
            break
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    try:
        if process.poll() is not None or not url:
            raise SystemExit("error: ivl serve did not start")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)
        drain.wait(10)


@contextmanager
def llama_server(
    program: Path,
    model: str,
    mmproj: str | None,
    *,
    parallel: int,
    context: int,
    threads: int,
    more: tuple[str, ...] = (),
) -> Iterator[tuple[str, int]]:
    """llama.cpp's server, which is ready; its address and its process id.

    Each of its `parallel` seats has `context` tokens; all else is as it chooses itself, or as
    further options say.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(program), "--model", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--parallel", str(parallel), "--ctx-size", str(parallel * context)]
    command += ["--threads", str(threads), *more]
    command += ["--mmproj", mmproj] if mmproj else []
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise SystemExit("error: llama-server did not start")


def cpu_seconds(process_id: int) -> float:
    """Time that the cores have spent on a process, on a machine with other work too (Linux)."""
    # The name of the program, in brackets, may hold spaces.
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process_id: int) -> int:
    """Memory of a process that is its own (Linux)."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0
