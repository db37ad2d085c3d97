"""Parses messages of the stream. A fact that is not valid never stops the others."""

import logging
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from shared.amqp.codec import Properties
from shared.contracts.facts import FACTS
from shared.contracts.journal_facts import JOURNAL_FACT_TYPES, JournalFact, JournalFacts

logger = logging.getLogger(__name__)

# Characters of a type in the log.
MAX_TYPE_LENGTH: Final = 100
_FACT: Final[TypeAdapter[BaseModel]] = TypeAdapter(JournalFact)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The facts in a message, and how many are of an unknown type or not valid."""

    facts: list[BaseModel] = field(default_factory=list)
    unknown: int = 0
    invalid: int = 0


def parse(properties: Properties, body: bytes) -> Parsed:
    """Return the facts of a message. Those of a newer version may have an unknown type."""
    if properties.type != FACTS:
        return Parsed(invalid=1)
    try:
        return Parsed(list(JournalFacts.model_validate_json(body).facts))
    except ValidationError:
        return _parse_each(body)


def _parse_each(body: bytes) -> Parsed:
    try:
        items = list(from_json(body)["facts"])
    except (ValueError, KeyError, TypeError):
        return Parsed(invalid=1)
    facts: list[BaseModel] = []
    unknown = invalid = 0
    for item in items:
        name = item.get("type") if isinstance(item, dict) else None
        if name not in JOURNAL_FACT_TYPES:
            unknown += 1
            _report_unknown(str(name)[:MAX_TYPE_LENGTH])
            continue
        try:
            facts.append(_FACT.validate_python(item))
        except ValidationError as error:
            invalid += 1
            fields = [".".join(map(str, fault["loc"])) for fault in error.errors()[:3]]
            logger.warning("fact not valid", extra={"fact_type": name, "fields": fields})
    return Parsed(facts, unknown, invalid)


@lru_cache(maxsize=100)
def _report_unknown(name: str) -> None:
    """Log a type of facts once."""
    logger.warning("facts of an unknown type ignored", extra={"fact_type": name})
