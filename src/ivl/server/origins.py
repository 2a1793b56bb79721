"""Who may ask a server that has no key: not the web pages of others.

A browser lets any page send requests to any address, this machine's own among them, and says in
`Origin` whose page it was. A page can also give its own host name the address of this machine
after it has been loaded (DNS rebinding): then its requests seem to come from the same origin, and
only the name in `Host` is wrong. Names that nobody can have on the internet are no danger:
addresses, names without a dot, and those of the domains that are kept for machines nearby.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from ivl.server.errors import ApiError
from ivl.server.settings import ServerSettings

NEARBY = (".localhost", ".local", ".internal", ".home.arpa")
"""RFC 6761, RFC 6762, ICANN's reservation of 2024 (Docker's host.docker.internal), RFC 8375."""
_NAME = re.compile(r"[a-z0-9_.:-]*")
PORTS = {"http": "80", "https": "443"}


def refusal(headers: Headers, settings: ServerSettings) -> ApiError | None:
    """ApiError 403 for a request of a foreign page, or to a foreign name."""
    if settings.api_key is not None or "*" in settings.cors_origins:
        return None
    host, origin = headers.get("host"), headers.get("origin")
    if host is not None and not is_own_name(host, settings.allowed_hosts):
        name = _name_of(host)[:200]
        return ApiError(
            403,
            f"This server is not called {name!r}. Start it with --allow-host {name}, or with an "
            "--api-key.",
            code="host_not_allowed",
        )
    if origin is None or origin in settings.cors_origins or _is_same(origin, host):
        return None
    if origin == "null":
        text = (
            "Files and sandboxed frames may not use this server. Serve the page by http, and start "
        )
        text += "the server with --cors and the page's origin, or with an --api-key."
    else:
        text = f"Pages of {origin[:200]} may not use this server. Start it with --cors "
        text += f"{origin[:200]}, or with an --api-key."
    return ApiError(403, text, code="origin_not_allowed")


def is_own_name(host: str, allowed: tuple[str, ...] = ()) -> bool:
    """Whether a `Host` header has a name that the page of a stranger cannot have."""
    name = _name_of(host)
    known = {other.lower() for other in (*allowed, socket.gethostname())}
    if _NAME.fullmatch(name.strip("[]").partition("%")[0]) is None:
        return False
    if name in known or "*" in allowed or "." not in name or name.endswith(NEARBY):
        return True
    try:
        ipaddress.ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def _name_of(host: str) -> str:
    """Without the port: `[::1]:8000` -> `[::1]`."""
    name = host.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0].rstrip(".")


def _is_same(origin: str, host: str | None) -> bool:
    """Whether the page came from the very address that it asks."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    if host is None or parts.scheme not in PORTS:
        return False
    default = PORTS[parts.scheme]
    return _with_port(parts.netloc, default) == _with_port(host, default)


def _with_port(netloc: str, default: str) -> str:
    name = netloc.strip().lower()
    has_port = ":" in name.rpartition("]")[2]
    return name if has_port else f"{name}:{default}"
