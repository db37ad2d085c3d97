"""Every channel in the registry has a format, a sender and a valid declaration."""

import pytest

from services.delivery.app import SENDERS
from services.mailings.rendering.formats import FORMATS
from shared.registry import CHANNELS, Channel


def test_every_channel_has_a_format_and_a_sender() -> None:
    assert SENDERS.keys() == FORMATS.keys() == CHANNELS.keys()


@pytest.mark.parametrize("channel", CHANNELS.values(), ids=CHANNELS)
def test_the_address_is_a_required_field_of_the_contract(channel: Channel) -> None:
    assert channel.contract.model_fields[channel.address].is_required()
