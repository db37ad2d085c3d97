"""From a mailing to the values of its form, and from the form to the fields of a mailing. Pure."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from pydantic_core import to_json

from services.console.forms import FormReader, input_time

# The end of a new mailing, unless another one is entered.
_LENGTH: Final = timedelta(days=1)
# Statuses in which every field may change; otherwise only the end and the rate.
OPEN_STATUSES: Final = frozenset({"draft", "scheduled"})

Values = Mapping[str, str]


def new_values(now: datetime, zone: ZoneInfo) -> Values:
    """Return the values of the empty form."""
    return {
        **dict.fromkeys(
            (
                *("text", "template", "template_context", "start_at", "operator_codes", "tags"),
                *("opens", "closes", "rate_per_minute"),
            ),
            "",
        ),
        "end_at": input_time(now.replace(second=0) + _LENGTH, zone),
    }


def values_of(mailing: Mapping[str, Any], zone: ZoneInfo) -> Values:
    """Return the values of the form for a mailing."""
    hours = mailing["local_hours"] or {"from": "", "to": ""}
    context = mailing["template_context"]
    return {
        "text": mailing["text"] or "",
        "template": mailing["template"] or "",
        "template_context": to_json(context, indent=2).decode() if context else "",
        "start_at": input_time(mailing["start_at"], zone),
        "end_at": input_time(mailing["end_at"], zone),
        "operator_codes": " ".join(mailing["filter"]["operator_codes"]),
        "tags": "\n".join(mailing["filter"]["tags"]),
        "opens": hours["from"],
        "closes": hours["to"],
        "rate_per_minute": str(mailing["rate_per_minute"] or ""),
    }


def sent_values(form: FormReader, names: Values) -> Values:
    """Return what was entered, to show the form again."""
    return {name: form.raw(name) for name in names}


def filter_of(form: FormReader) -> dict[str, Any]:
    """Return the filter of the form."""
    return {"operator_codes": form.words("operator_codes"), "tags": form.lines("tags")}


def content_of(form: FormReader) -> dict[str, Any]:
    """Return the fields of a mailing, or of all changes to one. Absent ones are left out."""
    opens, closes = form.text("opens"), form.text("closes")
    fields: dict[str, Any] = {
        "filter": filter_of(form),
        "local_hours": {"from": opens, "to": closes} if opens and closes else None,
        "template_context": form.json("template_context") or {},
        **limits_of(form),
    }
    if bool(opens) != bool(closes):
        form.refuse("opens" if closes else "closes", "set both local hours, or none")
    template, text = form.text("template"), form.raw("text")
    if template is not None:
        fields["template"] = template
    if text.strip():
        fields["text"] = text
    if (start_at := form.time("start_at")) is not None:
        fields["start_at"] = start_at
    return fields


def limits_of(form: FormReader) -> dict[str, Any]:
    """Return the fields that a running mailing may change."""
    if (end_at := form.time("end_at")) is None and not form.errors:
        form.refuse("end_at", "is required")
    return {"end_at": end_at, "rate_per_minute": form.whole("rate_per_minute")}
