"""N14: RabbitMQ has the metrics that alerts and dashboards read, with the meaning they rely on."""

from collections.abc import Iterator

import aiohttp
import aiormq
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from deploy.local.broker import LOOPBACK, Broker
from deploy.local.daemon import free_port
from shared.amqp.declare import declare
from shared.topology import CALLBACKS, tier_queue, tiers_of, topology
from tests.contract.metric_table import RABBITMQ
from tests.fakes.command import ROOT
from tests.fakes.waiting import until

# RabbitMQ updates the figures of a queue every five seconds.
UPDATE_SECONDS = 60.0


@pytest.fixture
def exporter(own_broker: Broker) -> Iterator[str]:
    """Enable the plugin until the test ends, and return the URL of its server."""
    plugins = own_broker.directory / "enabled_plugins"
    before, port = plugins.read_text(), free_port()
    address = f'[{{ip, "{LOOPBACK}"}}, {{port, {port}}}]'
    # Persistent: the plugin's own default must not replace it.
    options = f"tcp_config, {address}, [{{persistent, true}}]"
    listener = f"application:set_env(rabbitmq_prometheus, {options})"
    plugins.write_text("[rabbitmq_management, rabbitmq_prometheus].\n")
    own_broker.ctl("eval", f'{listener}, rabbit_plugins:ensure("{plugins}").')
    yield f"http://{LOOPBACK}:{port}"
    plugins.write_text(before)
    own_broker.ctl("eval", f'rabbit_plugins:ensure("{plugins}").')


async def samples(exporter: str) -> list[Sample]:
    """Return what Prometheus gets from the broker with `docker compose`."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    found: list[Sample] = []
    async with aiohttp.ClientSession() as session:
        for job in config["scrape_configs"]:
            if job["job_name"] == "ringback":
                continue
            params = job.get("params", {})
            query = [(name, value) for name, values in params.items() for value in values]
            url = exporter + job.get("metrics_path", "/metrics")
            async with session.get(url, params=query) as response:
                for family in text_string_to_metric_families(await response.text()):
                    found += family.samples
    return found


async def test_n14_the_broker_has_every_metric_that_rules_and_panels_read(
    own_broker: Broker, exporter: str
) -> None:
    tier = tier_queue(CALLBACKS, tiers_of(CALLBACKS)[0])
    connection = await aiormq.connect(own_broker.url)
    await declare(connection, topology().only((CALLBACKS,)))
    channel = await connection.channel()
    await channel.queue_delete(CALLBACKS)  # so that messages can't leave the tier
    for _ in range(3):
        await channel.basic_publish(b"{}", routing_key=tier)
    await connection.close()

    async def stuck() -> bool:
        depths = {
            sample.name: sample.value
            for sample in await samples(exporter)
            if sample.labels.get("queue") == tier
        }
        return (
            depths.get("rabbitmq_detailed_queue_messages") == 3
            and depths["rabbitmq_detailed_queue_messages_ready"] == 0
        )

    await until(stuck, UPDATE_SECONDS)

    found: dict[str, set[str]] = {}
    for sample in await samples(exporter):
        found[sample.name] = found.get(sample.name, set()) | set(sample.labels)
    assert RABBITMQ.keys() - found.keys() == set()
    assert [name for name, labels in RABBITMQ.items() if not labels <= found[name]] == []
