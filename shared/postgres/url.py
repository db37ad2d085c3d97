"""URLs of PostgreSQL with one or several hosts, as libpq writes them. Pure functions."""

import re
from typing import Final

_URL: Final = re.compile(
    r"(?P<scheme>postgres(?:ql)?://)(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#@]*)(?P<rest>[/?][^#]*)?"
)
# A name, an IPv4 address or an IPv6 address in brackets, with a port or without.
_HOST: Final = re.compile(r"(?:[^\s:\[\]%]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_MAX_PORT: Final = 65_535
_EXAMPLE: Final = "must look like postgresql://user:password@host:5432/name"


def urls_of_hosts(url: str) -> list[str]:
    """Return a URL for each host of `url`. Without a host, return `url` itself.

    Raises:
        ValueError: it is not a URL of PostgreSQL, or a host or port is not valid.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(_EXAMPLE)
    if not match["hosts"]:  # libpq's defaults, or `host=` in the query
        return [url]
    hosts = match["hosts"].split(",")
    for host in hosts:
        valid = _HOST.fullmatch(host)
        # The host is not quoted: a password with an unescaped `/`, `?` or `#` looks like one.
        if valid is None or int(valid["port"] or 1) not in range(1, _MAX_PORT + 1):
            raise ValueError(f"{_EXAMPLE}, or with several hosts …@a:5432,b:5432/name")
    user = "" if match["user"] is None else f"{match['user']}@"
    return [f"{match['scheme']}{user}{host}{match['rest'] or ''}" for host in hosts]


def without_password(url: str) -> str:
    """Return the URL without its password and its query, which can contain a password."""
    match = _URL.fullmatch(url)
    try:
        urls_of_hosts(url)
    except ValueError:
        match = None
    if match is None:
        return "postgresql://…"
    user, colon, _ = (match["user"] or "").partition(":")
    name = f"{user}{':******' if colon else ''}@" if match["user"] else ""
    return f"{match['scheme']}{name}{match['hosts']}{(match['rest'] or '').partition('?')[0]}"
