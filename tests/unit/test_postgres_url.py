"""URLs of PostgreSQL with several hosts, and no password in any error."""

import pytest

from shared.postgres.url import urls_of_hosts, without_password
from shared.settings import InvalidSettingsError, Settings, load

SEVERAL = "postgresql://me:p%40w@a:5432,[::1]:5433,b.example.com/db?target_session_attrs=read-write"


def test_n11_each_host_of_a_url_has_its_own_url() -> None:
    query = "db?target_session_attrs=read-write"
    assert urls_of_hosts(SEVERAL) == [
        f"postgresql://me:p%40w@a:5432/{query}",
        f"postgresql://me:p%40w@[::1]:5433/{query}",
        f"postgresql://me:p%40w@b.example.com/{query}",
    ]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@127.0.0.1:5432/db",
        "postgres://host",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://me@[::1]/db",
    ],
)
def test_a_url_with_at_most_one_host_stays_as_it_is(url: str) -> None:
    assert urls_of_hosts(url) == [url]


@pytest.mark.parametrize(
    "url",
    [
        "http://me:canary@a/db",
        "postgresql://me:canary@a:port/db",
        "postgresql://me:canary@a:70000/db",
        "postgresql://me:canary@a:5432,/db",
        "postgresql://me:canary@a b/db",
        "postgresql://me:canary@::1/db",
        "postgresql://me:can?ary@a/db",
    ],
)
def test_an_invalid_url_is_rejected_without_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGBACK_DATABASE_URL", url)
    with pytest.raises(InvalidSettingsError, match="RINGBACK_DATABASE_URL: must look") as rejected:
        load(Settings)
    assert "can" not in str(rejected.value).replace("Cannot", "")
    assert "can" not in without_password(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SEVERAL, "postgresql://me:******@a:5432,[::1]:5433,b.example.com/db"),
        ("postgresql://me:p@w@a/db?password=x", "postgresql://me:******@a/db"),
        ("postgresql://me@a/db", "postgresql://me@a/db"),
        ("postgres://a", "postgres://a"),
        ("postgresql:///db?host=x", "postgresql:///db"),
    ],
)
def test_n11_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
