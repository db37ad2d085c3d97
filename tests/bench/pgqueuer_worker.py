"""A worker of pgqueuer on asyncpg, as its documentation shows it, for comparison.

Prints `ready`, handles the given number of jobs, and prints their lags as JSON: seconds from the
due time to the handler. Arguments: database URL, number of jobs, batch size.
"""

import asyncio
import json
import sys
import time
from datetime import timedelta

import asyncpg
import click
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.models import Job


async def main(url: str, count: int, batch: int) -> None:
    """Handle `count` jobs. The payload of a job is its due time in epoch seconds."""
    pool = await asyncpg.create_pool(url, min_size=2)
    app = PgQueuer.from_asyncpg_pool(pool)
    lags: list[float] = []
    done = asyncio.Event()

    @app.entrypoint("callback")
    async def handle(job: Job) -> None:
        assert job.payload is not None
        lags.append(time.time() - float(job.payload))
        if len(lags) == count:
            done.set()

    running = asyncio.create_task(app.run(batch_size=batch, dequeue_timeout=timedelta(seconds=1)))
    click.echo("ready")
    await done.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    click.echo(json.dumps(lags))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
