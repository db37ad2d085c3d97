"""M15: the objects of operators on Kubernetes: broker, database, scaling and monitoring.

No schema validates them here, so these tests look at every field that matters.
"""

from services.delivery.settings import DeliverySettings
from services.journal.settings import JournalSettings
from services.scheduler.settings import SchedulerSettings
from services.subscriptions.settings import SubscriptionsSettings
from shared.postgres.pool import POOL_SIZE
from shared.registry import CHANNELS, SERVICES
from shared.topology import CALLBACKS, QueueType
from tests.contract.manifests import (
    CHECKOUT,
    DEPLOYED,
    PRODUCTION,
    Manifest,
    environment,
    labels,
    main_container,
    objects,
    ports,
    selects,
    services,
)

SCALED = {
    "callback": {CALLBACKS},
    "delivery": {queue for channel in CHANNELS.values() for queue in channel.queues.values()},
}


def default(model: type, field: str) -> int:
    value: int = model.model_fields[field].default  # type: ignore[attr-defined]
    return value


def scaled(name: str) -> Manifest:
    spec: Manifest = objects(PRODUCTION, "ScaledObject")[name]["spec"]
    return spec


def test_m15_the_broker_is_a_cluster_of_three_nodes_on_three_machines() -> None:
    [cluster] = objects(PRODUCTION, "RabbitmqCluster").values()
    assert cluster["spec"]["replicas"] == 3
    assert cluster["metadata"]["name"] == "rabbitmq"
    [apart] = cluster["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert selects(apart["labelSelector"], {"app.kubernetes.io/name": "rabbitmq"})
    budget = objects(PRODUCTION, "PodDisruptionBudget")["rabbitmq"]["spec"]
    assert budget["maxUnavailable"] == 1


def test_m15_the_broker_has_the_settings_of_the_operations_page() -> None:
    [cluster] = objects(PRODUCTION, "RabbitmqCluster").values()
    config = cluster["spec"]["rabbitmq"]
    assert "cluster_partition_handling = pause_minority" in config["additionalConfig"]
    assert "membership_reconciliation.enabled = true" in config["additionalConfig"]
    assert "dead_letter_worker_publisher_confirm_timeout, 5000" in config["advancedConfig"]
    compose = (CHECKOUT / "docker-compose.yml").read_text()
    assert f"image: {cluster['spec']['image']}\n" in compose


def test_m15_queues_are_quorum_queues() -> None:
    for name in DEPLOYED[PRODUCTION]:
        given = environment(PRODUCTION, main_container(services(PRODUCTION)[name]))
        assert given.get("RINGBACK_QUEUE_TYPE", QueueType.QUORUM) == QueueType.QUORUM


def test_m15_services_know_every_node_of_the_broker() -> None:
    nodes = [f"rabbitmq-server-{number}.rabbitmq-nodes:5672" for number in range(3)]
    for name in DEPLOYED[PRODUCTION]:
        given = environment(PRODUCTION, main_container(services(PRODUCTION)[name]))
        urls = (given["RINGBACK_AMQP_URL"] or "").split(",")
        assert urls == [f"amqp://$(BROKER_USER):$(BROKER_PASSWORD)@{node}/" for node in nodes]


def test_m15_the_database_has_synchronous_standbys() -> None:
    [cluster] = objects(PRODUCTION, "Cluster").values()
    spec = cluster["spec"]
    assert spec["instances"] >= 3, "with one standby, its failure stops all commits"
    assert spec["postgresql"]["synchronous"]["number"] >= 1
    assert spec["postgresql"]["synchronous"]["dataDurability"] == "required"
    assert spec["affinity"]["podAntiAffinityType"] == "required"
    compose = (CHECKOUT / "docker-compose.yml").read_text()
    assert f"image: postgres:{spec['imageName'].rpartition(':')[2].split('-')[0]}-" in compose
    # The names of the Secret and of the label follow from these.
    assert cluster["metadata"]["name"] == "postgres"
    assert spec["bootstrap"]["initdb"] == {"database": "ringback", "owner": "ringback"}


def test_m15_the_database_accepts_the_connections_of_all_processes() -> None:
    sizes = {
        "journal": default(JournalSettings, "connections") + 1,  # and the lock of its reader
        "scheduler": default(SchedulerSettings, "connections"),
        "subscriptions": default(SubscriptionsSettings, "connections"),
    }
    total = 0
    for name in DEPLOYED[PRODUCTION]:
        if SERVICES[name].schema:
            most = scaled(name)["maxReplicaCount"] if name in SCALED else 2
            # And one more pod during an upgrade.
            total += (most + 1) * sizes.get(name, POOL_SIZE)
    [cluster] = objects(PRODUCTION, "Cluster").values()
    accepted = int(cluster["spec"]["postgresql"]["parameters"]["max_connections"])
    assert total + 20 <= accepted, "20 are for the operator, replication and people"


def test_m15_only_senders_are_scaled_and_by_their_queues() -> None:
    assert set(objects(PRODUCTION, "ScaledObject")) == set(SCALED)
    assert not objects(PRODUCTION, "HorizontalPodAutoscaler")
    for name, queues in SCALED.items():
        spec = scaled(name)
        assert spec["scaleTargetRef"] == {"name": name}
        assert "replicas" not in services(PRODUCTION)[name]["spec"], "KEDA owns it"
        assert {trigger["metadata"]["queueName"] for trigger in spec["triggers"]} == queues


def test_m15_ready_messages_count_and_not_those_in_flight() -> None:
    for name in SCALED:
        for trigger in scaled(name)["triggers"]:
            assert trigger["type"] == "rabbitmq"
            assert trigger["authenticationRef"] == {"name": "broker"}
            # A passive declaration returns ready messages only.
            assert trigger["metadata"]["protocol"] == "amqp"
            assert trigger["metadata"]["mode"] == "QueueLength"


def test_m15_scaling_down_is_slow() -> None:
    for name in SCALED:
        behavior = scaled(name)["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        down = behavior["scaleDown"]
        assert down["stabilizationWindowSeconds"] >= 300
        [policy] = down["policies"]
        assert policy["type"] == "Pods"
        assert policy["value"] == 1
        assert policy["periodSeconds"] >= 60


def test_m15_a_queue_that_the_scheduler_fills_scales_the_senders() -> None:
    """The scheduler stops at a number of messages, which must be worth more than the minimum."""
    spec = scaled("callback")
    [trigger] = spec["triggers"]
    for model in (SchedulerSettings, SubscriptionsSettings):
        backlog = default(model, "max_queued")
        replicas = backlog / float(trigger["metadata"]["value"])
        assert replicas >= spec["maxReplicaCount"]


def test_m15_processes_of_delivery_do_not_exceed_the_connections_of_a_provider() -> None:
    most = scaled("delivery")["maxReplicaCount"] + 1
    assert most <= default(DeliverySettings, "smtp_connections")
    assert most <= default(DeliverySettings, "sms_requests")


def test_m15_keda_signs_in_to_the_broker_as_the_services_do() -> None:
    [authentication] = objects(PRODUCTION, "TriggerAuthentication").values()
    assert authentication["metadata"]["name"] == "broker"
    given = {
        each["parameter"]: (each["name"], each["key"])
        for each in authentication["spec"]["secretTargetRef"]
    }
    for parameter, variable in (("username", "BROKER_USER"), ("password", "BROKER_PASSWORD")):
        [found] = [
            each["valueFrom"]["secretKeyRef"]
            for each in main_container(services(PRODUCTION)["callback"])["env"]
            if each["name"] == variable
        ]
        assert given[parameter] == (found["name"], found["key"])
    for name in SCALED:
        for trigger in scaled(name)["triggers"]:
            assert trigger["metadata"]["host"] == "amqp://rabbitmq.ringback.svc:5672/"


def test_m15_every_service_is_monitored() -> None:
    spec = objects(PRODUCTION, "PodMonitor")["ringback"]["spec"]
    [endpoint] = spec["podMetricsEndpoints"]
    for name in DEPLOYED[PRODUCTION]:
        deployment = services(PRODUCTION)[name]
        assert selects(spec["selector"], labels(deployment))
        assert ports(main_container(deployment))[endpoint["port"]] == SERVICES[name].metrics_port
    assert endpoint["path"] == "/metrics"
    # The alerts need these labels.
    assert endpoint["relabelings"] == [
        {"action": "drop", "sourceLabels": ["__meta_kubernetes_pod_phase"], "regex": "Pending"},
        {"targetLabel": "job", "replacement": "ringback"},
        {
            "targetLabel": "service",
            "sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_name"],
        },
    ]


def test_m15_broker_and_database_are_monitored() -> None:
    broker = objects(PRODUCTION, "ServiceMonitor")["rabbitmq"]["spec"]
    assert selects(broker["selector"], {"app.kubernetes.io/name": "rabbitmq"})
    node, queues = broker["endpoints"]
    assert (node["port"], node["path"]) == ("prometheus", "/metrics")
    assert (queues["port"], queues["path"]) == ("prometheus", "/metrics/detailed")
    assert queues["params"] == {"family": ["queue_coarse_metrics", "queue_consumer_count"]}
    database = objects(PRODUCTION, "PodMonitor")["postgres"]["spec"]
    assert selects(database["selector"], {"cnpg.io/cluster": "postgres"})
