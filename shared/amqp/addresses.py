"""The addresses of the broker in `RINGBACK_AMQP_URL`: one URL for each node of a cluster."""

from typing import Final

from yarl import URL

EXAMPLE: Final = "amqp://user:password@host:5672/vhost"


def addresses(urls: str) -> tuple[str, ...]:
    """Return the addresses in a setting, which separates them by commas."""
    return tuple(url.strip() for url in urls.split(","))


def validated(urls: str) -> str:
    """Return the setting unchanged.

    Raises:
        ValueError: an address is not valid. The text has its number, and nothing of its content.
    """
    parsed = [_parse(address) for address in addresses(urls)]
    if None in parsed:
        place = f"address {parsed.index(None) + 1} " if len(parsed) > 1 else ""
        raise ValueError(
            f"{place}must look like {EXAMPLE}. In a password, write special characters"
            " percent-encoded, such as %2C for a comma"
        )
    if len({url.path for url in parsed if url}) > 1:
        raise ValueError("all addresses must have the same virtual host")
    return urls


def redacted(urls: str) -> str:
    """Return the addresses without their passwords."""
    return ", ".join(
        str(url.with_password("******") if url.password is not None else url)
        for url in map(URL, addresses(urls))
    )


def _parse(address: str) -> URL | None:
    try:
        url = URL(address)
    except ValueError:  # its text quotes the address
        return None
    return url if url.scheme in ("amqp", "amqps") and url.host else None
