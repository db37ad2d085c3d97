"""One request to the console: URLs, the selected client, forms, and what services learn of it."""

import logging
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import MultiDict

from services.console.feeds import Feeds
from services.console.pages.overview import live_figures
from services.console.rendering import environment
from services.console.security import ZONE_COOKIE
from services.console.sign_in.roles import Role
from services.console.sign_in.sessions import Session, user_of
from services.console.visit import Site, Visit, selected_client
from shared.amqp.publisher import Publisher
from shared.amqp.rpc_client import RpcClient
from shared.contracts.journal_figures import Overview
from shared.http.problem import ProblemError
from shared.http.service_client import ServiceClient
from shared.process.health import Health
from shared.topology import topology

OPERATOR = Session("subject-1", "omar@example.com", "Omar", Role.OPERATOR, "token-1")
VIEWER = Session("subject-2", "vera@example.com", "Vera", Role.VIEWER, "token-2")
ADMIN = Session("subject-3", "ada@example.com", "Ada", Role.ADMIN, "token-3")


def visit(path: str, session: Session | None = OPERATOR, zone: str = "", **form: str) -> Visit:
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "Cookie": f"{ZONE_COOKIE}={zone}"}
    request = make_mocked_request("GET", path, headers=headers)
    unconnected = RpcClient("amqp://127.0.0.1:1/", name="test", health=Health())
    services = ServiceClient(unconnected, timeout=1)
    publisher = Publisher("amqp://127.0.0.1:1/", name="test", topology=topology(), health=Health())
    site = Site("http://c", services, environment(), {}, {}, Feeds(), publisher)
    return Visit(request, site, session, "Title", selected_client(request.query), MultiDict(form))


def test_urls_keep_the_client_and_escape_what_they_contain() -> None:
    here = visit("/callbacks?client=a%26b&status=failed&cursor=x")
    assert here.url("/targets") == "/targets?client=a%26b"
    assert here.url("/targets", q="1 & 2", none=None) == "/targets?client=a%26b&q=1+%26+2"
    assert here.url("/targets", client=None) == "/targets"
    assert here.here(cursor=None) == "/callbacks?client=a%26b&status=failed"
    assert here.here(status="dead", cursor="") == "/callbacks?client=a%26b&status=dead"
    assert visit("/").url("/callbacks/ä?b") == "/callbacks/%C3%A4%3Fb"


def test_a_link_is_current_on_its_page_and_below() -> None:
    assert visit("/callbacks/1").is_at("/callbacks")
    assert visit("/callbacks").is_at("/callbacks")
    assert not visit("/callbacks-old").is_at("/callbacks")
    assert not visit("/callbacks").is_at("/")


@pytest.mark.parametrize("client", ["ringback.scheduler", "x" * 256, "a%00b", "a%0Ab", "%E2%80%AE"])
def test_an_invalid_client_is_rejected(client: str) -> None:
    with pytest.raises(ProblemError) as caught:
        visit(f"/?client={client}")
    assert [error.field for error in caught.value.errors] == ["client"]


def test_an_empty_client_is_none() -> None:
    assert visit("/?client=").client_id is None
    assert visit("/?client=+shop+").client_id == "shop"


def test_services_learn_the_client_the_user_and_the_trace() -> None:
    context = visit("/?client=shop").context()
    assert context.client_id == "shop"
    assert context.actor == "omar@example.com"
    assert context.operator
    assert context.traceparent is not None
    assert not visit("/", session=None).context().operator


def test_m11_a_role_includes_those_below_it() -> None:
    assert visit("/").allows("viewer")
    assert visit("/").allows("operator")
    assert not visit("/").allows("admin")
    assert not visit("/", session=None).allows("viewer")


def test_fields_of_a_form() -> None:
    form = visit("/", name=" x ")
    assert (form.text("name"), form.text("other")) == ("x", "")
    assert (form.texts("name"), form.texts("other")) == ([" x "], [])


async def test_an_action_that_cannot_be_recorded_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        await visit("/").record("mailing.cancel", "mailing-1", reason="wrong text")
    [record] = caplog.records
    assert "action not recorded" in record.message
    assert vars(record)["action"] == "mailing.cancel"
    assert vars(record)["subject"] == "subject-1"
    assert "omar" not in record.message


def test_m11_a_user_is_named_by_user_name_address_or_subject() -> None:
    claims: dict[str, object] = {"sub": "s-1"}
    assert user_of("i", claims).actor == "s-1"
    assert user_of("i", claims | {"email": "a@example.com"}).actor == "a@example.com"
    named = user_of("i", claims | {"email": "a@example.com", "preferred_username": "ada"})
    assert (named.actor, named.name) == ("ada", "ada")
    assert user_of("i", claims | {"name": "Ada\n\u202eL\x00"}).name == "Ada L"
    assert user_of("i", claims | {"name": 7}).name == "s-1"
    assert len(user_of("i", claims | {"name": "x" * 9999}).name) == 255


async def test_n8_browsers_that_show_the_same_overview_share_its_live_part() -> None:
    def key(path: str = "/live/overview", **given: Any) -> object:
        return live_figures(visit(path, **given), figures)[0]

    assert key(session=ADMIN) == key()
    different = {
        key(),
        key(session=VIEWER),
        key(zone="Europe/Berlin"),
        key("/live/overview?client=shop"),
        key("/live/overview?minutes=15"),
    }
    assert len(different) == 5


@pytest.mark.parametrize("session", [VIEWER, OPERATOR, ADMIN])
async def test_m11_the_shared_live_part_shows_nothing_of_its_first_user(session: Session) -> None:
    here = visit("/live/overview", session)
    html = await live_figures(here, figures)[1]()
    assert ("Schedule a callback" in html) == (session is not VIEWER)
    for hidden in (session.subject, session.actor, session.name, session.csrf):
        assert hidden not in html


async def figures() -> Any:
    """Return the overview of a system without attempts."""
    return Overview(
        **dict.fromkeys(("delivered", "failed", "running_jobs"), 0),
        **dict.fromkeys(("p50", "p99", "waiting", "due", "oldest_due", "lag", "queues")),
        **{name: [] for name in ("minutes", "targets", "breakers", "paused_targets")},
        **{name: [] for name in ("gaps", "findings")},
        at=datetime.now(UTC),
    ).model_dump(mode="json")


def test_every_template_is_valid() -> None:
    templates = environment()
    for name in templates.list_templates():
        assert templates.get_template(name)


def test_m11_templates_escape_everything_and_contain_nothing_inline() -> None:
    """The policy of the pages would block what is inline; `safe` would let markup through."""
    templates = environment()
    assert templates.autoescape is True
    for name in templates.list_templates():
        source, _, _ = templates.loader.get_source(templates, name)  # type: ignore[union-attr]
        for forbidden in (
            r"\|\s*safe\b",
            r"autoescape",
            r"\sstyle=",
            r"<style",
            r"<script(?! type=\"module\" src=\"\{\{)",
            r"\son[a-z]+=",
            r"javascript:",
            r"(?:src|href)=\"(?:https?:)?//",
        ):
            assert not re.search(forbidden, source, re.IGNORECASE), (name, forbidden)
        for form in re.findall(r"<form[^>]*method=\"post\".*?</form>", source, re.DOTALL):
            assert "csrf()" in form, name
