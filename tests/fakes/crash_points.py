"""Selects the crash points that `make test` tries; `make soak` tries all of them."""

from collections.abc import Iterable

import pytest
from _pytest.mark import ParameterSet


def slow_except(values: Iterable[str], *quick: str) -> list[ParameterSet]:
    """Return the parameters; `make test` runs only the `quick` ones.

    Each start of a process takes almost a second of CPU, so the lane that runs after every change
    has one crash point for each kind of side effect.
    """
    return [
        pytest.param(value, marks=() if value in quick else pytest.mark.slow) for value in values
    ]
