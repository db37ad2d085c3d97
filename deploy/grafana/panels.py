"""The building blocks of a dashboard, and their JSON."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
# Columns of a row in Grafana.
COLUMNS: Final = 24
ROW_HEIGHT: Final = 1
# The version of the JSON with these fields. Grafana migrates older ones when it reads them.
SCHEMA_VERSION: Final = 39

# Units of Grafana.
COUNT: Final = "short"
PER_SECOND: Final = "ops"
REQUESTS: Final = "reqps"
SECONDS: Final = "s"
SHARE: Final = "percentunit"
BYTES: Final = "bytes"
ON_OFF: Final = "bool_on_off"


@dataclass(frozen=True, slots=True)
class Query:
    """An expression. `legend` names its series; `{{label}}` is the value of a label."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel with its queries. `red_from` is the value from which a stat is red.

    A `stat` shows the current value, `timeseries` its course, and `table` the series of one query.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    red_from: float | None = None
    width: int = 8
    height: int = 8


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard. `uid` is the name of its file and part of its URL."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]


def stat(  # noqa: PLR0913 - these are the fields of a panel
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    red_from: float | None = None,
    width: int = 4,
) -> Panel:
    """Return a panel that shows one number."""
    return Panel(title, description, unit, (Query(expr, ""),), "stat", red_from, width, height=4)


def graph(title: str, description: str, unit: str, *queries: tuple[str, str]) -> Panel:
    """Return a panel with curves. Each query is an expression and a legend."""
    return Panel(title, description, unit, tuple(Query(*query) for query in queries))


def quantiles(title: str, description: str, histogram: str, by: str = "") -> Panel:
    """Return a panel with the median and the 99th percentile of a histogram in seconds."""
    labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    buckets = f"sum by ({labels}) (rate({histogram}_bucket[$__rate_interval]))"
    return graph(
        title,
        description,
        SECONDS,
        (f"histogram_quantile(0.5, {buckets})", f"median{legend}"),
        (f"histogram_quantile(0.99, {buckets})", f"99 %{legend}"),
    )


def render(board: Board) -> str:
    """Return the JSON of a dashboard."""
    return json.dumps(_board(board), indent=1, ensure_ascii=False) + "\n"


def _board(board: Board) -> dict[str, Any]:
    return {
        "uid": board.uid,
        "title": f"Ringback: {board.title}",
        "description": board.description,
        "tags": ["ringback"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,  # one crosshair in all panels
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [
            {"title": "Ringback", "type": "dashboards", "tags": ["ringback"], "asDropdown": True}
        ],
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                }
            ]
        },
        "panels": [{"id": number, **panel} for number, panel in enumerate(_panels(board), 1)],
    }


def _panels(board: Board) -> Iterator[dict[str, Any]]:
    """Yield the headings and the panels, from left to right and from top to bottom."""
    y = 0
    for row in board.rows:
        yield {
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": ROW_HEIGHT},
        }
        y += ROW_HEIGHT
        x = line_height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, line_height = 0, y + line_height, 0
            yield _panel(panel) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height}}
            x, line_height = x + panel.width, max(line_height, panel.height)
        y += line_height


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "stat":
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        if panel.red_from is not None:
            steps.append({"color": "red", "value": panel.red_from})
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind == "timeseries":
        defaults |= {"min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                **_TARGET[panel.kind],
            }
            for number, query in enumerate(panel.queries)
        ],
        **({"transformations": _COLUMNS} if panel.kind == "table" else {}),
    }


_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"]},
    },
    "table": {"showHeader": True},
}
_TARGET: Final[dict[str, dict[str, Any]]] = {
    "timeseries": {"range": True},
    "stat": {"range": True},
    "table": {"instant": True, "format": "table"},
}
# The time of an instant query is always now, and the name of its metric is in the title.
_COLUMNS: Final = [
    {"id": "organize", "options": {"excludeByName": {"Time": True, "__name__": True}}}
]
