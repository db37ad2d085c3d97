"""Sample data of the shipped templates, and a sample of a user, for previews and checks."""

import json
from functools import cache
from typing import Any

from services.mailings.rendering.loader import SHIPPED


@cache
def samples() -> dict[str, Any]:
    """Return the variables of each shipped template by its name, and the user as `user`."""
    loaded: dict[str, Any] = json.loads(SHIPPED.joinpath("samples.json").read_text("utf-8"))
    return loaded
