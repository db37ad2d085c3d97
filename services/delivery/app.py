"""The composition root of delivery: the only place that constructs things."""

from services.delivery.settings import DeliverySettings
from shared.process.command import Service
from shared.process.run import Process
from shared.settings import load


async def start(_: Process) -> None:
    """Put delivery together and set it going."""
    load(DeliverySettings, "delivery")


SERVICE = Service("services.delivery", DeliverySettings, start)
