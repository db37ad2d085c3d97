"""H4: names of the metrics, and a limit for the values of the label `target_url`."""

from prometheus_client import REGISTRY, generate_latest

from services.callback.metrics import TargetLabels


def observed() -> dict[str, float]:
    """Return the number of observed requests by `target_url`."""
    return {
        sample.labels["target_url"]: sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "callback_duration_seconds_count"
    }


# H4
def test_h4_targets_above_the_limit_are_labelled_other() -> None:
    labels = TargetLabels(200)
    before = observed()
    names = [f"https://bounded-{n}.example:443" for n in range(205)]
    for _ in range(2):
        for name in names:
            labels.duration(name).observe(0.1)
    now = observed()
    assert now == before | dict.fromkeys(names[:200], 2.0) | {"other": before["other"] + 10}
    assert labels.label(names[0]) == names[0]
    assert labels.label(names[199]) == names[199]
    assert labels.label(names[200]) == "other"


def test_h4_with_a_limit_of_zero_all_targets_are_labelled_other() -> None:
    assert TargetLabels(0).label("https://none.example:443") == "other"


# H4
def test_h4_the_metrics_have_their_fixed_names() -> None:
    TargetLabels(1)
    page = generate_latest(REGISTRY).decode()
    for sample in (
        'callback_total{status="success"}',
        'callback_total{status="error"}',
        'callback_duration_seconds_bucket{le="0.005",target_url="other"}',
        "hmac_errors_total",
    ):
        assert f"\n{sample} " in page
