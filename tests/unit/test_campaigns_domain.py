"""M2: what each action does in each status of a mailing."""

from datetime import UTC, datetime, timedelta
from json import dumps
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from services.mailings.campaigns import domain
from services.mailings.campaigns.domain import Action, Effect
from shared.contracts.context import field_errors
from shared.contracts.mailings import MailingChanges, MailingStatus, NewMailing

PAGE = Path(__file__).parents[2] / "docs" / "mailings.md"
FINAL = {MailingStatus.FINISHED, MailingStatus.CANCELLED}
AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


def parse(model: type[NewMailing | MailingChanges], text: str) -> NewMailing | MailingChanges:
    return model.model_validate_json(text)


def test_m2_only_a_mailing_that_has_not_ended_can_be_changed_started_paused_or_resumed() -> None:
    refused = (Action.CHANGE, Action.START, Action.PAUSE, Action.RESUME)
    for status in FINAL:
        assert {domain.effect(action, status) for action in refused} == {None}


def test_m2_the_page_of_mailings_shows_what_each_action_does() -> None:
    lines = []
    for action in Action:
        cells = [str(action), *(domain.effect(action, status) or "" for status in MailingStatus)]
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    head, separator, _ = PAGE.read_text().partition("\n\nAn empty cell")
    assert separator
    assert head.split("\n")[-len(lines) :] == lines


def test_m2_every_mailing_that_has_not_ended_can_be_cancelled() -> None:
    open_ = set(MailingStatus) - FINAL
    assert {domain.effect(Action.CANCEL, status) for status in open_} == {Effect.CANCEL}


def test_m2_a_repeated_action_is_accepted_and_changes_nothing() -> None:
    repeats = {
        Action.START: (MailingStatus.SCHEDULED, MailingStatus.RUNNING),
        Action.PAUSE: (MailingStatus.PAUSED,),
        Action.RESUME: (MailingStatus.SCHEDULED, MailingStatus.RUNNING),
        Action.CANCEL: (MailingStatus.CANCELLED,),
    }
    for action, statuses in repeats.items():
        for status in statuses:
            assert domain.effect(action, status) is Effect.NOTHING


def test_m2_a_mailing_that_may_be_sending_cannot_be_deleted() -> None:
    deletable = {s for s in MailingStatus if domain.effect(Action.DELETE, s) is Effect.DELETE}
    assert deletable == set(MailingStatus) - {MailingStatus.RUNNING, MailingStatus.PAUSED}


def test_m4_a_mailing_runs_from_its_start_time_on() -> None:
    assert domain.begun(AT, AT) is MailingStatus.RUNNING
    assert domain.begun(AT, AT - timedelta(microseconds=1)) is MailingStatus.SCHEDULED


def test_ids_of_mailings_and_their_cohorts_never_change() -> None:
    mailing = domain.mailing_id_of_key("shop", "key")
    assert mailing == UUID("96ef13d2-36da-54ba-ab9e-a60473e51d00")
    assert domain.cohort_id(mailing, None) == UUID("dd59409d-832b-5b53-a38c-946dde3da403")
    assert domain.cohort_id(mailing, "Europe/Moscow") == UUID(
        "7fc4c8d8-2016-5a52-9c48-8610c85b5177"
    )
    assert domain.mailing_id_of_key(None, "key") != mailing


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"end_at": None}, "end_at"),
        ({"end_at": "2026-11-20T12:00:00"}, "end_at"),
        ({"end_at": "2026-11-20T12:00:00Z", "start_at": "2026-11-20T12:00:00Z"}, "end_at"),
        ({"text": None}, "text"),
        ({"text": ""}, "text"),
        ({"template": "sms/a.md"}, "text"),
        ({"local_hours": {"from": "09:00", "to": "09:00"}}, "local_hours.to"),
        ({"local_hours": {"from": "9:00", "to": "21:00"}}, "local_hours.from"),
        ({"local_hours": {"from": "09:00", "to": "24:00"}}, "local_hours.to"),
        ({"rate_per_minute": 0}, "rate_per_minute"),
        ({"channel": "email"}, "channel"),
        ({"filter": {"tag": "a"}}, "filter.tag"),
        ({"name": "a"}, "name"),
    ],
)
def test_m2_an_invalid_mailing_is_rejected_and_the_field_is_named(
    changed: dict[str, Any], field: str
) -> None:
    valid = {"text": "Hi", "end_at": "2026-11-20T12:00:00Z"}
    parse(NewMailing, dumps(valid))
    with pytest.raises(ValidationError) as error:
        parse(NewMailing, dumps(valid | changed))
    assert field in {each.field for each in field_errors(error.value)}


def test_m2_a_filter_accepts_operator_codes_as_texts_and_as_numbers() -> None:
    mailing = parse(
        NewMailing,
        '{"text": "Hi", "end_at": "2026-11-20T12:00:00Z",'
        ' "filter": {"operator_codes": ["916", 925], "tags": ["new"]}}',
    )
    assert mailing.filter.operator_codes == ["916", "925"]


@pytest.mark.parametrize(
    "text", ["{}", '{"text": null}', '{"end_at": null}', '{"status": "draft"}']
)
def test_m2_an_invalid_change_is_rejected(text: str) -> None:
    with pytest.raises(ValidationError):
        parse(MailingChanges, text)


def test_m2_a_change_can_remove_local_hours_and_the_rate() -> None:
    changes = parse(MailingChanges, '{"local_hours": null, "rate_per_minute": null}')
    assert changes.model_dump(exclude_unset=True) == {"local_hours": None, "rate_per_minute": None}
