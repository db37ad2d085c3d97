"""docker-compose.yml and the image, as far as they can be tested without Docker."""

import asyncio
import re
import shlex
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic_settings import BaseSettings

from services.cli.run import settings_models
from services.sandbox.settings import SandboxSettings
from shared.registry import BROKER, DATABASE, SERVICES
from shared.settings import PREFIX, Settings, load_shared, variable_of
from tests.fakes.promql import promtool

CHECKOUT = Path(__file__).parents[2]
DOCKERFILE = (CHECKOUT / "deploy/docker/Dockerfile").read_text()
HEALTHCHECK = CHECKOUT / "deploy/docker/healthcheck.py"


def as_compose_reads_it(text: str) -> Any:
    """Parse the file without variables: `${NAME:-default}` is its default, from the inside out."""
    while (replaced := re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", text)) != text:
        text = replaced
    return yaml.safe_load(text)


COMPOSE = as_compose_reads_it((CHECKOUT / "docker-compose.yml").read_text())
CONTAINERS: dict[str, dict[str, Any]] = COMPOSE["services"]
BUILT = {name: each for name, each in CONTAINERS.items() if each["image"] == "ringback"}
PULLED = {name: container for name, container in CONTAINERS.items() if name not in BUILT}
ONE_SHOT = {name for name, container in BUILT.items() if container["restart"] == "no"}
RUNNING = {name: BUILT[name] for name in BUILT if name not in ONE_SHOT}
OBSERVABILITY = {"prometheus", "grafana"}
# What a container waits for, by the dependency in the registry.
PROVIDERS = {BROKER: {"rabbitmq"}, DATABASE: {"postgres", "migrate"}}


def instructions(keyword: str) -> list[str]:
    """Return the arguments of every such instruction of the Dockerfile."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(keyword)]


def image_environment() -> dict[str, str]:
    """Return the environment of the last stage of the image."""
    last_stage = DOCKERFILE.replace("\\\n", " ").split("\nFROM ")[-1]
    found = re.findall(r"^ENV (.*)$", last_stage, re.MULTILINE)
    return dict(pair.split("=", 1) for line in found for pair in shlex.split(line))


def environment(name: str) -> dict[str, str]:
    """Return the settings of Ringback in a container."""
    given = image_environment() | CONTAINERS[name].get("environment", {})
    return {key: value for key, value in given.items() if key.startswith(PREFIX)}


def models(name: str) -> list[type[BaseSettings]]:
    return settings_models([name]) if name in RUNNING else []


def variables(*models: type[BaseSettings]) -> set[str]:
    """Return the environment variables of these settings."""
    return {variable_of(model, name) for model in models for name in model.model_fields}


def test_every_service_has_a_container() -> None:
    assert set(RUNNING) == set(SERVICES)
    assert all(RUNNING[name]["command"] == ["run", name] for name in RUNNING)


def test_images_of_others_are_pinned_to_a_release() -> None:
    images = {name: container["image"] for name, container in PULLED.items()}
    assert re.fullmatch(r"rabbitmq:4\.\d+\.\d+-management", images["rabbitmq"])
    assert re.fullmatch(r"postgres:17\.\d+-\w+", images["postgres"])
    assert re.fullmatch(r"prom/prometheus:v3\.\d+\.\d+", images["prometheus"])
    assert re.fullmatch(r"grafana/grafana:12\.\d+\.\d+", images["grafana"])
    assert set(images) == {"rabbitmq", "postgres", *OBSERVABILITY}


def test_the_image_is_based_on_one_python_and_debian_version() -> None:
    stages = {stage.split(" AS ")[0] for stage in instructions("FROM")}
    assert len(stages) == 1
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", stages.pop())


def test_the_image_does_not_run_as_root() -> None:
    user = instructions("USER")[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert not any("user" in container for container in BUILT.values())


@pytest.mark.parametrize("name", [*BUILT, *sorted(OBSERVABILITY)])
def test_containers_run_with_minimal_rights(name: str) -> None:
    container = CONTAINERS[name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in container


@pytest.mark.parametrize("name", BUILT)
def test_settings_exist_and_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(environment(name)) <= variables(Settings, *settings_models())
    for key, value in environment(name).items():
        monkeypatch.setenv(key, value)
    load_shared(models(name))


@pytest.mark.parametrize("name", sorted(CONTAINERS.keys() - ONE_SHOT))
def test_servers_have_a_healthcheck_and_restart(name: str) -> None:
    assert CONTAINERS[name]["healthcheck"]["test"][0] == "CMD"
    assert CONTAINERS[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", RUNNING)
def test_the_healthcheck_uses_the_port_of_the_service(name: str) -> None:
    _, command, port, path = RUNNING[name]["healthcheck"]["test"]
    assert command == "healthcheck"
    if path == "/readyz":
        assert int(port) == SERVICES[name].metrics_port
    else:
        assert (int(port), path) == (SandboxSettings.model_fields["port"].default, "/healthz")
    # Users open this port, too.
    assert port in {published.rpartition(":")[2] for published in RUNNING[name]["ports"]}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_dependency_of_a_container_is_healthy_or_completed(name: str) -> None:
    for other, condition in CONTAINERS[name].get("depends_on", {}).items():
        if other in ONE_SHOT:
            assert condition == {"condition": "service_completed_successfully"}
        else:
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in CONTAINERS[other]


@pytest.mark.parametrize("name", RUNNING)
def test_a_container_waits_for_servers_but_not_for_other_services(name: str) -> None:
    providers = [PROVIDERS.get(each, set()) for each in SERVICES[name].dependencies]
    assert set(CONTAINERS[name].get("depends_on", {})) == set().union(*providers)


def test_finding_d1_one_container_builds_the_image_at_each_up() -> None:
    """Finding D1: nine builds took nine times as long and left untagged images."""
    assert [name for name, container in BUILT.items() if "build" in container] == ["migrate"]
    policies = {name: container["pull_policy"] for name, container in BUILT.items()}
    assert policies.pop("migrate") == "build"
    assert set(policies.values()) == {"never"}


def test_migrate_waits_for_the_database() -> None:
    assert BUILT["migrate"]["command"] == ["migrate"]
    assert set(BUILT["migrate"]["depends_on"]) == {"postgres"}


@pytest.mark.parametrize("name", BUILT)
def test_the_stop_grace_period_exceeds_the_shutdown_timeout(name: str) -> None:
    grace = float(BUILT[name]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["shutdown_timeout"].default


@pytest.mark.parametrize("name", CONTAINERS)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for published in CONTAINERS[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", published)


def test_callbacks_can_reach_receivers_but_not_the_broker_or_the_database() -> None:
    [pool] = COMPOSE["networks"]["hooks"]["ipam"]["config"]
    assert ip_network(pool["subnet"]).is_private
    assert environment("callback")["RINGBACK_CALLBACK_ALLOWED_NETWORKS"] == pool["subnet"]
    connected = {name for name in CONTAINERS if "hooks" in CONTAINERS[name]["networks"]}
    assert {"callback", "sandbox"} <= connected
    assert not connected & set(PULLED)


def test_finding_d1_the_callback_service_shares_one_network_with_receivers() -> None:
    """Finding D1: Docker's DNS answers with the address in one of the shared networks only."""
    own = set(CONTAINERS["callback"]["networks"])
    assert own & set(CONTAINERS["sandbox"]["networks"]) == {"hooks"}
    for service in ("rabbitmq", "mailings", "delivery"):
        assert set(CONTAINERS[service]["networks"]) & set(CONTAINERS["sandbox"]["networks"])


@pytest.mark.parametrize("name", BUILT)
def test_finding_d1_links_for_people_do_not_name_a_container(name: str) -> None:
    """Finding D1: a browser on the host cannot open http://sandbox:8090."""
    links = ("RINGBACK_MAILINGS_UNSUBSCRIBE_URL", "RINGBACK_SANDBOX_URL")
    for link in environment(name).keys() & set(links):
        assert environment(name)[link].startswith(
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8090")
        )


def test_finding_d1_every_variable_is_documented() -> None:
    """Finding D1: docs/docker.md left out several variables of ports."""
    text = (CHECKOUT / "docker-compose.yml").read_text()
    page = (CHECKOUT / "docs/docker.md").read_text()
    assert [name for name in re.findall(r"\$\{(\w+):-", text) if f"`{name}`" not in page] == []


def test_finding_c16_the_demonstration_sees_each_setting_of_a_real_server() -> None:
    """Finding C16: it shows no e-mail and no SMS if one of these is set."""
    text = (CHECKOUT / "docker-compose.yml").read_text()
    for variable in ("RINGBACK_SMTP_URL", "RINGBACK_SMS_URL", "RINGBACK_SOURCES"):
        assert environment("demo")[variable] == ""
        assert text.count(f"${{{variable}:-") == 2  # the service that uses it, and `demo`


def test_data_is_in_volumes() -> None:
    volumes = {name: container["volumes"][-1] for name, container in PULLED.items()}
    assert volumes == {
        "rabbitmq": "rabbitmq:/var/lib/rabbitmq",
        "postgres": "postgres:/var/lib/postgresql/data",
        "prometheus": "prometheus:/prometheus",
        "grafana": "grafana:/var/lib/grafana",
    }
    assert set(COMPOSE["volumes"]) == set(volumes)
    # RabbitMQ stores data under its host name, which is random without this setting.
    assert PULLED["rabbitmq"]["hostname"]


def test_n14_only_the_profile_starts_prometheus_and_grafana() -> None:
    assert {name for name, each in CONTAINERS.items() if "profiles" in each} == OBSERVABILITY
    assert all(CONTAINERS[name]["profiles"] == ["observability"] for name in OBSERVABILITY)


def test_n14_prometheus_scrapes_every_service_and_the_broker() -> None:
    config = yaml.safe_load((CHECKOUT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    found = {
        name: each["port"] for each in jobs["ringback"]["dns_sd_configs"] for name in each["names"]
    }
    # The sandbox is the outside world.
    assert found == {
        name: each.metrics_port for name, each in SERVICES.items() if name != "sandbox"
    }
    assert jobs["ringback"]["relabel_configs"] == [
        {"source_labels": ["__meta_dns_name"], "target_label": "service"}
    ]
    networks = set(CONTAINERS["prometheus"]["networks"])
    for name in [*found, "rabbitmq"]:
        assert networks & set(CONTAINERS[name]["networks"])
    assert jobs["rabbitmq-queues"]["metrics_path"] == "/metrics/detailed"
    for job in ("rabbitmq", "rabbitmq-queues"):
        assert jobs[job]["static_configs"] == [{"targets": ["rabbitmq:15692"]}]
    assert "./deploy/prometheus:/etc/prometheus:ro" in CONTAINERS["prometheus"]["volumes"]


def test_n14_promtool_accepts_the_configuration_of_prometheus() -> None:
    promtool("check", "config", "prometheus.yml", directory=CHECKOUT / "deploy/prometheus")


def test_n14_grafana_starts_with_the_data_source_and_the_dashboards() -> None:
    directory = CHECKOUT / "deploy/grafana"
    mounts = dict(
        volume.removesuffix(":ro").split(":") for volume in CONTAINERS["grafana"]["volumes"]
    )
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    [source] = yaml.safe_load((directory / "provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"] is True
    assert set(CONTAINERS["grafana"]["networks"]) & set(CONTAINERS["prometheus"]["networks"])
    [provider] = yaml.safe_load((directory / "provisioning/dashboards/ringback.yml").read_text())[
        "providers"
    ]
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = CONTAINERS["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (directory / "dashboards" / Path(home).name).exists()
    assert str(Path(home).parent) == provider["options"]["path"]


def test_the_image_contains_no_secret() -> None:
    assert not re.search(r"password|secret|[_-]key|token", DOCKERFILE, re.IGNORECASE)
    assert not instructions("ARG")


def test_docker_gets_exactly_the_sources_of_the_image() -> None:
    copied = [args for args in instructions("COPY") if "--from=" not in args]
    sources = {
        source for args in copied for source in args.split()[:-1] if not source.startswith("--")
    }
    first, *rest = [
        line
        for line in (CHECKOUT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert first == "*"
    assert {line[1:] for line in rest if line.startswith("!")} == sources
    assert all((CHECKOUT / source).exists() for source in sources)


async def healthcheck(port: int) -> tuple[int | None, str]:
    """Run the health check as Docker does; return its exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, HEALTHCHECK, str(port), "/readyz"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    return process.returncode, printed.decode()


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
async def test_healthcheck_exits_with_the_status_and_prints_the_response(
    status: int, expected: int
) -> None:
    async def readyz(_: web.Request) -> web.Response:
        return web.json_response(
            {"parts": {"consumer": "the broker is unavailable"}}, status=status
        )

    app = web.Application()
    app.router.add_get("/readyz", readyz)
    async with TestServer(app, host="127.0.0.1") as server:
        assert server.port
        code, printed = await healthcheck(server.port)
    assert code == expected
    assert "the broker is unavailable" in printed


async def test_healthcheck_fails_if_nothing_listens() -> None:
    async with TestServer(web.Application(), host="127.0.0.1") as server:
        port = server.port
    assert port
    code, printed = await healthcheck(port)
    assert code == 1
    assert "refused" in printed
