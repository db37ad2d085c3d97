"""The address of the client behind a request, for limits per address."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Annotated, Final

from aiohttp import web
from pydantic import StringConstraints

HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,100}$")]

# One subscriber usually has a whole network of this size.
_V6_PREFIX: Final = 64
# Characters of an IPv6 address as text.
_MAX_ADDRESS: Final = 45


def client_address(request: web.Request, header: str | None) -> str:
    """Return the address of the client: from the proxy's header, or of the connection.

    Only the last entry of the header is used, because clients can forge the others.
    """
    given = () if header is None else request.headers.getall(header, ())
    return network(given[-1].rpartition(",")[2] if given else request.remote or "")


def network(address: str) -> str:
    """Return an IPv4 address, or the network of an IPv6 address."""
    address = address.strip()[:_MAX_ADDRESS]
    try:
        ip: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or IPv6Network((int(ip), _V6_PREFIX), strict=False))
