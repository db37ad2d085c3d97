"""Write the dashboards to `dashboards/`."""

from pathlib import Path

from deploy.grafana.boards import BOARDS
from deploy.grafana.panels import render

DIRECTORY = Path(__file__).parent / "dashboards"

for board in BOARDS:
    (DIRECTORY / f"{board.uid}.json").write_text(render(board))
