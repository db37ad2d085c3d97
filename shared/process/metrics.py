"""The HTTP server of /metrics, /healthz and /readyz."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    REGISTRY,
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.aiohttp import make_aiohttp_handler

from shared.http.server import AppRunner

# The registry is global, so it is prepared once: without `_created` series, and with our prefix on
# the metrics of the process.
disable_created_metrics()  # type: ignore[no-untyped-call]
for _collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
    REGISTRY.unregister(_collector)
ProcessCollector(namespace="ringback")

Ready = Callable[[], tuple[bool, object]]


def add_routes(app: web.Application, *, ready: Ready, registry: CollectorRegistry) -> None:
    """Add /metrics, /healthz and /readyz to `app`.

    `ready` returns whether the process is ready, and the body of `/readyz`.
    """
    handler = make_aiohttp_handler(registry)

    async def metrics(request: web.Request) -> web.StreamResponse:
        """Return the metrics for Prometheus."""
        return await handler(request)

    async def healthz(_: web.Request) -> web.Response:
        """Return 200 while the process runs."""
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        """Return 200 if the process can work, otherwise 503, with the state of each part."""
        is_ready, report = ready()
        return web.json_response(report, status=200 if is_ready else 503)

    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)


@asynccontextmanager
async def serving(
    host: str, port: int, *, ready: Ready, registry: CollectorRegistry = REGISTRY
) -> AsyncIterator[int]:
    """Serve for as long as the context lasts, and yield the port. Port 0 chooses a free one.

    Raises:
        OSError: the port is taken.
    """
    app = web.Application()
    add_routes(app, ready=ready, registry=registry)
    runner = AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
