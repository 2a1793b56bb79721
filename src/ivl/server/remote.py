"""Images behind http(s) addresses, fetched so that nobody can look into the server's own network.

The name is resolved once, every address of it must be a public one, and the connection goes to just
that address: a name that answers differently the second time changes nothing. Redirects are
followed, three at most, and checked the same way.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from ivl.errors import RequestError

MAX_REDIRECTS = 3
TIMEOUT_S = 20.0
MAX_IMAGE_BYTES = 32 * 1024**2
MAX_URL_CHARACTERS = 4096
REDIRECTS = (301, 302, 303, 307, 308)
PORTS = {"http": 80, "https": 443}


def fetch(url: str, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """The file at `url`. RequestError for everything that is not a file at a public address, that
    is larger than 32 MiB or `max_bytes`, or that takes longer than 20 s in all."""
    until = time.monotonic() + TIMEOUT_S
    for _ in range(MAX_REDIRECTS + 1):
        parts = _check(url)
        address = public_address(parts.hostname or "", _port(parts))
        try:
            found = _get(parts, address, until, min(max_bytes, MAX_IMAGE_BYTES))
        except (OSError, http.client.HTTPException) as error:
            kind = type(error).__name__
            raise RequestError(f"The image's address does not answer ({kind}).") from None
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise RequestError(f"The image's address redirects more than {MAX_REDIRECTS} times.")


def public_address(host: str, port: int) -> str:
    """The IP address to connect to; RequestError if the host has one that is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise RequestError("The host of the image's address is not known.") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise RequestError(
            "The image's address is not on the public internet.", "Send the image as a data URL."
        )
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is neither private, loopback, link-local, multicast nor reserved, and
    does not stand for one that is."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # IPv4 behind a translator (RFC 6052)
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _check(url: str) -> SplitResult:
    refusal = RequestError("The image's address is not a plain http or https address.")
    if len(url) > MAX_URL_CHARACTERS or not (url.isascii() and url.isprintable()) or " " in url:
        raise refusal
    try:
        parts = urlsplit(url)
        usable = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise refusal from None
    if not usable or parts.username is not None:
        raise refusal
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or PORTS[parts.scheme]


def _get(parts: SplitResult, address: str, until: float, max_bytes: int) -> bytes | str:
    """The file, or the address that the server refers to."""
    host = parts.hostname or ""
    left_s = max(0.1, until - time.monotonic())
    connection = http.client.HTTPConnection(host, _port(parts), timeout=left_s)
    connection.sock = socket.create_connection((address, _port(parts)), timeout=left_s)
    # A time-out is for each read alone, and a head can come byte by byte.
    alarm = threading.Timer(left_s, _hang_up, [connection.sock])
    alarm.daemon = True
    alarm.start()
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "ivl"})
        response = connection.getresponse()
        location = response.headers.get("Location")
        if response.status in REDIRECTS and location:
            return location
        if response.status != 200:
            raise RequestError(f"The image's address answers with status {response.status}.")
        return _read(response, until, max_bytes)
    finally:
        alarm.cancel()
        connection.close()


def _hang_up(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already


def _read(response: http.client.HTTPResponse, until: float, max_bytes: int) -> bytes:
    data = bytearray()
    while chunk := response.read1(65536):
        data += chunk
        if len(data) > max_bytes:
            raise RequestError(f"The image is larger than {max_bytes / 1024**2:g} MiB.")
        if time.monotonic() > until:
            raise RequestError(f"The image did not arrive within {TIMEOUT_S:g} s.")
    return bytes(data)
