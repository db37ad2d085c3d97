"""H4: the metrics by name, and a label that a flood of targets can't blow up."""

from prometheus_client import REGISTRY, generate_latest

from services.callback.metrics import Labels


def observed() -> dict[str, float]:
    """How many requests were observed, by the label `target_url`."""
    return {
        sample.labels["target_url"]: sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "callback_duration_seconds_count"
    }


# H4
def test_h4_past_the_bound_every_further_target_is_other() -> None:
    labels = Labels(200)
    before = observed()
    names = [f"https://bounded-{n}.example:443" for n in range(205)]
    for _ in range(2):
        for name in names:
            labels.duration(name).observe(0.1)
    now = observed()
    assert now == before | dict.fromkeys(names[:200], 2.0) | {"other": before["other"] + 10}
    assert labels.of(names[0]) == names[0]
    assert labels.of(names[199]) == names[199]
    assert labels.of(names[200]) == "other"


def test_h4_without_any_target_all_are_other() -> None:
    assert Labels(0).of("https://none.example:443") == "other"


# H4
def test_h4_metrics_have_the_names_that_dashboards_use() -> None:
    Labels(1)
    page = generate_latest(REGISTRY).decode()
    for sample in (
        'callback_total{status="success"}',
        'callback_total{status="error"}',
        'callback_duration_seconds_bucket{le="0.005",target_url="other"}',
        "hmac_errors_total",
    ):
        assert f"\n{sample} " in page
