"""An address of a broker that holds back what a client sends, so a signal comes in the middle."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from yarl import URL


@asynccontextmanager
async def held_broker(amqp_url: str, *, after: int) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Yield another address of the broker, and an event that ends the hold.

    Until then, each connection forwards only the first `after` bytes of its client.
    """
    target = URL(amqp_url)
    released = asyncio.Event()
    connections: set[asyncio.Task[None]] = set()

    async def copy(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, hold: bool
    ) -> None:
        left = after
        try:
            while data := await reader.read(min(left, 65_536) if hold else 65_536):
                writer.write(data)
                await writer.drain()
                left -= len(data)
                if hold and not left:
                    await released.wait()
                    hold = False
        except ConnectionError:
            pass  # the client was killed
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        there, back = await asyncio.open_connection(target.host, target.port)
        # Cancelled at the end of the block; asyncio would log a cancelled handler as an error.
        with suppress(asyncio.CancelledError):
            await asyncio.gather(copy(reader, back, hold=True), copy(there, writer, hold=False))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield str(target.with_port(server.sockets[0].getsockname()[1])), released
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
