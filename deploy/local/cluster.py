"""A private cluster of RabbitMQ nodes on one Linux machine, for tests.

Each node has an address of its own in 127.0.0.0/8. So it can be isolated from the others, while
clients still reach it, and no other RabbitMQ on the machine notices.
"""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path

from deploy.local.broker import Broker, Identity
from deploy.local.daemon import Daemon, LocalStackError, free_port
from deploy.local.install import Installation, rabbitmq

NODES = 3
# What docs/operations.md recommends. The nodes find each other by the list of their names.
SETTINGS = {
    "cluster_partition_handling": "pause_minority",
    "cluster_formation.peer_discovery_backend": "classic_config",
}


class Cluster:
    """Three nodes, and the epmd that they share. `directory` keeps their data."""

    def __init__(self, directory: Path, installation: Installation | None = None) -> None:
        """Describe a cluster. `start` starts it."""
        installation = installation or rabbitmq()
        network = f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(255)}"
        hosts = {f"node{n}": f"{network}.{n}" for n in range(1, NODES + 1)}
        port, cookie = free_port(), secrets.token_hex(16)
        identities = [Identity(f"{host}@{host}", hosts, port, cookie) for host in hosts]
        members = {
            f"cluster_formation.classic_config.nodes.{n}": identity.name
            for n, identity in enumerate(identities, 1)
        }
        self.nodes = tuple(
            Broker(directory / identity.name, installation, SETTINGS | members, identity)
            for identity in identities
        )
        self._epmd = Daemon(directory / "epmd.lock", directory / "epmd.log")
        self._epmd_command = [*installation.prefix, "epmd", "-port", str(port)]
        self._epmd_command += ["-address", ",".join(hosts.values())]
        self._directory = directory

    @property
    def url(self) -> str:
        """Return the addresses of all nodes, for RINGBACK_AMQP_URL."""
        return ",".join(node.url for node in self.nodes)

    def start(self) -> None:
        """Start the nodes that do not run, and wait until each knows all others."""
        if self._epmd.pid is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._epmd.start(self._epmd_command, env={"PATH": os.environ["PATH"] + ":/usr/bin"})
        self._for_each(Broker.start)
        self.nodes[0].ctl("await_online_nodes", str(NODES))

    def kill(self) -> None:
        """Kill all nodes."""
        self._for_each(Broker.kill)
        self._epmd.stop(signal.SIGTERM, 5)

    def use_vhost(self, name: str) -> None:
        """Replace the virtual host of `url` with a new, empty one."""
        if self.nodes[0].vhost != "/":
            self.delete_vhost(self.nodes[0].vhost)
        self.add_vhost(name)
        for node in self.nodes:
            node.vhost = name

    def add_vhost(self, name: str) -> str:
        """Add a virtual host, and return its addresses on all nodes, for RINGBACK_AMQP_URL."""
        return ",".join(node.add_vhost(name) for node in self.nodes)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host and its queues, and close its connections."""
        self.nodes[0].delete_vhost(name)

    def leader(self, queue: str) -> Broker:
        """Return the node of the leader of a quorum queue."""
        running = next(node for node in self.nodes if node.pid)
        name = f'rabbit_misc:r(<<"{running.vhost}">>, queue, <<"{queue}">>)'
        leader = f"{{ok, Q}} = rabbit_amqqueue:lookup({name}), element(2, amqqueue:get_pid(Q))."
        found = running.ctl("eval", leader)
        leaders = {node.identity.name: node for node in self.nodes}
        return leaders[found.strip().strip("'")]

    @contextmanager
    def isolated(self, node: Broker) -> Iterator[None]:
        """Drop all packets between this node and the others. Needs root and iptables.

        Raises:
            LocalStackError: it is not possible here.
        """
        if os.geteuid() != 0 or shutil.which("iptables") is None:
            raise LocalStackError("Cannot isolate a node: this needs root and iptables.")
        pairs = [
            (one.identity.address, other.identity.address)
            for one, other in permutations(self.nodes, 2)
            if node in (one, other)
        ]
        dropped: list[tuple[str, str]] = []
        try:
            for pair in pairs:
                _iptables("--append", *pair)
                dropped.append(pair)
            yield
        finally:
            for pair in dropped:
                _iptables("--delete", *pair)

    def _for_each(self, action: Callable[[Broker], None]) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(action, self.nodes))


def _iptables(action: str, source: str, target: str) -> None:
    command = ["iptables", "--wait", action, "OUTPUT", "--source", source]
    subprocess.run([*command, "--destination", target, "--jump", "DROP"], check=True)
