"""The composition root of the shop."""

from pydantic import Field

from shared.postgres.migrations import Schema
from shared.postgres.pool import Database
from shared.process.command import Service
from shared.process.run import Process
from shared.registry import DATABASE, ServiceSpec
from shared.settings import TableSettings

SPEC = ServiceSpec("tests.fakes.shop", 9199, (DATABASE,))
SCHEMA = Schema.of(SPEC.module)


class ShopSettings(TableSettings, env_prefix="RINGBACK_SHOP_"):
    shelves: int = Field(default=1, ge=1)


async def start(process: Process) -> None:
    assert process.settings.database_url
    database = Database(
        process.settings.database_url, name="shop", health=process.health, schema=SCHEMA
    )
    process.run(database.run())


SERVICE = Service(SPEC, (ShopSettings,), start)
