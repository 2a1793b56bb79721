"""Images behind addresses: only public ones, whatever names and redirects say. No network: names
are looked up in a table, and the one public address is a server on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

from ivl.errors import RequestError
from ivl.server import remote
from ivl.server.remote import fetch, is_public
from tests.server.conftest import png, running

PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.7"
NAMES = {
    "public.example": [PUBLIC],
    "inside.example": [PRIVATE],
    "both.example": [PUBLIC, PRIVATE],
    "loop.example": ["127.0.0.1"],
    "loop6.example": ["::1"],
    "metadata.example": ["169.254.169.254"],
    "mapped.example": ["::ffff:127.0.0.1"],
}
PICTURE = png((20, 10), "red")


class Site(BaseHTTPRequestHandler):
    """/picture, /large, /missing, /slow, and /to/ADDRESS, which refers to the address."""

    meeting: threading.Barrier | None = None

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self._answer(302, location=unquote(self.path[4:]))
        elif self.path.startswith("/meet"):
            assert self.meeting is not None
            try:
                self.meeting.wait()
            except threading.BrokenBarrierError:
                return
            self._answer(200, PICTURE)
        elif self.path == "/picture":
            self._answer(200, PICTURE)
        elif self.path == "/large":
            self._answer(200, bytes(3000))
        else:
            self._answer(404)

    def _answer(self, status: int, body: bytes = b"", location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The addresses that were connected to; the names of `NAMES` are all there are."""
    site = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=site.serve_forever, args=[0.01])
    thread.start()
    really_connect, really_look_up = socket.create_connection, socket.getaddrinfo
    addresses: list[str] = []

    def look_up(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        if host in NAMES:
            return [(0, socket.SOCK_STREAM, 6, "", (address, port)) for address in NAMES[host]]
        options["flags"] = socket.AI_NUMERICHOST
        return really_look_up(host, port, *args, **options)

    def connect(address: tuple[str, int], *args: Any, **options: Any) -> socket.socket:
        addresses.append(address[0])
        assert address[0] == PUBLIC
        return really_connect(site.server_address, *args, **options)

    replaced = {**vars(socket), "getaddrinfo": look_up, "create_connection": connect}
    monkeypatch.setattr(remote, "socket", SimpleNamespace(**replaced))
    yield addresses
    monkeypatch.undo()
    site.shutdown()
    thread.join()
    site.server_close()


def test_a_public_picture_and_one_behind_a_redirect(connected: list[str]) -> None:
    assert fetch("http://public.example/picture") == PICTURE
    assert fetch(f"http://{PUBLIC}/picture") == PICTURE
    assert fetch("http://public.example/to//picture") == PICTURE
    assert set(connected) == {PUBLIC}


INSIDE = [
    "http://inside.example/picture",
    "http://both.example/picture",
    "http://loop.example/picture",
    "http://loop6.example/picture",
    "http://metadata.example/latest/meta-data",
    "http://mapped.example/picture",
    "http://127.0.0.1/picture",
    "http://127.1/picture",
    "http://2130706433/picture",
    "http://0x7f000001/picture",
    "http://[::1]/picture",
    "http://[fe80::1]/picture",
    "http://[fd00::1]/picture",
    "http://[::ffff:10.0.0.1]/picture",
    "http://[64:ff9b::7f00:1]/picture",
    "http://[2002:7f00:1::]/picture",
    "http://0.0.0.0/picture",
    "http://100.64.0.1/picture",
    "http://192.168.1.1/picture",
    "http://224.0.0.1/picture",
    "http://localhost./picture",
    "http://nowhere.example/picture",
]


@pytest.mark.parametrize("url", INSIDE)
@pytest.mark.parametrize("way", ["directly", "by a redirect"])
def test_nothing_inside_is_connected_to(connected: list[str], url: str, way: str) -> None:
    with pytest.raises(RequestError):
        fetch(url if way == "directly" else f"http://public.example/to/{url}")
    assert connected == ([] if way == "directly" else [PUBLIC])


@pytest.mark.parametrize(
    "url",
    [
        "ftp://public.example/picture",
        "file:///etc/passwd",
        "http://user:word@public.example/picture",
        "http://public.example:0/picture",
        "http://public.example:99999/picture",
        "http://public.example/a b",
        "http://public.example/\r\nHost: x",
        "http:///picture",
        "http://public.example/" + "a" * 5000,
    ],
)
def test_what_is_no_plain_address_is_refused(connected: list[str], url: str) -> None:
    with pytest.raises(RequestError):
        fetch(url)
    assert not connected


def test_a_redirect_to_a_file_and_one_in_a_circle(connected: list[str]) -> None:
    with pytest.raises(RequestError, match="plain http"):
        fetch("http://public.example/to/file:///etc/passwd")
    url = "http://public.example/picture"
    for _ in range(3):
        url = "http://public.example/to/" + url.replace("%", "%25")
    assert fetch(url) == PICTURE
    with pytest.raises(RequestError, match="more than 3"):
        fetch("http://public.example/to/" + url.replace("%", "%25"))


def test_size_status_and_a_server_that_says_nothing(
    connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="larger than"):
        fetch("http://public.example/large", max_bytes=1024)
    with pytest.raises(RequestError, match="404"):
        fetch("http://public.example/missing")
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(Site, "meeting", threading.Barrier(2, timeout=2))
    with pytest.raises(RequestError, match="does not answer"):
        fetch("http://public.example/meet")


def test_a_name_is_looked_up_once_for_each_address(
    connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that answers publicly first and privately then (DNS rebinding) gains nothing."""
    answers = iter([[PUBLIC], [PRIVATE]])

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, port)) for address in next(answers)]

    monkeypatch.setattr(remote.socket, "getaddrinfo", look_up)
    assert fetch("http://public.example/picture") == PICTURE
    assert connected == [PUBLIC]
    assert next(answers) == [PRIVATE]


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_pictures_of_one_request_are_fetched_side_by_side(
    connected: list[str], tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site answers when three are there; one after another would wait for ever."""
    monkeypatch.setattr(Site, "meeting", threading.Barrier(3, timeout=20))
    urls = [f"http://public.example/meet{number}" for number in range(3)]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 2, "max_tiles": 1}
    with running(tiny, remote_images=True) as server:
        answer = server.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        part = {"type": "image_url", "image_url": {"url": "http://loop.example/picture"}}
        refused = {**body, "messages": [{"role": "user", "content": [parts[0], part]}]}
        monkeypatch.setattr(Site, "meeting", threading.Barrier(1))
        assert server.post("/v1/chat/completions", refused).status_code == 400
