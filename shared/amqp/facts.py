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

# Facts in one AMQP message: some 100 kB, which no consumer chokes on.
MAX_FACTS: Final = 500
# Bytes of such a message: each fact with a reason of 1,000 characters, all of them escaped.
MAX_BYTES: Final = 4 << 20


def _topic(fact: Any) -> str:
    """The routing key of a fact."""
    owner = getattr(fact, "owner", None)
    return f"{fact.type}.{owner}" if owner else str(fact.type)


def fact_messages(facts: Iterable[BaseModel]) -> Iterator[OutgoingMessage]:
    """The messages of type `Facts` that carry these, in batches of one type each."""
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
                mandatory=False,  # a fact nobody listens for is no fault
            )
