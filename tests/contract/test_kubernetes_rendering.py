"""M15: the rendered manifests are up to date, and valid for Kubernetes."""

import os
import subprocess
from collections.abc import Iterator
from functools import cache
from textwrap import indent
from typing import Any

import pytest

from tests.contract.manifests import (
    CHECKOUT,
    FOLDER,
    OVERLAYS,
    PRODUCTION,
    Manifest,
    kustomize,
    objects,
    parsed,
    rendered,
)

UPDATE = (
    "run: WRITE_GOLDEN=1 .venv/bin/python -m pytest tests/contract/test_kubernetes_rendering.py"
)

# The oldest version with every field, and the newest that the schemas cover.
VERSIONS = ("1.27", "1.37")
# Kinds of operators. They have no schema here, so only the policy tests look at them.
CUSTOM = {
    "rabbitmq.com/v1beta1/RabbitmqCluster",
    "postgresql.cnpg.io/v1/Cluster",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "monitoring.coreos.com/v1/ServiceMonitor",
    "keda.sh/v1alpha1/ScaledObject",
    "keda.sh/v1alpha1/TriggerAuthentication",
}
# The beginning of the copy of deploy/prometheus/rules.yml.
RULES_HEAD = """\
# A copy of deploy/prometheus/rules.yml, written by
# `WRITE_GOLDEN=1 pytest tests/contract/test_kubernetes_rendering.py`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: ringback
spec:
"""


def kind(manifest: Manifest) -> str:
    return f"{manifest['apiVersion']}/{manifest['kind']}"


def by_identity(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    found = {(kind(each), each["metadata"]["name"]): each for each in manifests}
    assert len(found) == len(manifests)
    return found


@pytest.fixture(scope="module")
def schemas() -> Iterator[Any]:
    """Return the library, which reads each schema once: by itself it does so for each object."""
    library = pytest.importorskip("kubernetes_validate", reason="run `make` to install it")
    with pytest.MonkeyPatch.context() as patch:
        reading = library.utils.schema_contents
        patch.setattr(library.utils, "schema_contents", cache(reading))
        yield library


def test_m15_the_alerts_are_those_of_prometheus() -> None:
    """Kustomize reads no file outside its folder, so the rules are copied."""
    rules = (CHECKOUT / "deploy/prometheus/rules.yml").read_text()
    text = RULES_HEAD + indent(rules, "  ")
    file = FOLDER / "components/monitoring/rules.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(text)

    assert file.read_text() == text, UPDATE


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_the_rendered_manifests_are_up_to_date(overlay: str) -> None:
    command = kustomize()
    if command is None:
        pytest.skip("kustomize 5 is not installed")
    text = subprocess.run(
        [*command, FOLDER / "overlays" / overlay], capture_output=True, text=True, check=True
    ).stdout
    file = FOLDER / "rendered" / f"{overlay}.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(text)
        rendered.cache_clear()
        objects.cache_clear()

    # As objects: versions of kustomize differ in order and style.
    assert by_identity(parsed(text)) == by_identity(parsed(file.read_text())), UPDATE


def test_m15_the_rendered_alerts_are_those_of_prometheus() -> None:
    """Run after the rendering, so that one run with WRITE_GOLDEN is enough."""
    rules = (CHECKOUT / "deploy/prometheus/rules.yml").read_text()
    [rendered_rules] = objects(PRODUCTION, "PrometheusRule").values()
    assert rendered_rules["spec"] == parsed(rules)[0], UPDATE


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_every_object_of_kubernetes_is_valid(schemas: Any, overlay: str, version: str) -> None:
    for manifest in rendered(overlay):
        if kind(manifest) not in CUSTOM:
            schemas.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_m15_the_schemas_reject_a_field_that_does_not_exist(schemas: Any, version: str) -> None:
    probe = {"httpGet": {"port": 1, "route": "/healthz"}}
    container = {"name": "a", "image": "b", "livenessProbe": probe}
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a"},
        "spec": {"containers": [container]},
    }
    with pytest.raises(schemas.ValidationError, match="route"):
        schemas.validate(manifest, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_everything_is_in_one_namespace(overlay: str) -> None:
    for manifest in rendered(overlay):
        if manifest["kind"] == "Namespace":
            assert manifest["metadata"]["name"] == "ringback"
        else:
            assert manifest["metadata"]["namespace"] == "ringback"


def test_m15_the_demo_needs_no_operator() -> None:
    assert not {kind(each) for each in rendered("demo")} & CUSTOM
