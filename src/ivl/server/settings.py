"""What a server may take and give; every limit is one that an attacker or an accident can reach."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ivl.errors import ConfigError

MIB = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Limits of what comes in by HTTP. Those of the engine are `EngineLimits`."""

    api_key: str | None = None
    """What clients must send as `Authorization: Bearer ...`; None: nothing."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may use the server, `*`: of all."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which a server without a key may be called beside those that nobody on the internet
    can have; see `ivl.server.guard`."""
    remote_images: bool = False
    """Whether images are fetched from http(s) addresses on the public internet."""
    max_body_bytes: int = 64 * MIB
    body_timeout_s: float = 60.0
    """A body that has not arrived whole by then is refused."""
    header_timeout_s: float = 15.0
    """A connection that has not sent a whole request head by then is closed."""
    max_connections: int = 512
    max_json_depth: int = 64
    max_messages: int = 1024
    max_images: int = 32
    """Of one request; a page of a PDF is an image."""
    max_image_pixels: int = 64_000_000
    max_choices: int = 16
    """Answers to one request, `n`."""
    max_preparing: int = 2
    """Requests whose images are decoded at the same time; the others wait."""
    drain_s: float = 30.0
    """When it is to stop, the server gives running answers so long to end."""

    def __post_init__(self) -> None:
        """ConfigError for an origin that no browser would send, and for a key that nobody can."""
        if self.api_key is not None and not re.fullmatch(r"[!-~]+", self.api_key):
            what = "has characters that no header can have" if self.api_key.strip() else "is empty"
            raise ConfigError(
                f"The `api_key` {what}.",
                "Is the variable set that it comes from? Leave it out for a server without a key.",
            )
        for origin in self.cors_origins:
            check_origin(origin)


def check_origin(origin: str) -> None:
    """ConfigError unless it is `*`, or scheme://host[:port] and nothing else."""
    if origin == "*":
        return
    if origin == "null":
        raise ConfigError(
            "'null' is what browsers send for every file and every sandboxed frame.",
            "Serve the page by http and name its origin, or let all pages in with --cors '*'.",
        )
    try:
        parts = urlsplit(origin)
        plain = f"{parts.scheme}://{parts.netloc}"
        plausible = re.fullmatch(r"[\w.:\[\]+-]+://[\w.:\[\]-]+", origin) is not None
        usable = plausible and bool(parts.hostname) and origin == plain
        _ = parts.port  # a ValueError for what is no port
    except ValueError:
        usable, plain = False, ""
    if usable:
        return
    if "://" not in origin:
        hint = f"An origin has a scheme: http://{origin} or https://{origin}."
    else:
        hint = f"It is scheme, host and port without a path{': ' + plain if plain else ''}."
    raise ConfigError(f"{origin!r} is no origin of web pages.", hint)
