"""Where a page is served, and who may see it."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from rsd_edge.errors import InputError

_TOKEN_BYTES = 12
_TOKEN = re.compile(r"[\w.~-]{8,}", re.ASCII)


@dataclass(frozen=True)
class Address:
    """A place to listen on."""

    host: str
    port: int
    """0 for any that is free."""
    token: str | None
    """What every request has to bring; None where only this machine can ask."""

    @classmethod
    def parse(cls, text: str, token: str | None = None) -> Address:
        """Of [HOST:]PORT; without a host, 127.0.0.1. Other machines need a token, which is made up if none is given.

        Raises InputError."""
        host, _, port = text.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        if not (port.isdecimal() and int(port) < 1 << 16):
            raise InputError(f"serve is '{text}'; give a port or HOST:PORT, such as 8080 or 0.0.0.0:8080")
        if token is not None and not _TOKEN.fullmatch(token):
            raise InputError("serve-token has to be 8 or more letters, digits or any of _ . ~ -")
        if token is None and not _is_local(host):
            token = secrets.token_urlsafe(_TOKEN_BYTES)
        return cls(host, int(port), token)

    @property
    def everywhere(self) -> bool:
        """Whether it is served under all addresses of this machine."""
        return self.host in ("0.0.0.0", "::")

    def url(self, port: int) -> str:
        """What to open in a browser here, once the port is known."""
        host = "127.0.0.1" if self.everywhere else self.host
        name = f"[{host}]" if ":" in host else host
        return f"http://{name}:{port}/" + (f"?token={quote(self.token)}" if self.token else "")

    def admits(self, host: str | None, origin: str | None, token: str | None) -> bool:
        """Judge a request by its headers `Host` and `Origin` and by the token that it brings.

        Without a token, a page of another site that a browser here has open must not get at the pictures: neither
        by asking itself (Origin), nor under a name that it has pointed to this machine (Host).
        """
        name = _host_name(host)
        # "null" is what a sandboxed frame of any site says.
        if origin is not None and (_netloc(origin) is None or _netloc(origin) != host):
            return False
        if self.token is None:
            return name is not None and (name == self.host or _is_local(name))
        # Headers may hold bytes that are no text, which come as surrogates.
        return token is not None and hmac.compare_digest(token.encode(errors="replace"), self.token.encode())


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _host_name(host: str | None) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname if host else None
    except ValueError:
        return None


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
