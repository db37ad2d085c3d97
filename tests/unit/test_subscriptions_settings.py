"""The settings of subscriptions."""

import pytest
from pydantic import ValidationError

from services.subscriptions.deliveries.domain import MAIN_DELAYS
from services.subscriptions.settings import SubscriptionsSettings


def test_n2_events_cannot_be_deleted_before_their_last_retry() -> None:
    assert sum(MAIN_DELAYS) < 2 * 86_400
    assert SubscriptionsSettings(retention=2).retention == 2
    with pytest.raises(ValidationError, match="retention"):
        SubscriptionsSettings(retention=1.2)
