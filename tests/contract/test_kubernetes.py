"""M15: the services on Kubernetes. The rendered manifests follow the registry and the settings."""

import os
import re
import signal
import subprocess
from base64 import b64decode
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry
from pydantic_settings import BaseSettings

from services.__main__ import main
from services.cli.run import settings_models
from services.console.settings import ConsoleSettings
from services.gateway.settings import GatewaySettings
from services.sandbox.settings import SandboxSettings
from shared.process.metrics import add_routes
from shared.registry import SERVICES
from shared.security.settings import SecuritySettings
from shared.settings import PREFIX, Settings, load_shared, variable_of
from tests.contract.manifests import (
    CHECKOUT,
    DEMO,
    DEPLOYED,
    NAME,
    OVERLAYS,
    PRODUCTION,
    Manifest,
    containers,
    environment,
    labels,
    main_container,
    objects,
    pod,
    ports,
    secret_references,
    selects,
    services,
    workloads,
)
from tests.contract.test_compose import CONTAINERS

EACH = [(overlay, name) for overlay in OVERLAYS for name in sorted(DEPLOYED[overlay])]
WORKLOADS = [(overlay, name) for overlay in OVERLAYS for name in workloads(overlay)]
# The ports that a service has beside that of its metrics.
OTHER_PORTS: dict[str, dict[str, int]] = {
    "gateway": {"http": GatewaySettings.model_fields["http_port"].default},
    "console": {"http": ConsoleSettings.model_fields["port"].default},
    "sandbox": {
        "http": SandboxSettings.model_fields["port"].default,
        "smtp": SandboxSettings.model_fields["smtp_port"].default,
    },
}
CHECK_SCHEMA = [
    "sh",
    "-c",
    "trap 'exit 143' TERM; until ringback migrate --check & wait $!; do sleep 5 & wait $!; done",
]

each_service = pytest.mark.parametrize(("overlay", "name"), EACH)
each_workload = pytest.mark.parametrize(("overlay", "workload"), WORKLOADS)


def of_ringback(overlay: str) -> Iterable[Manifest]:
    """Return the containers with the image of Ringback."""
    for workload in workloads(overlay).values():
        for container in containers(workload):
            if container["image"].rpartition(":")[0].endswith("ringback"):
                yield container


def routes() -> set[str]:
    """Return the routes of the port of the metrics."""
    app = web.Application()
    add_routes(app, ready=lambda: (True, ""), registry=CollectorRegistry())
    return {route.resource.canonical for route in app.router.routes() if route.resource}


def test_m15_every_service_of_the_registry_is_deployed() -> None:
    for overlay in OVERLAYS:
        assert set(services(overlay)) == DEPLOYED[overlay]


@each_service
def test_m15_a_deployment_runs_its_service_on_its_ports(overlay: str, name: str) -> None:
    deployment = services(overlay)[name]
    container = main_container(deployment)
    assert container["args"] == ["run", name]
    assert "command" not in container
    assert ports(container) == {
        "metrics": SERVICES[name].metrics_port,
        **OTHER_PORTS.get(name, {}),
    }
    assert labels(deployment)[NAME] == name
    assert deployment["spec"]["selector"] == {"matchLabels": {NAME: name}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_every_command_of_a_container_exists(overlay: str) -> None:
    for container in of_ringback(overlay):
        if "command" in container:
            assert container["command"] == CHECK_SCHEMA
            words = ["migrate", "--check"]
        else:
            words = container["args"]
        command: click.Command | None = main
        while isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words[0])
            words = words[1:]
        assert command is not None
        command.make_context(None, list(words))


@pytest.mark.parametrize("work", ["sleep 60", "exit 1"], ids=["checking", "waiting"])
def test_m15_a_pod_that_waits_for_the_migration_stops_at_once(tmp_path: Path, work: str) -> None:
    """As PID 1, a shell without a trap would ignore the signal until it is killed."""
    started = tmp_path / "started"
    os.mkfifo(started)
    program = tmp_path / "ringback"
    program.write_text(f"#!/bin/sh\necho >{started}\n{work}\n")
    program.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(CHECK_SCHEMA, env=environ, start_new_session=True) as shell:
        try:
            started.read_text()  # it runs
            shell.terminate()
            assert shell.wait(30) == 143  # of the trap; without one, the signal is the cause
        finally:
            with suppress(ProcessLookupError):  # nothing is left
                os.killpg(shell.pid, signal.SIGKILL)


@pytest.mark.parametrize("result", [0, 1])
def test_m15_a_pod_waits_only_until_the_migration_is_applied(tmp_path: Path, result: int) -> None:
    calls = tmp_path / "calls"
    for name, script in {
        "ringback": f'echo "$@" >>{calls}; [ $(wc -l <{calls}) -gt {result} ]',
        "sleep": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(CHECK_SCHEMA, env=environ, check=True, timeout=30)
    assert calls.read_text() == "migrate --check\n" * (result + 1)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_the_image_has_the_version_of_this_checkout(overlay: str) -> None:
    version = re.search(r'(?m)^version = "(.*)"', (CHECKOUT / "pyproject.toml").read_text())
    assert version
    for container in of_ringback(overlay):
        assert container["image"].rpartition(":")[2] == version[1]


@each_service
def test_m15_probes_use_the_routes_and_the_port_of_the_metrics(overlay: str, name: str) -> None:
    container = main_container(services(overlay)[name])
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        request = container[probe]["httpGet"]
        assert request["port"] == "metrics"
        assert request["path"] in routes()
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


@each_service
def test_m15_an_outage_of_broker_or_database_restarts_nothing(overlay: str, name: str) -> None:
    container = main_container(services(overlay)[name])
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == "/healthz"


async def test_m15_healthz_does_not_depend_on_readiness() -> None:
    app = web.Application()
    add_routes(app, ready=lambda: (False, "no broker"), registry=CollectorRegistry())
    async with TestClient(TestServer(app, host="127.0.0.1")) as client:
        assert (await client.get("/healthz")).status == 200
        assert (await client.get("/readyz")).status == 503


@each_workload
def test_m15_pods_are_restricted(overlay: str, workload: str) -> None:
    spec = pod(workloads(overlay)[workload])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}
    assert all("hostPath" not in volume for volume in spec.get("volumes", []))
    for container in containers(workloads(overlay)[workload]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_m15_the_namespace_of_the_demo_refuses_pods_that_are_not_restricted() -> None:
    [namespace] = objects(DEMO, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", ["rabbitmq", "postgres"])
def test_m15_the_demo_keeps_the_data_of_broker_and_database(name: str) -> None:
    store = objects(DEMO, "StatefulSet")[name]
    container = main_container(store)
    compose = (CHECKOUT / "docker-compose.yml").read_text()
    assert f"image: {container['image']}\n" in compose
    [claim] = store["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] in {mount["name"] for mount in container["volumeMounts"]}
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)


@each_workload
def test_m15_containers_have_requests_and_a_limit_of_memory(overlay: str, workload: str) -> None:
    for container in containers(workloads(overlay)[workload]):
        resources = container["resources"]
        assert set(resources["requests"]) == {"cpu", "memory"}
        assert set(resources["limits"]) == {"memory"}


@each_service
def test_m15_a_service_can_write_to_tmp_only(overlay: str, name: str) -> None:
    deployment = services(overlay)[name]
    assert main_container(deployment)["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - in the container
    [volume] = pod(deployment)["volumes"]
    assert volume["name"] == "tmp"
    assert "sizeLimit" in volume["emptyDir"]


@each_service
def test_m15_replicas_are_spread_over_nodes_and_zones(overlay: str, name: str) -> None:
    deployment = services(overlay)[name]
    found = {each["topologyKey"]: each for each in pod(deployment)["topologySpreadConstraints"]}
    assert set(found) == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    node = found["kubernetes.io/hostname"]
    assert node["whenUnsatisfiable"] == "DoNotSchedule"
    assert node["nodeTaintsPolicy"] == "Honor"  # otherwise a lost node blocks its replacement
    for constraint in found.values():
        assert constraint["maxSkew"] == 1
        assert selects(constraint["labelSelector"], labels(deployment))
        # Only pods of the same service and version count.
        assert constraint["matchLabelKeys"] == [NAME, "pod-template-hash"]


@each_service
def test_m15_the_grace_period_is_longer_than_the_drain(overlay: str, name: str) -> None:
    deployment = services(overlay)[name]
    container = main_container(deployment)
    drain = float(environment(overlay, container)["RINGBACK_SHUTDOWN_TIMEOUT"] or 0)
    assert drain == Settings.model_fields["shutdown_timeout"].default
    before = 0.0
    if "lifecycle" in container:
        command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        before = float(seconds)
    # Clients find these through a Service, which learns of the end of a pod a moment later.
    assert (before > 0) == (name in {"gateway", "console"})
    assert pod(deployment)["terminationGracePeriodSeconds"] >= before + drain + 5


@pytest.mark.parametrize("name", sorted(DEPLOYED[PRODUCTION]))
def test_m15_an_upgrade_in_production_keeps_the_capacity(name: str) -> None:
    deployment = services(PRODUCTION)[name]
    scaled = objects(PRODUCTION, "ScaledObject").get(name)
    replicas = scaled["spec"]["minReplicaCount"] if scaled else deployment["spec"]["replicas"]
    assert replicas >= 2
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_every_service_has_a_disruption_budget(overlay: str) -> None:
    budgets = objects(overlay, "PodDisruptionBudget")
    scaling = {name for name in DEPLOYED[overlay] if SERVICES[name].scales}
    assert scaling <= set(budgets)
    for name in scaling:
        spec = budgets[name]["spec"]
        assert spec["maxUnavailable"] == 1
        assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        matching = {
            other
            for other, workload in workloads(overlay).items()
            if selects(spec["selector"], labels(workload))
        }
        assert matching == {f"Deployment {name}"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_a_job_declares_the_queues_and_migrates(overlay: str) -> None:
    [job] = objects(overlay, "Job").values()
    assert [container["args"] for container in containers(job)] == [
        ["topology", "declare"],
        ["migrate"],
    ]
    assert pod(job)["restartPolicy"] == "OnFailure"
    # A Job cannot be changed, so the next version needs a new one.
    assert job["spec"]["ttlSecondsAfterFinished"] <= 600


@each_service
def test_m15_services_that_store_data_wait_for_the_migration(overlay: str, name: str) -> None:
    deployment = services(overlay)[name]
    waiting = [each["command"] for each in pod(deployment).get("initContainers", [])]
    assert waiting == ([CHECK_SCHEMA] if SERVICES[name].schema else [])
    for container in containers(deployment):
        given = "RINGBACK_DATABASE_URL" in environment(overlay, container)
        assert given == bool(SERVICES[name].schema)
    assert ("database" in labels(deployment)) == bool(SERVICES[name].schema)


def variables(models: Iterable[type[BaseSettings]]) -> dict[str, Any]:
    """Return the field of each environment variable of these settings."""
    return {
        variable_of(model, name): field
        for model in models
        for name, field in model.model_fields.items()
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_every_setting_exists(overlay: str) -> None:
    example = set(
        re.findall(r"(?m)^# (RINGBACK_\w+)", (CHECKOUT / "config.example.toml").read_text())
    )
    for container in of_ringback(overlay):
        given = {key for key in environment(overlay, container) if key.startswith(PREFIX)}
        assert given <= example


@each_workload
def test_m15_the_settings_of_every_container_are_valid(
    overlay: str, workload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, _, name = workload.partition(" ")
    for container in containers(workloads(overlay)[workload]):
        given = environment(overlay, container)
        with monkeypatch.context() as patch:
            for key, value in given.items():
                if key.startswith(PREFIX) and value is not None:
                    patch.setenv(key, re.sub(r"\$\(\w+\)", "a", value))
            # `migrate` and `topology` check the settings of all services.
            running = kind == "Deployment" and container["name"] == "ringback"
            models = settings_models([name]) if running else settings_models()
            load_shared(models)


@each_workload
def test_m15_a_reference_to_a_variable_follows_its_definition(overlay: str, workload: str) -> None:
    for container in containers(workloads(overlay)[workload]):
        defined: set[str] = set()
        for each in container.get("env", []):
            assert set(re.findall(r"\$\((\w+)\)", each.get("value", ""))) <= defined
            defined.add(each["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_secrets_come_from_secrets(overlay: str) -> None:
    """No password, key or URL with a password is in a ConfigMap or in a Deployment."""
    fields = variables([Settings, *settings_models()])
    for container in of_ringback(overlay):
        for key, value in environment(overlay, container).items():
            if key in fields and "Secret" in str(fields[key].annotation):
                assert value is None, key
            if key == "RINGBACK_DATABASE_URL":
                assert value is None
    for settings in objects(overlay, "ConfigMap").values():
        assert not any(re.search(r"://[^/]*:[^/]*@", each) for each in settings["data"].values())


def test_m15_production_contains_no_secret() -> None:
    assert not objects(PRODUCTION, "Secret")


@each_service
def test_m15_replicas_share_the_keys_that_their_service_reads(overlay: str, name: str) -> None:
    source = (CHECKOUT / "services" / name / "app.py").read_text()
    needed = set()
    if "secrets_key" in source:
        needed.add("RINGBACK_SECRETS_KEY")
    if "TicketVerifier" in source:
        needed |= {"RINGBACK_TICKET_KEY", "RINGBACK_TICKET_SIGNING_KEY"}
    given = secret_references(main_container(services(overlay)[name]))
    keys = {variable: each["key"] for variable, each in given.items() if is_key(each)}
    assert set(keys) == needed
    for variable, key in keys.items():
        # The gateway only publishes the public part of the key that the scheduler signs with.
        public = (name, variable) == ("gateway", "RINGBACK_TICKET_SIGNING_KEY")
        assert key == ("RINGBACK_TICKET_PUBLIC_KEYS" if public else variable)


def is_key(reference: Manifest) -> bool:
    """Return whether a reference is to the Secret `keys`, whose name may end in a hash."""
    return bool(re.fullmatch(r"keys(-\w+)?", reference["name"]))


@each_service
def test_m15_a_service_gets_every_other_secret_that_only_it_reads(overlay: str, name: str) -> None:
    secret = {
        variable
        for variable, field in variables(settings_models([name])).items()
        if "Secret" in str(field.annotation)
    } - set(variables([SecuritySettings]))
    given = secret_references(main_container(services(overlay)[name]))
    own = {variable: each for variable, each in given.items() if each["name"].startswith(name)}
    assert set(own) <= set(variables(settings_models([name])))
    # Those of the sandbox are public, and have a default.
    assert secret <= set(own) or name == "sandbox"
    for variable, each in own.items():
        assert each["key"] == variable
        assert each["optional"] is True


def test_m15_the_docs_list_every_secret_of_production() -> None:
    page = (CHECKOUT / "docs/kubernetes.md").read_text()
    for container in of_ringback(PRODUCTION):
        for each in secret_references(container).values():
            assert f"`{each['name']}`" in page
            assert f"`{each['key']}`" in page


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_the_ports_of_a_service_lead_to_its_pods(overlay: str) -> None:
    for name, service in objects(overlay, "Service").items():
        [target] = [
            workload
            for workload in workloads(overlay).values()
            if service["spec"]["selector"].items() <= labels(workload).items()
        ]
        assert target["metadata"]["name"] == name
        for port in service["spec"]["ports"]:
            assert ports(main_container(target))[port["targetPort"]] == port["port"]


def test_m15_the_demo_has_the_settings_of_docker_compose() -> None:
    """Both start the same demonstration, so a setting of one of them belongs into the other."""
    # The addresses differ, and text logs are for the terminal of `docker compose up`.
    other = {
        *("RINGBACK_AMQP_URL", "RINGBACK_DATABASE_URL", "RINGBACK_CALLBACK_ALLOWED_NETWORKS"),
        *("RINGBACK_LOG_FORMAT", "RINGBACK_LOG_LEVEL"),
    }
    secrets = {
        key: b64decode(value).decode()
        for secret in objects(DEMO, "Secret").values()
        for key, value in secret["data"].items()
    }
    for name in sorted(SERVICES):
        container = main_container(services(DEMO)[name])
        given = {
            key: secrets.get(key) if value is None else value
            for key, value in environment(DEMO, container).items()
        }
        expected = CONTAINERS[name]["environment"]
        for key, value in expected.items():
            if key in other or (key in secrets and key not in given):
                continue  # a secret goes only to services that read it
            default = variables([Settings, *settings_models()])[key].default
            assert given.get(key, default) == value, key
