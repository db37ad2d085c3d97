"""M15: who may reach whom on Kubernetes, by the network policies and by the Ingresses."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.http.guard import Guard
from shared.registry import SERVICES
from tests.contract.endpoints import endpoints
from tests.contract.manifests import (
    DEMO,
    DEPLOYED,
    OVERLAYS,
    PRODUCTION,
    Manifest,
    labels,
    main_container,
    objects,
    ports,
    selects,
    services,
    workloads,
)

EACH = [(overlay, name) for overlay in OVERLAYS for name in sorted(DEPLOYED[overlay])]
each_service = pytest.mark.parametrize(("overlay", "name"), EACH)

BROKER_POD = {"app.kubernetes.io/name": "rabbitmq"}
DATABASE_POD = {"cnpg.io/cluster": "postgres"}
# Services that send requests to addresses outside the cluster: webhooks and messages, and the
# console to the OpenID provider.
SENDERS = {"callback", "console", "delivery"}
# Those that use what the sandbox simulates.
SANDBOX_USERS = {"callback", "console", "delivery", "mailings"}


def rules(overlay: str, pod: dict[str, str], direction: str) -> Iterator[Manifest]:
    """Yield the rules of all policies that select a pod."""
    for policy in objects(overlay, "NetworkPolicy").values():
        spec = policy["spec"]
        if selects(spec["podSelector"], pod) and direction in spec["policyTypes"]:
            yield from spec.get(direction.lower(), [])


def permits_port(rule: Manifest, port: int | str) -> bool:
    return "ports" not in rule or any(
        each["port"] == port
        or ("endPort" in each and isinstance(port, int) and each["port"] <= port <= each["endPort"])
        for each in rule["ports"]
    )


def may_reach(overlay: str, pod: dict[str, str], other: dict[str, str], port: int | str) -> bool:
    """Return whether the policies of `pod` let it connect to another pod of the namespace."""
    return any(
        selects(peer["podSelector"], other)
        for rule in rules(overlay, pod, "Egress")
        if permits_port(rule, port)
        for peer in rule.get("to", [])
        if "podSelector" in peer and "namespaceSelector" not in peer
    )


def accepts(overlay: str, pod: dict[str, str], other: dict[str, str], port: int | str) -> bool:
    """Return whether the policies of `pod` let another pod of the namespace connect to it."""
    return any(
        "from" not in rule
        or any(
            selects(peer["podSelector"], other)
            for peer in rule["from"]
            if "podSelector" in peer and "namespaceSelector" not in peer
        )
        for rule in rules(overlay, pod, "Ingress")
        if permits_port(rule, port)
    )


def blocks(overlay: str, pod: dict[str, str]) -> list[Manifest]:
    """Return the blocks of addresses that a pod may reach."""
    return [
        peer["ipBlock"]
        for rule in rules(overlay, pod, "Egress")
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]


def reachable(blocks: list[Manifest], address: IPv4Address | IPv6Address) -> bool:
    return any(
        address in ip_network(block["cidr"])
        and not any(address in ip_network(each) for each in block["except"])
        for block in blocks
    )


# All senders have the same ones, in both overlays.
PUBLIC = blocks(PRODUCTION, labels(services(PRODUCTION)["callback"]))


def excepted() -> list[IPv4Network | IPv6Network]:
    return [ip_network(each) for block in PUBLIC for each in block["except"]]


def edges() -> list[IPv4Address | IPv6Address]:
    """Return the first and last address of each exception, and their neighbours."""
    return [
        type(network[0])(number)
        for network in excepted()
        for edge in (int(network[0]), int(network[-1]))
        for number in (edge - 1, edge, edge + 1)
        if 0 <= number < 2**network.max_prefixlen
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_everything_is_denied_by_default(overlay: str) -> None:
    assert objects(overlay, "NetworkPolicy")["default-deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_no_rule_permits_every_peer_except_to_http_servers_and_the_kubernetes_api(
    overlay: str,
) -> None:
    open_rules = {
        name
        for name, policy in objects(overlay, "NetworkPolicy").items()
        for rule in [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
        if not rule.get("from") and not rule.get("to")
    }
    operators = {"rabbitmq-nodes", "postgres-instances"}
    assert open_rules == {"http"} | (operators if overlay == PRODUCTION else set())


@each_service
def test_m15_services_reach_the_broker_and_it_accepts_them(overlay: str, name: str) -> None:
    pod = labels(services(overlay)[name])
    assert may_reach(overlay, pod, BROKER_POD, 5672)
    assert accepts(overlay, BROKER_POD, pod, 5672)
    assert not may_reach(overlay, pod, BROKER_POD, 15672)


@each_service
def test_m15_only_services_that_store_data_reach_the_database(overlay: str, name: str) -> None:
    pod = labels(services(overlay)[name])
    assert may_reach(overlay, pod, DATABASE_POD, 5432) == bool(SERVICES[name].schema)
    assert accepts(overlay, DATABASE_POD, pod, 5432) == bool(SERVICES[name].schema)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_m15_the_migration_reaches_broker_and_database(overlay: str) -> None:
    pod = labels(workloads(overlay)["Job migrate"])
    for store, port in ((BROKER_POD, 5672), (DATABASE_POD, 5432)):
        assert may_reach(overlay, pod, store, port)
        assert accepts(overlay, store, pod, port)


@pytest.mark.parametrize(
    ("store", "between"),
    [
        # Discovery, the cluster with its quorum queues, replication of streams, commands.
        (BROKER_POD, [4369, 25672, 6000, 6500, 35672]),
        (DATABASE_POD, [5432, 8000]),
    ],
)
def test_m15_nodes_of_broker_and_database_reach_each_other(
    store: dict[str, str], between: list[int]
) -> None:
    for port in between:
        assert may_reach(PRODUCTION, store, store, port)
        assert accepts(PRODUCTION, store, store, port)


@each_service
def test_m15_services_do_not_reach_each_other(overlay: str, name: str) -> None:
    pod = labels(services(overlay)[name])
    for other in DEPLOYED[overlay] - {name}:
        expected = other == "sandbox" and name in SANDBOX_USERS
        container = main_container(services(overlay)[other])
        for port in ports(container):
            reached = may_reach(overlay, pod, labels(services(overlay)[other]), port)
            assert reached == (expected and port != "metrics")


@pytest.mark.parametrize("name", sorted(SANDBOX_USERS))
def test_m15_the_sandbox_accepts_the_services_that_use_it(name: str) -> None:
    sandbox = labels(services(DEMO)["sandbox"])
    for port in ("http", "smtp"):
        assert accepts(DEMO, sandbox, labels(services(DEMO)[name]), port)
    assert not accepts(DEMO, sandbox, labels(services(DEMO)["journal"]), "http")


@each_service
def test_m15_only_senders_reach_addresses_outside_the_cluster(overlay: str, name: str) -> None:
    assert blocks(overlay, labels(services(overlay)[name])) == (PUBLIC if name in SENDERS else [])


def test_m15_senders_reach_exactly_the_addresses_that_the_guard_permits() -> None:
    assert len(excepted()) > 20
    metadata = [ip_address("169.254.169.254"), ip_address("100.100.100.200")]
    for address in [*edges(), *metadata]:
        assert reachable(PUBLIC, address) == Guard().permits(str(address)), address


@settings(max_examples=50)
@given(address=st.ip_addresses(v=4))
def test_m15_the_policy_and_the_guard_agree_on_any_ipv4_address(address: IPv4Address) -> None:
    assert reachable(PUBLIC, address) == Guard().permits(str(address))


@pytest.mark.parametrize(
    "address", ["::1", "fd00::1", "fe80::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"]
)
def test_m15_senders_reach_no_private_ipv6_address(address: str) -> None:
    assert not reachable(PUBLIC, ip_address(address))


@each_service
def test_m15_prometheus_reaches_the_metrics_and_nothing_else_does(overlay: str, name: str) -> None:
    pod = labels(services(overlay)[name])
    peers: list[Any] = [
        rule["from"] for rule in rules(overlay, pod, "Ingress") if permits_port(rule, "metrics")
    ]
    monitoring = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    assert peers == [[{"namespaceSelector": monitoring}]]


@each_service
def test_m15_only_the_gateway_and_the_console_accept_requests_of_everybody(
    overlay: str, name: str
) -> None:
    pod = labels(services(overlay)[name])
    assert accepts(overlay, pod, {}, "http") == (name in {"gateway", "console"})


def ingress_paths(name: str) -> dict[str, tuple[str, str]]:
    """Return service and port for each path of an Ingress."""
    [rule] = objects(PRODUCTION, "Ingress")[name]["spec"]["rules"]
    found = {}
    for path in rule["http"]["paths"]:
        assert path["pathType"] == "Prefix"
        backend = path["backend"]["service"]
        found[path["path"]] = (backend["name"], backend["port"]["name"])
    return found


def is_under(path: str, prefixes: set[str]) -> bool:
    """Return whether an Ingress with these prefixes serves a path: they match whole elements."""
    return any(f"{path}/".startswith(f"{prefix.rstrip('/')}/") for prefix in prefixes)


def test_m15_the_ingress_serves_every_route_of_the_gateway_but_those_of_operators() -> None:
    paths = ingress_paths("gateway")
    assert set(paths.values()) == {("gateway", "http")}
    internal = {"/metrics", "/healthz", "/readyz"}
    for endpoint in endpoints()["Gateway"]:
        assert is_under(endpoint.path, set(paths)) == (endpoint.path not in internal), endpoint


def test_m15_the_console_has_a_host_of_its_own_with_tls() -> None:
    ingresses = objects(PRODUCTION, "Ingress")
    assert ingress_paths("console") == {"/": ("console", "http")}
    hosts = {
        name: [rule["host"] for rule in each["spec"]["rules"]] for name, each in ingresses.items()
    }
    assert set(hosts) == {"gateway", "console"}
    assert hosts["gateway"] != hosts["console"]
    for name, ingress in ingresses.items():
        [tls] = ingress["spec"]["tls"]
        assert tls["hosts"] == hosts[name]
    [config] = objects(PRODUCTION, "ConfigMap").values()
    urls = config["data"]
    assert urls["RINGBACK_CONSOLE_URL"] == f"https://{hosts['console'][0]}"
    assert urls["RINGBACK_MAILINGS_UNSUBSCRIBE_URL"].startswith(f"https://{hosts['gateway'][0]}/")
