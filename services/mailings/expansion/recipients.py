"""The sources of recipients: the user list of a posting, and the client directory of a mailing."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

from services.mailings.clients.domain import StoredClient
from services.mailings.clients.store import Directory
from services.mailings.domain import (
    InvalidPostingError,
    Page,
    PageUrls,
    Recipient,
    author_of,
    parse_page,
)
from services.mailings.expansion.slots import NoSlotError, Slot
from services.mailings.expansion.sources import LargeResponseError, SourceError, Sources
from services.mailings.records import Cohort

_FIRST: Final = UUID(int=0)


class RecipientPage(NamedTuple):
    """Different recipients, the number of entries with them, and where the next page is, if any."""

    recipients: list[Recipient]
    entries: int
    next_page: str | None


class RecipientSource(Protocol):
    """Recipients, page by page. The same position has the same recipients, unless they change."""

    async def page(self, position: str | None, number: int, earlier: int) -> RecipientPage:
        """Return a page.

        Args:
            position: where it is; None for the first page.
            number: the number of the page, from 0.
            earlier: the number of entries on earlier pages.

        Raises:
            InvalidPostingError: the page is not valid.
            SourceError: the source is not available now.
            NoSlotError: the page is large, and other lists use all slots.
            InfrastructureError: the database is not available.
        """


class UserList:
    """The paged user list at a URL.

    slot: changed into one for lists before a large response is fetched.
    max_receivers: maximum number of users; None: no limit.
    """

    def __init__(
        self, sources: Sources, receivers: str, slot: Slot, max_receivers: int | None
    ) -> None:
        self._sources = sources
        self._urls = PageUrls.of(receivers)
        self._slot = slot
        self._max_receivers = max_receivers

    async def page(self, position: str | None, number: int, earlier: int) -> RecipientPage:
        """Fetch a page. See RecipientSource."""
        try:
            page = await self._fetch(position or self._urls.at(0), number, earlier)
            recipients = self._recipients(page, number, earlier)
        except InvalidPostingError as error:
            raise InvalidPostingError(f"{position_of(number)}: {error}") from None
        except SourceError as error:
            raise SourceError(f"{position_of(number)}: {error}") from None
        return RecipientPage(recipients, len(page.items), page.next_page)

    async def _fetch(self, url: str, number: int, earlier: int) -> Page:
        value = await self._json(url)
        if author := author_of(value):
            value = await self._json(self._sources.follow(url, author))
        page = parse_page(
            value, size=self._urls.size, earlier=earlier, by_number=self._urls.at(number + 1)
        )
        if page.next_page is None:
            return page
        return page._replace(next_page=self._sources.follow(url, page.next_page))

    async def _json(self, url: str) -> Any:
        if not self._slot.is_list:
            with suppress(LargeResponseError):
                return await self._sources.small_json(url)
            if not self._slot.extend():
                raise NoSlotError
        return await self._sources.json(url)

    def _recipients(self, page: Page, number: int, earlier: int) -> list[Recipient]:
        """Return the recipients of a page, each once.

        Raises:
            InvalidPostingError: every item is invalid, or the list is too long.
        """
        total = max(earlier + len(page.items), page.total)
        if self._max_receivers and total > self._max_receivers:
            raise InvalidPostingError(
                f"more than {self._max_receivers} receivers. Check that the list ends, or raise"
                " RINGBACK_MAILINGS_MAX_RECEIVERS"
            )
        recipients: dict[str, Recipient] = {}
        for place, item in enumerate(page.items, start=1):
            recipient = Recipient.of(item, f"page {number + 1}, item {place}")
            recipients.setdefault(recipient.id, recipient)
        if recipients and all(recipient.error for recipient in recipients.values()):
            error = next(iter(recipients.values())).error
            raise InvalidPostingError(f"no item is a user: {error}")
        return list(recipients.values())


class Clients:
    """The clients of a cohort in the directory, ordered by id."""

    def __init__(self, directory: Directory, cohort: Cohort, page_size: int) -> None:
        self._directory = directory
        self._cohort = cohort
        self._page_size = page_size

    async def page(self, position: str | None, number: int, earlier: int) -> RecipientPage:  # noqa: ARG002 - see RecipientSource
        """Return the clients after the id at a position. See RecipientSource."""
        cohort = self._cohort
        clients = await self._directory.page(
            cohort.owner,
            UUID(position) if position else _FIRST,
            self._page_size,
            operator_codes=cohort.operator_codes,
            tags=cohort.tags,
            timezone=cohort.timezone,
        )
        more = len(clients) == self._page_size
        recipients = [_recipient(client) for client in clients]
        return RecipientPage(recipients, len(clients), recipients[-1].id if more else None)

    async def find_all(self, ids: Collection[str]) -> Mapping[str, Recipient]:
        """Return those of these clients that still exist, by id."""
        found = await self._directory.find_all(self._cohort.owner, [UUID(id_) for id_ in ids])
        return {str(id_): _recipient(client) for id_, client in found.items()}


def _recipient(client: StoredClient) -> Recipient:
    return Recipient(str(client.id), client.user, None, client.fields.operator_code)


def position_of(number: int) -> str:
    """Return the position of a page for people."""
    return f"receivers, page {number + 1}"
