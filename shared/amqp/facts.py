"""Facts as messages: for observers on the exchange `outcomes`, for owners in their own queues."""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import to_json

from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.contracts.facts import FACTS
from shared.topology import OUTCOMES, OWNER_QUEUES

# Facts in one AMQP message: about 100 kB.
MAX_FACTS: Final = 500
# Bytes of such a message, if each fact has a reason of 1,000 escaped characters.
MAX_BYTES: Final = 4 << 20


def fact_messages(facts: Iterable[BaseModel]) -> Iterator[OutgoingMessage]:
    """Yield messages for observers, each with facts of one type, which is the routing key."""
    for name, properties, body in _batches(facts, _type):
        # A fact may have no observer.
        yield OutgoingMessage(name, properties, body, exchange=OUTCOMES, mandatory=False)


def owner_messages(facts: Iterable[BaseModel]) -> Iterator[OutgoingMessage]:
    """Yield messages to the queues of the services that own the facts."""
    owned = [fact for fact in facts if _owner(fact)]
    for owner, properties, body in _batches(owned, _owner):
        yield OutgoingMessage(OWNER_QUEUES[owner], properties, body)


def _type(fact: Any) -> str:
    return str(fact.type)


def _owner(fact: Any) -> str:
    """Return the service that must learn of the fact, or an empty text."""
    return getattr(fact, "owner", None) or ""


def _batches(
    facts: Iterable[BaseModel], key: Callable[[Any], str]
) -> Iterator[tuple[str, Properties, bytes]]:
    for name, group in groupby(sorted(facts, key=key), key):
        batch = list(group)
        for start in range(0, len(batch), MAX_FACTS):
            properties = Properties(
                content_type="application/json",
                type=FACTS,
                message_id=new_id(),
                delivery_mode=PERSISTENT,
                timestamp=int(time.time()),
                app_id="ringback",
            )
            yield name, properties, to_json({"facts": batch[start : start + MAX_FACTS]})
