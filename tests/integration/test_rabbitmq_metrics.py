"""N14: RabbitMQ has the metrics that alerts and dashboards read, with their labels."""

from collections.abc import Iterator

import aiohttp
import aiormq
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.broker import LOOPBACK, Broker
from deploy.local.daemon import free_port
from shared.amqp.declare import declare
from shared.topology import CALLBACKS, topology
from tests.contract.metric_table import RABBITMQ
from tests.fakes.command import ROOT
from tests.fakes.waiting import until

# RabbitMQ updates the figures of a queue every five seconds.
UPDATE_SECONDS = 60.0
PATHS = ("/metrics", "/metrics/detailed")


@pytest.fixture
def exporter(own_broker: Broker) -> Iterator[str]:
    """Enable the plugin until the test ends, and return the URL of its server."""
    plugins = own_broker.directory / "enabled_plugins"
    before, port = plugins.read_text(), free_port()
    address = f'[{{ip, "{LOOPBACK}"}}, {{port, {port}}}]'
    listener = f"application:set_env(rabbitmq_prometheus, tcp_config, {address})"
    plugins.write_text("[rabbitmq_management, rabbitmq_prometheus].\n")
    own_broker.ctl("eval", f'{listener}, rabbit_plugins:ensure("{plugins}").')
    yield f"http://{LOOPBACK}:{port}"
    plugins.write_text(before)
    own_broker.ctl("eval", f'rabbit_plugins:ensure("{plugins}").')


async def test_n14_the_broker_has_every_metric_that_rules_and_panels_read(
    own_broker: Broker, exporter: str
) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    requests = [
        (job.get("metrics_path", "/metrics"), job.get("params", {}))
        for job in config["scrape_configs"]
        if job["job_name"].startswith("rabbitmq")
    ]
    assert {path for path, _ in requests} == set(PATHS)
    declared = topology().only((CALLBACKS,))
    connection = await aiormq.connect(own_broker.url)
    await declare(connection, declared)
    await connection.close()
    wanted = {queue.name for queue in declared.queues}
    found: dict[str, set[str]] = {}
    queues: set[str] = set()

    async def scrape() -> bool:
        async with aiohttp.ClientSession() as session:
            for path, params in requests:
                query = [(name, value) for name, values in params.items() for value in values]
                async with session.get(exporter + path, params=query) as response:
                    text = await response.text()
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        found[sample.name] = found.get(sample.name, set()) | set(sample.labels)
                        queues.add(sample.labels.get("queue", ""))
        return wanted <= queues

    await until(scrape, UPDATE_SECONDS)
    assert RABBITMQ.keys() - found.keys() == set()
    assert [name for name, labels in RABBITMQ.items() if not labels <= found[name]] == []
