"""Alarms of a broker, which stop it from accepting messages."""

from collections.abc import Iterator
from contextlib import contextmanager

from deploy.local.broker import Broker


@contextmanager
def memory_alarm(broker: Broker) -> Iterator[None]:
    """Raise the memory alarm for the length of the block."""
    before = broker.ctl("eval", "vm_memory_monitor:get_vm_memory_high_watermark().").strip()
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        yield
    finally:
        broker.ctl("set_vm_memory_high_watermark", before)


@contextmanager
def disk_alarm(broker: Broker) -> Iterator[None]:
    """Raise the disk alarm for the length of the block."""
    broker.ctl("set_disk_free_limit", "1000GB")
    try:
        yield
    finally:
        broker.ctl("set_disk_free_limit", "50MB")
