"""Facts as messages on the exchange `outcomes`."""

import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import to_json

from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.contracts.facts import FACTS
from shared.topology import OUTCOMES

# Facts in one AMQP message: about 100 kB.
MAX_FACTS: Final = 500
# Bytes of such a message, if each fact has a reason of 1,000 escaped characters.
MAX_BYTES: Final = 4 << 20


def _topic(fact: Any) -> str:
    """Return the routing key of a fact."""
    owner = getattr(fact, "owner", None)
    return f"{fact.type}.{owner}" if owner else str(fact.type)


def fact_messages(facts: Iterable[BaseModel]) -> Iterator[OutgoingMessage]:
    """Yield messages of type `Facts`, each with facts of one type and owner."""
    for name, group in groupby(sorted(facts, key=_topic), _topic):
        batch = list(group)
        for start in range(0, len(batch), MAX_FACTS):
            yield OutgoingMessage(
                name,
                Properties(
                    content_type="application/json",
                    type=FACTS,
                    message_id=new_id(),
                    delivery_mode=PERSISTENT,
                    timestamp=int(time.time()),
                    app_id="ringback",
                ),
                to_json({"facts": batch[start : start + MAX_FACTS]}),
                exchange=OUTCOMES,
                mandatory=False,  # a fact may have no consumer
            )
