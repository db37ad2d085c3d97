"""Every page of the console; each module declares the pages of one subject with their handlers."""

from collections.abc import Mapping, Sequence

from services.console.pages import (
    attempts,
    audit,
    callback,
    callbacks,
    clients,
    dead_letters,
    endpoint_messages,
    endpoints,
    events,
    jobs,
    mailing_edit,
    mailings,
    overview,
    postings,
    schedule,
    signatures,
    tail,
    targets,
    templates,
)
from services.console.pages.declaration import Page
from services.console.visit import Link

# The sections of the navigation, in this order.
SECTIONS = ("Watch", "Act", "Send")


def all_pages() -> tuple[Page, ...]:
    """Return the declarations of all pages but sign-in. Their order is that of the links."""
    return (
        *overview.pages(),
        *callbacks.pages(),
        *callback.pages(),
        *schedule.pages(),
        *attempts.pages(),
        *tail.pages(),
        *signatures.pages(),
        *audit.pages(),
        *dead_letters.pages(),
        *jobs.pages(),
        *targets.pages(),
        *mailing_edit.pages(),
        *mailings.pages(),
        *clients.pages(),
        *endpoints.pages(),
        *endpoint_messages.pages(),
        *postings.pages(),
        *events.pages(),
        *templates.pages(),
    )


def navigation(pages: Sequence[Page]) -> Mapping[str, Sequence[Link]]:
    """Return the links of each section of the navigation."""
    return {
        section: [
            Link(page.path, page.title, page.role)
            for page in pages
            if page.section == section and page.role is not None
        ]
        for section in SECTIONS
    }
