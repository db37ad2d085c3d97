"""The check of addresses and of URLs: fault row 27."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.http.guard import ForbiddenTargetError, Guard, parse_target
from tests.fakes.hostile_urls import LOOPBACK, MALFORMED, NOT_PUBLIC

LOCAL_NAMES = ("localhost", "anything.localhost")  # the resolver's result is checked instead
PUBLIC = (
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "172.15.255.255",
    "172.32.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00:1450:4001::5e",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
)


@pytest.mark.parametrize("url", LOOPBACK + NOT_PUBLIC)
def test_row_27_no_spelling_of_a_forbidden_address_passes(url: str) -> None:
    try:
        target = parse_target(url.replace("{port}", "80"))
    except ForbiddenTargetError:
        return
    assert target.host in LOCAL_NAMES or not Guard().permits(target.host)


@pytest.mark.parametrize("url", MALFORMED)
def test_row_27_an_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises(ForbiddenTargetError) as caught:
        parse_target(url.replace("{port}", "80"))
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address: str) -> None:
    assert Guard().permits(address)


@pytest.mark.parametrize(
    "address",
    ["", "localhost", "127.1", "0x7f.1", "2130706433", "\uff11.1.1.1", "1.1.1.1 ", "[::1]"],
)
def test_a_text_that_is_not_a_plain_address_is_denied(address: str) -> None:
    everything = Guard((ip_network("0.0.0.0/0"), ip_network("::/0")))
    assert not everything.permits(address)


def test_a_zone_is_denied_even_on_a_public_address() -> None:
    assert not Guard((ip_network("fe80::/10"),)).permits("fe80::1%eth0")
    assert not Guard().permits("2606:4700::1111%eth0")


def test_allowed_networks_permit_exactly_their_addresses_also_inside_ipv6() -> None:
    guard = Guard((ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")))
    permitted = ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00:1::5", "1.1.1.1")
    denied = (
        "10.2.0.1",
        "::ffff:10.2.0.1",
        "fd00:2::5",
        "127.0.0.1",
        "2002:a01:203::",
        "::10.1.2.3",
    )
    assert [a for a in permitted if not guard.permits(a)] == []
    assert [a for a in denied if guard.permits(a)] == []


@given(st.ip_addresses(v=4))
@example(IPv4Address("168.63.129.16"))
def test_law_an_ipv4_address_inside_ipv6_is_treated_as_that_address(ip: IPv4Address) -> None:
    permitted = Guard().permits(str(ip))
    assert Guard().permits(f"::ffff:{ip}") == permitted
    assert Guard().permits(f"64:ff9b::{ip}") == permitted
    # Tunnels and deprecated forms are always denied.
    assert not Guard().permits(f"::{ip}")
    assert not Guard().permits(f"::ffff:0:{ip}")
    assert not Guard().permits(str(IPv6Address(0x2002 << 112 | int(ip) << 80 | 1)))
    assert not Guard().permits(str(IPv6Address(0x2606_4700 << 96 | 0x5EFE << 32 | int(ip))))


@given(st.ip_addresses())
def test_law_no_private_or_reserved_address_is_permitted(
    ip: IPv4Address | IPv6Address,
) -> None:
    if Guard().permits(str(ip)) and not str(ip).startswith(("64:ff9b::", "::ffff:")):
        assert ip.is_global
        assert not ip.is_multicast
        assert not ip.is_reserved


@given(st.text(max_size=40))
@example("http://xn--a/")
@example("http://[::1]:80:80/")
def test_law_any_text_is_rejected_or_gives_a_consistent_target(text: str) -> None:
    for url in (text, f"http://{text}", f"https://example.com:{text}", f"http://[{text}]/"):
        try:
            target = parse_target(url)
        except ForbiddenTargetError:
            continue
        assert target.url.host is not None
        assert target.host == target.url.raw_host.removesuffix(".")  # type: ignore[union-attr]
        assert target.host.isascii()
        assert 0 < target.port < 65536
        assert target.url.raw_user is None
        assert target.url.raw_password is None


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "0x{:x}", "0{:o}", "0x{:08X}", "{}."]))
def test_law_a_host_that_is_a_number_is_rejected(number: int, spelling: str) -> None:
    with pytest.raises(ForbiddenTargetError):
        parse_target(f"http://{spelling.format(number)}/")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://Example.COM/a?b#c", "http://example.com:80"),
        ("HTTPS://example.com", "https://example.com:443"),
        ("https://example.com:8443/x", "https://example.com:8443"),
        ("http://example.com./x", "http://example.com:80"),
        ("http://[2606:4700:0::1111]/x", "http://[2606:4700::1111]:80"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example:80"),
        ("http://my_service.internal:81/", "http://my_service.internal:81"),
    ],
)
def test_the_origin_consists_of_scheme_host_and_port(url: str, origin: str) -> None:
    assert parse_target(url).origin == origin


def test_a_target_keeps_the_path_and_query_and_drops_the_fragment() -> None:
    target = parse_target("https://example.com/a%2Fb?x=1&y=%20#frag")
    assert str(target.url) == "https://example.com/a%2Fb?x=1&y=%20"
    assert (target.host, target.port, target.tls) == ("example.com", 443, True)


def test_the_same_url_is_parsed_once() -> None:
    assert parse_target("https://example.com/once") is parse_target("https://example.com/once")


def test_the_fault_row_has_at_least_60_urls() -> None:
    assert len({*LOOPBACK, *NOT_PUBLIC}) >= 60
