"""Facts as messages: for observers on the exchange `outcomes`, for owners in their own queues."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT, Message
from shared.amqp.parsing import parse_message
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.contracts.facts import FACTS
from shared.contracts.headers import APP_ID
from shared.errors import ContractViolationError
from shared.topology import OUTCOMES, OWNER_QUEUES

logger = logging.getLogger(__name__)

# Facts in one AMQP message: about 100 kB.
MAX_FACTS: Final = 500
# Characters of kept requests and responses in one message for the journal.
MAX_KEPT_BYTES: Final = 1 << 20
# Bytes of such a message, if each fact has a reason of 1,000 escaped characters.
MAX_BYTES: Final = 4 << 20
# Characters of a type in the log.
MAX_TYPE_LENGTH: Final = 100

# Only the journal gets these fields of facts. A kept request can have 256 KiB.
_FOR_JOURNAL: Final = {"facts": {"__all__": {"request", "response"}}}

F = TypeVar("F", bound=BaseModel)


def fact_messages(facts: Iterable[BaseModel]) -> Iterator[OutgoingMessage]:
    """Yield messages for observers, each with facts of one type, which is the routing key."""
    for name, properties, body in _batches(facts, _type):
        # A fact may have no observer.
        yield OutgoingMessage(name, properties, body, exchange=OUTCOMES, mandatory=False)


def batch_messages(name: str, facts: Iterable[Mapping[str, object]]) -> Iterator[OutgoingMessage]:
    """Yield messages for observers, with facts of the type `name` that are no models."""
    for chunk in _chunks(facts):
        body = _encoded(chunk)
        yield OutgoingMessage(name, _properties(), body, exchange=OUTCOMES, mandatory=False)


def owner_messages(facts: Iterable[BaseModel]) -> Iterator[OutgoingMessage]:
    """Yield messages to the queues of the services that own the facts."""
    owned = [fact for fact in facts if _owner(fact)]
    exclude = _FOR_JOURNAL if any(map(_has_content, owned)) else None
    for owner, properties, body in _batches(owned, _owner, exclude=exclude):
        yield OutgoingMessage(OWNER_QUEUES[owner], properties, body)


def parse_facts(message: Message, model: type[F], types: Collection[str]) -> F:
    """Parse a batch of facts of these types. Others are from a newer version, and are ignored.

    Raises:
        ContractViolationError: the message is not valid.
    """
    try:
        return parse_message(message, {FACTS: model}, max_bytes=MAX_BYTES)
    except ContractViolationError:
        known = _with_types(message.body, types)
        if known is None:
            raise
    return parse_message(replace(message, body=known), {FACTS: model}, max_bytes=MAX_BYTES)


def _with_types(body: bytes, types: Collection[str]) -> bytes | None:
    """Return the batch with only the facts of these types; None if there are no others."""
    try:
        facts = from_json(body)["facts"]
        unknown = {fact["type"] for fact in facts if fact["type"] not in types}
    except (ValueError, KeyError, TypeError):
        return None
    for name in unknown:
        _report_unknown(str(name)[:MAX_TYPE_LENGTH])
    known = [fact for fact in facts if fact["type"] in types]
    return to_json({"facts": known}) if unknown else None


@lru_cache(maxsize=100)
def _report_unknown(name: str) -> None:
    """Log a type of facts once."""
    logger.warning("facts of an unknown type ignored", extra={"fact_type": name})


def _type(fact: Any) -> str:
    return str(fact.type)


def _owner(fact: Any) -> str:
    """Return the service that must learn of the fact, or an empty text."""
    return getattr(fact, "owner", None) or ""


def _has_content(fact: Any) -> bool:
    return bool(getattr(fact, "request", None) or getattr(fact, "response", None))


def _chunks(facts: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield the facts of each message: at most MAX_FACTS, and MAX_KEPT_BYTES or one larger fact."""
    chunk: list[Any] = []
    size = 0
    for fact in facts:
        kept = sum(len(getattr(fact, name, None) or "") for name in ("request", "response"))
        size += kept
        if chunk and (len(chunk) == MAX_FACTS or size > MAX_KEPT_BYTES):
            yield chunk
            chunk, size = [], kept
        chunk.append(fact)
    if chunk:
        yield chunk


def _batches(
    facts: Iterable[BaseModel], key: Callable[[Any], str], *, exclude: Any = None
) -> Iterator[tuple[str, Properties, bytes]]:
    for name, group in groupby(sorted(facts, key=key), key):
        for chunk in _chunks(group):
            yield name, _properties(), _encoded(chunk, exclude=exclude)


def _encoded(facts: list[Any], *, exclude: Any = None) -> bytes:
    """Return the body of a message. A fact that JSON cannot contain is left out, and logged."""
    try:
        return to_json({"facts": facts}, exclude=exclude)
    except ValueError:  # PydanticSerializationError is one
        valid = [fact for fact in map(_valid, facts) if fact is not None]
        return to_json({"facts": valid}, exclude=exclude)


def _valid(fact: Any) -> Any:
    """Return a fact whose texts are valid UTF-8; None if JSON cannot contain it."""
    fields = _with_valid_texts(
        fact.model_dump(warnings=False) if isinstance(fact, BaseModel) else fact
    )
    try:
        to_json(fields)
    except ValueError as error:
        extra = {"fact_type": fields.get("type"), "error": type(error).__name__}
        logger.error("fact not sent: JSON cannot contain it", extra=extra)  # noqa: TRY400
        return None
    return fields


def _with_valid_texts(value: Any) -> Any:
    """Replace unpaired surrogates, which UTF-8 does not have."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {name: _with_valid_texts(each) for name, each in value.items()}
    return [_with_valid_texts(each) for each in value] if isinstance(value, list) else value


def _properties() -> Properties:
    return Properties(
        content_type="application/json",
        type=FACTS,
        message_id=new_id(),
        delivery_mode=PERSISTENT,
        timestamp=int(time.time()),
        app_id=APP_ID,
    )
