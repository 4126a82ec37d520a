"""Addresses and pipelines as they may be shown."""

from __future__ import annotations

import re

_NAMES = r"[\w-]*(?:pw|pwd|pass|passwd|password|passphrase|token|key)"
_SECRETS = (
    re.compile(r"(://[^\s/?#:]*:)[^\s/?#]*(?=@)"),
    re.compile(rf"([?&]{_NAMES}=)[^\s&]*[^\s&\"']", re.IGNORECASE),
    re.compile(rf"(?<![?&\w-])({_NAMES}\s*=\s*)(?:\"[^\"]*\"?|'[^']*'?|[^\s\"']\S*(?<![\"']))", re.IGNORECASE),
)
"""In front of a host, in the query of an address, and as a property of an element of GStreamer, perhaps in quotes."""


def without_password(url: str) -> str:
    """An address, or a text with addresses and pipelines in it, that may be shown and logged."""
    for secret in _SECRETS:
        url = secret.sub(r"\1***", url)
    return url
