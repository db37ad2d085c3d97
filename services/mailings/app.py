"""The composition root of mailings: the only place that constructs things."""

from services.mailings.settings import MailingsSettings
from shared.process.command import Service
from shared.process.run import Process
from shared.settings import load


async def start(_: Process) -> None:
    """Put mailings together and set it going."""
    load(MailingsSettings, "mailings")


SERVICE = Service("services.mailings", MailingsSettings, start)
