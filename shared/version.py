"""The version of this Ringback, from the installed package."""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("ringback")
