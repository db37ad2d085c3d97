"""`ringback rules try`."""

import json
from pathlib import Path

from click.testing import CliRunner

from services.__main__ import main

RULES = """
[order_shipped]
from_service = "shop"
event = "order_shipped"

[[order_shipped.user_event]]
user_id = "{{ details.user_id }}"
type = "order_shipped"
event = { number = "{{ details.number }}" }
"""


def test_a_user_event_is_shown_with_the_routing_key_that_it_is_published_with(
    tmp_path: Path,
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    event = {
        "from_service": "shop",
        "event": "order_shipped",
        "details": {"number": "4711", "user_id": 7},
    }

    arguments = ["rules", "try", str(rules), "-", "--json"]
    result = CliRunner().invoke(main, arguments, input=json.dumps(event))

    (command,) = json.loads(result.stdout)["commands"]
    assert (command["exchange"], command["routing_key"]) == ("user_events", "7")
