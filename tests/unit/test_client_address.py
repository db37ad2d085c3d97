"""The address by which limits count: of the connection, or what a proxy reports."""

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from shared.http.client_address import client_address, network


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("198.51.100.7", "198.51.100.7"),
        (" 198.51.100.7 ", "198.51.100.7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("x" * 10_000, "x" * 45),
        ("", ""),
    ],
)
def test_u5_addresses_of_one_network_count_together(address: str, expected: str) -> None:
    assert network(address) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["203.0.113.9"], "203.0.113.9"),
        (["198.51.100.7, 203.0.113.9"], "203.0.113.9"),
        (["198.51.100.7", "203.0.113.9"], "203.0.113.9"),
    ],
)
def test_u5_only_the_entry_of_the_proxy_counts(given: list[str], expected: str) -> None:
    headers = CIMultiDict([("X-Forwarded-For", each) for each in given])
    request = make_mocked_request("GET", "/", headers=headers)
    assert client_address(request, "X-Forwarded-For") == expected
    # Without the setting, the header is not read: anybody can send it.
    assert client_address(request, None) == network(request.remote or "")
