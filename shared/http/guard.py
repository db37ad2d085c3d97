"""The checks of URLs and addresses of outgoing requests. Pure: no IO.

Callback URLs are hostile input. `parse_target` rejects everything but plain http(s) URLs. `Guard`
decides about addresses; the client consults it for every new socket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

from yarl import URL

from shared.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MAX_URL_LENGTH = 2048  # characters; every common server and proxy accepts this length


class ForbiddenTargetError(PermanentError):
    """The target is not permitted, now or later, so a retry is useless.

    The message names the host and the reason, never credentials, path or query.
    """


# The IANA IPv4 special-purpose address registry and multicast, including the ranges that are
# globally reachable: no webhook has such an address. The last one is a public metadata service.
_FORBIDDEN_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba metadata 100.100.100.200
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; AWS, GCP, Azure, … metadata 169.254.169.254
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments; Oracle metadata 192.0.0.192
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relay
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "168.63.129.16/32",  # Azure's virtual public address: its metadata and DNS
    )
)
# Routed IPv6 unicast. Loopback, mapped, ULA, link-local and multicast addresses are outside.
_GLOBAL_V6 = IPv6Network("2000::/3")
_FORBIDDEN_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments: Teredo, ORCHID, benchmarking, …
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: a tunnel to the IPv4 address inside
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})  # upper half of the interface identifier


@dataclass(frozen=True, slots=True)
class Guard:
    """A check that permits public unicast addresses and those in `allowed_networks`.

    `allowed_ports` are the permitted ports; if it is empty, all are.
    """

    allowed_networks: Sequence[IPv4Network | IPv6Network] = ()
    allowed_ports: Collection[int] = ()

    def permits_port(self, port: int) -> bool:
        """Return whether a connection to this port is permitted."""
        return not self.allowed_ports or port in self.allowed_ports

    def permits(self, address: str) -> bool:
        """Return whether a connection to this address is permitted.

        An IPv4 address inside an IPv6 address (mapped, or with NAT64's well-known prefix) is
        treated as the IPv4 address. Other embeddings are tunnels, and are denied. So is a text that
        is not a plain address.
        """
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, IPv6Address):
            if ip.scope_id is not None:
                return False
            ip = _unwrap(ip)
        if any(ip in network for network in self.allowed_networks):
            return True
        if isinstance(ip, IPv4Address):
            return not any(ip in network for network in _FORBIDDEN_V4)
        return (
            ip in _GLOBAL_V6
            and not any(ip in network for network in _FORBIDDEN_V6)
            and (int(ip) >> 32) & 0xFFFF_FFFF not in _ISATAP
        )


def forbidden(host: str, address: str) -> str:
    """Return why a host with this address is not permitted."""
    resolved = "" if host == address else f" resolves to {address}, which"
    return f"{host}{resolved} is not a public address and not in the allowed networks"


def _unwrap(ip: IPv6Address) -> IPv4Address | IPv6Address:
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that passed `parse_target`, with its parts.

    `origin` is `scheme://host:port` in lower case and always with the port. It is the key of lanes,
    and the only part of a URL in metrics. `host` is ASCII; an IPv6 literal has no brackets.
    """

    url: URL
    origin: str
    host: str
    port: int
    tls: bool


_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
# Hosts that "end in a number" (WHATWG URL standard): some resolvers treat them as addresses.
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


@lru_cache(maxsize=1024)
def parse_target(url: str) -> Target:
    """Parse and check the URL of a request.

    Raises:
        ForbiddenTargetError: the URL is not http(s), has no valid host, contains credentials,
            control characters, white space or a backslash, has port 0, or is too long.
    """
    _check_text(url)
    try:
        parsed = URL(url).with_fragment(None)
        _ = parsed.host  # decodes an international name, and fails if that is invalid
        host, port = parsed.raw_host or "", parsed.port
    except ValueError:
        # The parser's message may contain credentials.
        raise ForbiddenTargetError("not a valid URL; expected https://HOST[:PORT]/PATH") from None
    if parsed.scheme not in ("http", "https"):
        raise ForbiddenTargetError("URL must begin with http:// or https://")
    if not port:
        raise ForbiddenTargetError(f"{_shown(host)}: port 0 is not valid")
    _check_host(host)
    name = host.removesuffix(".")
    bracketed = f"[{name}]" if ":" in name else name
    return Target(
        url=parsed,
        origin=f"{parsed.scheme}://{bracketed}:{port}",
        host=name,
        port=port,
        tls=parsed.scheme == "https",
    )


def _check_text(url: str) -> None:
    if len(url) > MAX_URL_LENGTH:
        raise ForbiddenTargetError(
            f"URL of {len(url)} characters; at most {MAX_URL_LENGTH} are allowed"
        )
    if not url.isprintable() or " " in url or "\\" in url:
        raise ForbiddenTargetError(
            "URL contains white space, a control character or a backslash; percent-encode it"
        )
    # Search the text, because the parser drops an empty user.
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    if "@" in authority:
        raise ForbiddenTargetError(
            f"{_shown(authority.rpartition('@')[2])}: URL contains credentials (user@host); "
            "send them in a header"
        )


def _check_host(host: str) -> None:
    name = host.removesuffix(".")
    if not name:
        raise ForbiddenTargetError("URL has no host; expected https://HOST[:PORT]/PATH")
    if ":" in name or _ENDS_IN_NUMBER.fullmatch(name):
        if not _is_plain_address(host):
            raise ForbiddenTargetError(
                f"{_shown(host)}: not a plain IP address; write it like 192.0.2.1 or [2001:db8::1]"
            )
    elif not _NAME.fullmatch(name):
        raise ForbiddenTargetError(f"{_shown(host)}: not a valid host name")


def _is_plain_address(host: str) -> bool:
    try:
        ip = ip_address(host)
    except ValueError:
        return False
    # A zone names an interface of this machine; a public address has none.
    return isinstance(ip, IPv4Address) or ip.scope_id is None


def _shown(host: str) -> str:
    return repr(host[:80])
