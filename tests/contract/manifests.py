"""Read the rendered manifests of Kubernetes.

`WRITE_GOLDEN=1 pytest tests/contract` renders them again, where kustomize 5 is installed.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from shared.registry import SERVICES

CHECKOUT: Final = Path(__file__).parents[2]
FOLDER: Final = CHECKOUT / "deploy/k8s"
DEMO: Final = "demo"
PRODUCTION: Final = "production"
OVERLAYS: Final = (DEMO, PRODUCTION)
# The sandbox simulates the outside world, which exists in production.
DEPLOYED: Final = {DEMO: set(SERVICES), PRODUCTION: set(SERVICES) - {"sandbox"}}
NAME: Final = "app.kubernetes.io/name"

Manifest = dict[str, Any]


def parsed(text: str) -> list[Manifest]:
    """Return the documents of a text."""
    # The parser in C takes a tenth of the time, but PyYAML may lack it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return list(yaml.load_all(text, Loader=loader))


@cache
def rendered(overlay: str) -> list[Manifest]:
    """Return every object of an overlay."""
    return parsed((FOLDER / "rendered" / f"{overlay}.yaml").read_text())


@cache
def objects(overlay: str, kind: str) -> Mapping[str, Manifest]:
    """Return the objects of this kind, by name."""
    return {each["metadata"]["name"]: each for each in rendered(overlay) if each["kind"] == kind}


def workloads(overlay: str) -> dict[str, Manifest]:
    """Return everything that has pods, by kind and name."""
    return {
        f"{kind} {name}": each
        for kind in ("Deployment", "StatefulSet", "Job")
        for name, each in objects(overlay, kind).items()
    }


def services(overlay: str) -> dict[str, Manifest]:
    """Return the Deployments of Ringback's services, by name."""
    return dict(objects(overlay, "Deployment"))


def pod(workload: Manifest) -> Manifest:
    """Return the specification of the pods of a workload."""
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def labels(workload: Manifest) -> dict[str, str]:
    """Return the labels of the pods of a workload."""
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def containers(workload: Manifest) -> list[Manifest]:
    """Return all containers of a workload, those of the start first."""
    return [*pod(workload).get("initContainers", []), *pod(workload)["containers"]]


def main_container(workload: Manifest) -> Manifest:
    """Return the only container that keeps running."""
    [container] = pod(workload)["containers"]
    assert isinstance(container, dict)
    return container


def ports(container: Manifest) -> dict[str, int]:
    """Return the ports of a container, by name."""
    return {port["name"]: port["containerPort"] for port in container.get("ports", [])}


def environment(overlay: str, container: Manifest) -> dict[str, str | None]:
    """Return the variables of a container; those from a Secret have no value here."""
    found: dict[str, str | None] = {}
    for source in container.get("envFrom", []):
        found |= objects(overlay, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    return found | {each["name"]: each.get("value") for each in container.get("env", [])}


def selects(selector: Manifest, found: Mapping[str, str]) -> bool:
    """Return whether a label selector selects these labels."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= found.items() and all(
        found.get(each["key"]) in each["values"] for each in expressions
    )


def secret_references(container: Manifest) -> dict[str, Manifest]:
    """Return the reference to a Secret of each variable that has one."""
    found = {each["name"]: each.get("valueFrom", {}) for each in container.get("env", [])}
    return {name: each["secretKeyRef"] for name, each in found.items() if "secretKeyRef" in each}


def kustomize() -> list[str] | None:
    """Return the command that renders a folder, or None without kustomize 5."""
    if program := shutil.which("kustomize"):
        version = _output([program, "version"])
        return [program, "build"] if version.startswith("v5.") else None
    if program := shutil.which("kubectl"):
        version = _output([program, "version", "--client", "--output", "json"])
        found = json.loads(version or "{}").get("kustomizeVersion", "")
        return [program, "kustomize"] if found.startswith("v5.") else None
    return None


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
