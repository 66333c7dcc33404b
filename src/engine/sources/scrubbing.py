"""Keeps passwords out of messages: drivers put connection strings, or pieces of them, into what they say."""

from __future__ import annotations

import re
from urllib.parse import unquote

from pydantic import SecretStr

_MASK = "****"
_NAMED = re.compile(r"(?i)\b((?:ssl)?password|passwd|pwd|passfile)(\s*=\s*)('[^']*'|[^\s&;]+)")
_SHORT = 4


def scrub(text: str, uri: SecretStr) -> str:
    """Return a message on one line, without the connection string, its password, or a piece of either.

    A password with an unescaped ``@``, ``/`` or ``:`` is taken apart by the driver, which then complains about a
    host or port that is part of the password: everything between the user's colon and the last ``@`` counts as secret,
    whole, decoded, and in pieces.
    """
    whole = uri.get_secret_value()
    for secret in sorted(_secrets(whole), key=len, reverse=True):
        if len(secret) >= _SHORT:
            text = text.replace(secret, _MASK)
        else:  # only as a word, or the letters of ordinary words would go
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _MASK, text)
    return _NAMED.sub(rf"\1\2{_MASK}", " ".join(text.split()))


def _secrets(whole: str) -> set[str]:
    # Not urlsplit: on some malformed strings it raises an error that quotes them.
    rest = whole.partition("://")[2]
    userinfo = rest.rpartition("@")[0]
    passwords = [userinfo.partition(":")[2]]
    passwords += [match[3] for match in _NAMED.finditer(rest.partition("?")[2])]
    found = {userinfo} if passwords[0] else set()
    if found or any(passwords):
        found.add(whole)
    for password in filter(None, passwords):
        for piece in (password, *re.split(r"[/@:?#&\[\]\s]", password)):
            found |= {piece, unquote(piece)}
    return found - {""}


def masked(uri: SecretStr, *, variable: str) -> tuple[str, bool]:
    """Return a connection string whose password is ``${variable}``, and whether it had one."""
    whole = uri.get_secret_value()
    scheme, _, rest = whole.partition("://")
    userinfo, at, place = rest.rpartition("@")
    user, colon, password = userinfo.partition(":")
    reference = "${" + variable + "}"
    text = f"{scheme}://{user}:{reference}{at}{place}" if colon and password else whole
    base, mark, query = text.partition("?")
    named = _NAMED.sub(lambda match: match[1] + match[2] + reference, query)
    return base + mark + named, base + mark + named != whole
