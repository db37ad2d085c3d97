"""A private RabbitMQ node, on loopback only: its ports, cookie and data are in one directory.

It shares nothing with another RabbitMQ on the machine, not even epmd. Needs RabbitMQ 3.10 or newer.
"""

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from deploy.local.daemon import (
    CLEAN_ADVICE,
    Daemon,
    LocalStackError,
    failure_lines,
    free_port,
    port_is_free,
    wait_until,
)
from deploy.local.install import Installation, rabbitmq

START_TIMEOUT = 120  # seconds; measured: 6 on two idle cores, most of them for Erlang modules
# Seconds; measured: 6. In 3.10 the management plugin idles for 5 of them.
STOP_TIMEOUT = 30
# RabbitMQ 3.10.8 stores the log location of a quorum queue up to a second after its declaration.
# If it is killed before, the queue comes back empty and without a leader, until an election is
# triggered (RabbitMQ issue 10070). See `Broker.sync`. A queue whose process did not start stays
# unusable; it can be deleted.
ELECT = """
[catch ra:trigger_election(Member) || Queue <- rabbit_amqqueue:list(),
    amqqueue:get_type(Queue) =:= rabbit_quorum_queue,
    {Name, _} = Member <- [amqqueue:get_pid(Queue)],
    ra_leaderboard:lookup_leader(Name) =:= undefined].
"""
LOOPBACK = "127.0.0.1"
# Milliseconds after which a dead-lettered message without a confirm is published again. With the
# default of 3 minutes, retries arrived 161 s after their missing queue was declared (3.10.8).
DEAD_LETTERING = "-rabbit dead_letter_worker_publisher_confirm_timeout 5000"
# Makes Erlang resolve `localhost` even without /etc/hosts, as in a bare chroot.
NAMES = {"localhost": LOOPBACK}


@dataclass(frozen=True)
class Identity:
    """The name and the address of a node. Those of a cluster share an epmd and a cookie."""

    name: str = "ringback@localhost"  # an epmd knows only the part before the @
    hosts: Mapping[str, str] = field(default_factory=lambda: NAMES)
    epmd_port: int | None = None  # of an epmd that runs already; by default the node starts its own
    cookie: str | None = None

    @property
    def address(self) -> str:
        """Return the address of all its ports."""
        return self.hosts[self.name.partition("@")[2]]


ALONE = Identity()


def _tuple(address: str) -> str:
    return "{" + address.replace(".", ",") + "}"


class Broker:
    """A RabbitMQ node with the management plugin. `directory` keeps its ports and data."""

    def __init__(
        self,
        directory: Path,
        installation: Installation | None = None,
        settings: Mapping[str, str] | None = None,
        identity: Identity = ALONE,
    ) -> None:
        """Describe a node. `start` starts it.

        Args:
            directory: the directory of all its files; created if missing.
            installation: the RabbitMQ to run. By default that of the machine, installed if missing.
            settings: more lines for rabbitmq.conf, such as `{"consumer_timeout": "60000"}`.
            identity: the name and the address of a node in a cluster.
        """
        self.identity = identity
        self.directory = directory.absolute()
        self._given = installation
        self.settings = dict(settings or {})
        self.vhost = "/"
        self._unclean = self.directory / "unclean"  # exists until a clean stop
        self._node = Daemon(self.directory / "node.lock", self.directory / "node.log")
        self._epmd = Daemon(self.directory / "epmd.lock", self.directory / "epmd.log")

    @cached_property
    def installation(self) -> Installation:
        """Return the RabbitMQ that this node runs."""
        return self._given or rabbitmq()

    @property
    def url(self) -> str:
        """Return the AMQP URL of the virtual host `vhost`."""
        return self._url(self.vhost)

    def _url(self, vhost: str) -> str:
        path = "" if vhost == "/" else quote(vhost, safe="")
        port = self._ports()["amqp"]
        return f"amqp://guest:guest@{self.identity.address}:{port}/{path}"

    @property
    def management_url(self) -> str:
        """Return the URL of the management page and API. User and password are `guest`."""
        return f"http://{self.identity.address}:{self._ports()['management']}/"

    @property
    def pid(self) -> int | None:
        """Return the PID of the node, or None if it does not run."""
        return self._node.pid

    @property
    def log(self) -> Path:
        """Return the log of the node since its last start."""
        return self._node.log

    def start(self) -> None:
        """Start the node, unless it runs, and wait until AMQP and HTTP respond.

        Raises:
            LocalStackError: it ended or did not respond in time. The text contains its log.
        """
        if self._node.stopping:
            self.stop()
        if self.pid is None:
            self._prepare()
            self._stop_epmd()
            env = self._environment()
            if self.identity.epmd_port is None:
                port = str(self._ports()["epmd"])
                self._epmd.start([*self.installation.prefix, "epmd", "-port", port], env=env)
            self._node.start(self.installation.command("rabbitmq-server"), env=env)
        wait_until(lambda: self.pid is None or self._responds(), START_TIMEOUT)
        if self.pid is None or not self._responds():
            reason = "it ended" if self.pid is None else f"not ready in {START_TIMEOUT} s"
            self.kill()
            raise LocalStackError(
                f"Cannot start RabbitMQ: {reason}. {CLEAN_ADVICE}\n"
                f"From {self.log}:\n{failure_lines(self.log)}"
            )
        (self.directory / "started").touch()
        if self._unclean.exists() and self.identity is ALONE:  # the others of a cluster elect
            self.ctl("eval", ELECT)
        self._unclean.touch()

    def stop(self) -> None:
        """Stop cleanly, if it runs."""
        if self.pid is None:
            return
        self._node.stop(signal.SIGTERM, STOP_TIMEOUT)
        self._stop_epmd()
        self._unclean.unlink(missing_ok=True)

    def sync(self) -> None:
        """Make RabbitMQ store which quorum queues it has. Takes half a second.

        RabbitMQ does so by itself, but late: a queue that was declared within two seconds before
        `kill` comes back empty and loses confirmed messages.
        """
        self.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")

    def kill(self) -> None:
        """Kill with SIGKILL, like a power failure. `start` keeps its data and ports.

        Call `sync` first if quorum queues were declared just before.
        """
        self._node.kill()
        self._stop_epmd()

    def suspend(self) -> None:
        """Suspend with SIGSTOP: sockets stay open, nothing responds."""
        self._node.suspend()

    def resume(self) -> None:
        """Resume with SIGCONT after `suspend`."""
        self._node.send_signal(signal.SIGCONT)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node and return its output. Takes half a second.

        Raises:
            LocalStackError: the node does not run, or the command failed.
        """
        if self.pid is None:  # rabbitmqctl would also leave its own epmd running
            raise LocalStackError(
                f"Cannot run rabbitmqctl: the broker in {self.directory} does not run."
            )
        done = subprocess.run(
            [*self.installation.command("rabbitmqctl"), "--quiet", *arguments],
            env=self._environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            output = (done.stderr or done.stdout).strip()
            raise LocalStackError(f"Cannot run rabbitmqctl {' '.join(arguments)}: {output}")
        return done.stdout

    def add_vhost(self, name: str) -> str:
        """Add a virtual host and return its AMQP URL. Takes 40 ms."""
        self._management("PUT", f"/api/vhosts/{quote(name, safe='')}")
        return self._url(name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host and its queues, and close its connections."""
        self._management("DELETE", f"/api/vhosts/{quote(name, safe='')}")

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        data = self.directory / "data"
        if data.exists() and not (self.directory / "started").exists():
            shutil.rmtree(data)  # incomplete: the first start was interrupted
        (self.directory / "conf.d").mkdir(exist_ok=True)
        (self.directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
        hosts = self.identity.hosts.items()
        lines = [f'{{host, {_tuple(address)}, ["{host}"]}}.' for host, address in hosts]
        names = "\n".join([*lines, "{lookup, [file, native]}.", ""])
        (self.directory / "inetrc").write_text(names)
        cookie = self.directory / ".erlang.cookie"
        if self.identity.cookie and not cookie.exists():
            cookie.write_text(self.identity.cookie)
            cookie.chmod(0o400)
        self._choose_ports()
        ports = self._ports()
        settings = {
            "listeners.tcp.local": f"{self.identity.address}:{ports['amqp']}",
            "management.tcp.ip": self.identity.address,
            "management.tcp.port": str(ports["management"]),
            "log.console": "true",
            "log.console.use_colors": "off",
            "log.file": "false",
            **self.settings,
        }
        text = "".join(f"{key} = {value}\n" for key, value in settings.items())
        (self.directory / "rabbitmq.conf").write_text(text)

    def _choose_ports(self) -> None:
        """Keep the ports of the last start that are still free. All are different."""
        file = self.directory / "ports.json"
        ports: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        for name in ("amqp", "management", "distribution", "epmd"):
            if name not in ports or not port_is_free(ports[name]):
                ports[name] = free_port({*ports.values(), self.identity.epmd_port})
        new = file.with_suffix(".new")
        new.write_text(json.dumps(ports))
        new.replace(file)

    def _ports(self) -> dict[str, int]:
        try:
            ports: dict[str, int] = json.loads((self.directory / "ports.json").read_text())
        except FileNotFoundError:
            raise LocalStackError(f"The broker in {self.directory} was never started.") from None
        return ports

    def _environment(self) -> dict[str, str]:
        """Return the environment of RabbitMQ, which hides the system's own node from it."""
        here, ports, identity = self.directory, self._ports(), self.identity
        interface = f"-kernel inet_dist_use_interface {_tuple(identity.address)}"
        # Its connections to other nodes come from its own address, so that a test can drop them.
        source = f"-kernel inet_dist_connect_options [{{ip,{_tuple(identity.address)}}}]"
        return {
            "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(here),  # for the Erlang cookie
            "ERL_INETRC": str(here / "inetrc"),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(identity.epmd_port or ports["epmd"]),
            "ERL_CRASH_DUMP_SECONDS": "0",  # no dump: the log has the reason
            "RABBITMQ_NODENAME": identity.name,
            "RABBITMQ_DIST_PORT": str(ports["distribution"]),
            "RABBITMQ_MNESIA_BASE": str(here / "data"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(here / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(here / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(here / "rabbitmq-env.conf"),
            # Two schedulers: by default the node starts a thread for every core.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{interface} {source} {DEAD_LETTERING} +S 2:2",
            "RABBITMQ_CTL_ERL_ARGS": f"-kernel inet_dist_use_interface {_tuple(LOOPBACK)}",
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",  # any free port, not the system's 35672
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
            # The script is replaced by the node, so the node gets the signals.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _stop_epmd(self) -> None:
        self._epmd.stop(signal.SIGTERM, 5)

    def _responds(self) -> bool:
        ports = self._ports()
        try:
            with socket.create_connection(
                (self.identity.address, ports["amqp"]), timeout=2
            ) as peer:
                peer.sendall(b"AMQP\x00\x00\x09\x01")
                if peer.recv(1) != b"\x01":  # a method frame: Connection.Start
                    return False
            self._management("GET", "/api/vhosts/%2F")
        except (OSError, http.client.HTTPException, LocalStackError):
            return False
        return True

    def _management(self, method: str, path: str) -> None:
        connection = http.client.HTTPConnection(
            self.identity.address, self._ports()["management"], timeout=30
        )
        try:
            login = base64.b64encode(b"guest:guest").decode()
            connection.request(method, path, headers={"Authorization": f"Basic {login}"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        finally:
            connection.close()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise LocalStackError(
                f"RabbitMQ responded {response.status} to {method} {path}: {text}"
            )
