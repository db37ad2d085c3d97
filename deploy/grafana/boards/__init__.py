"""All dashboards, in the order of their list."""

from typing import Final

from deploy.grafana.boards.callbacks import CALLBACKS
from deploy.grafana.boards.endpoints import ENDPOINTS
from deploy.grafana.boards.mailings import MAILINGS
from deploy.grafana.boards.overview import OVERVIEW
from deploy.grafana.boards.platform import PLATFORM
from deploy.grafana.boards.schedules import SCHEDULES

BOARDS: Final = (OVERVIEW, CALLBACKS, SCHEDULES, MAILINGS, ENDPOINTS, PLATFORM)
