"""Which parts of a service the options of `ringback run` start."""

import click
import pytest

from shared.process.command import chosen_parts


@pytest.mark.parametrize(
    ("consumer", "metrics", "runs"),
    [
        (None, None, (True, True)),
        (True, None, (True, False)),
        (None, True, (False, True)),
        (True, True, (True, True)),
        (False, None, (False, True)),
        (None, False, (True, False)),
        (True, False, (True, False)),
        (False, True, (False, True)),
    ],
)
def test_a_flag_alone_starts_only_that_part(
    *, consumer: bool | None, metrics: bool | None, runs: tuple[bool, bool]
) -> None:
    parts = chosen_parts(consumer=consumer, metrics=metrics)

    assert (parts.consumer, parts.metrics) == runs


def test_running_no_part_is_wrong_usage() -> None:
    with pytest.raises(click.UsageError):
        chosen_parts(consumer=False, metrics=False)
