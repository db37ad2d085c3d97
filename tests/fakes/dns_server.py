"""A DNS server for tests, with a table of addresses. It never responds for unknown names."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_A = 1


@dataclass(slots=True)
class NameServer:
    """Its address as `host:port`, and its table of IPv4 addresses by name.

    An empty list gives a response without addresses. A query for a missing name hangs, as behind
    a firewall that drops packets.
    """

    address: str
    names: dict[str, list[str]] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)


@asynccontextmanager
async def serve_names(names: dict[str, list[str]]) -> AsyncIterator[NameServer]:
    server = NameServer("", names)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Protocol(server), local_addr=("127.0.0.1", 0)
    )
    host, port = transport.get_extra_info("sockname")
    server.address = f"{host}:{port}"
    try:
        yield server
    finally:
        transport.close()


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        name, end = _question(data)
        self._server.queries.append(name)
        addresses = self._server.names.get(name)
        if addresses is None:
            return
        if int.from_bytes(data[end : end + 2]) != _A:
            addresses = []
        # Flags: response, recursion available. Then one question, the answers, nothing else.
        head = data[:2] + b"\x81\x80\0\1" + len(addresses).to_bytes(2) + b"\0\0\0\0"
        # Each answer: the question's name, type A, class IN, TTL 0, four bytes of address.
        answers = (b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(a) for a in addresses)
        self._transport.sendto(head + data[12 : end + 4] + b"".join(answers), addr)


def _question(data: bytes) -> tuple[str, int]:
    """Return the queried name and its end."""
    labels, at = [], 12
    while length := data[at]:
        labels.append(data[at + 1 : at + 1 + length].decode("ascii").lower())
        at += 1 + length
    return ".".join(labels), at + 1
