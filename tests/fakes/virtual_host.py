"""Virtual hosts of the broker that the tests of a session share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from deploy.local.broker import Broker


@contextmanager
def virtual_host(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL of a fresh virtual host, or RINGBACK_AMQP_URL if it is set."""
    if given := os.environ.get("RINGBACK_AMQP_URL"):
        yield given
        return
    node: Broker = request.getfixturevalue("broker")
    name = f"test-{uuid4().hex[:12]}"
    yield node.add_vhost(name)
    node.delete_vhost(name)
