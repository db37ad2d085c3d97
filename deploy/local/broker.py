"""A private RabbitMQ node: its own name, ports, cookie and data in one directory, loopback only.

It shares nothing with another RabbitMQ on the machine, not even epmd. From RabbitMQ 3.10 on.
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
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from deploy.local.daemon import (
    START_AFRESH,
    Daemon,
    LocalStackError,
    free_port,
    port_is_free,
    trouble,
    wait_until,
)
from deploy.local.install import Installation, rabbitmq

START_SECONDS = 120  # six on an idle machine of two cores; most of it is loading Erlang modules
# Usually six: with the management plugin, 3.10 sits still for five after all else has stopped.
STOP_SECONDS = 30
# RabbitMQ (seen in 3.10.8) writes down up to a second or so after the declaration where a quorum
# queue keeps its log. Killed before, it brings the queue back empty, and without a leader for ever:
# an election must be called from outside (as in its issue 10070). See `Broker.sync`. A queue whose
# process did not even start can't be helped; it can still be deleted.
ELECT = """
[catch ra:trigger_election(Member) || Queue <- rabbit_amqqueue:list(),
    amqqueue:get_type(Queue) =:= rabbit_quorum_queue,
    {Name, _} = Member <- [amqqueue:get_pid(Queue)],
    ra_leaderboard:lookup_leader(Name) =:= undefined].
"""
# Erlang shall know `localhost` even where /etc/hosts does not, as in a bare chroot.
NAMES = '{host, {127,0,0,1}, ["localhost"]}.\n{lookup, [file, native]}.\n'
LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"


class Broker:
    """A RabbitMQ node with management plugin whose ports and data outlive it in `directory`."""

    def __init__(
        self,
        directory: Path,
        installation: Installation | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            directory: where all of it lives; made if missing.
            installation: the RabbitMQ to run; left out, this machine's, installed if missing.
            settings: more lines for rabbitmq.conf, such as `{"consumer_timeout": "60000"}`.
        """
        self.directory = directory.absolute()
        self._given = installation
        self.settings = dict(settings or {})
        self._unclean = self.directory / "unclean"  # there until a clean stop
        self._node = Daemon(self.directory / "node.lock", self.directory / "node.log")
        self._epmd = Daemon(self.directory / "epmd.lock", self.directory / "epmd.log")

    @cached_property
    def installation(self) -> Installation:
        """The RabbitMQ that runs here."""
        return self._given or rabbitmq()

    @property
    def url(self) -> str:
        """The AMQP URL of the vhost `/`."""
        return f"amqp://guest:guest@127.0.0.1:{self._ports()['amqp']}/"

    @property
    def management_url(self) -> str:
        """The web page and HTTP API; user and password are `guest`."""
        return f"http://127.0.0.1:{self._ports()['management']}/"

    @property
    def pid(self) -> int | None:
        """The node's PID; None while it does not run."""
        return self._node.pid

    @property
    def log(self) -> Path:
        """What the node wrote since it was last started."""
        return self._node.log

    def start(self) -> None:
        """Start the node, unless it runs, and wait until it answers AMQP and HTTP.

        Raises:
            LocalStackError: it ended, or did not answer in time; with what its log says.
        """
        if self.pid is None:
            self._prepare()
            self._end_epmd()
            env = self._environment()
            ports = self._ports()
            self._epmd.start(
                [*self.installation.prefix, "epmd", "-port", str(ports["epmd"])], env=env
            )
            self._node.start(self.installation.command("rabbitmq-server"), env=env)
        wait_until(lambda: self.pid is None or self._answers(), START_SECONDS)
        if self.pid is None or not self._answers():
            end = "ended at once" if self.pid is None else f"was not ready in {START_SECONDS} s"
            self.kill()
            raise LocalStackError(
                f"RabbitMQ {end}. {self.log} says:\n{trouble(self.log)}\n{START_AFRESH}"
            )
        (self.directory / "started").touch()
        if self._unclean.exists():
            self.ctl("eval", ELECT)
        self._unclean.touch()

    def stop(self) -> None:
        """Stop cleanly; nothing happens if it does not run."""
        if self.pid is None:
            return
        self._node.end(signal.SIGTERM, STOP_SECONDS)
        self._end_epmd()
        self._unclean.unlink(missing_ok=True)

    def sync(self) -> None:
        """Have RabbitMQ write down which quorum queues it has.

        It does so by itself, but late: one declared less than a second or two before `kill` comes
        back empty, confirmed messages and all. Takes half a second.
        """
        self.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")

    def kill(self) -> None:
        """SIGKILL, as a power cut would; `start` brings it back with its data and ports.

        Call `sync` first if quorum queues were declared just now.
        """
        self._node.kill()
        self._end_epmd()

    def suspend(self) -> None:
        """SIGSTOP: sockets stay open, nothing answers."""
        self._node.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `suspend`."""
        self._node.send_signal(signal.SIGCONT)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node and return what it printed; takes half a second.

        Raises:
            LocalStackError: the node does not run, or the command failed; with what it said.
        """
        if self.pid is None:  # rabbitmqctl would also leave an epmd of its own behind
            raise LocalStackError(f"rabbitmqctl: the broker in {self.directory} does not run")
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
            said = (done.stderr or done.stdout).strip()
            raise LocalStackError(f"rabbitmqctl {' '.join(arguments)} failed: {said}")
        return done.stdout

    def add_vhost(self, name: str) -> str:
        """Make a virtual host (some 40 ms) and return its AMQP URL."""
        self._management("PUT", f"/api/vhosts/{quote(name, safe='')}")
        return self.url + quote(name, safe="")

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all that is in it, closing its connections."""
        self._management("DELETE", f"/api/vhosts/{quote(name, safe='')}")

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        data = self.directory / "data"
        if data.exists() and not (self.directory / "started").exists():
            shutil.rmtree(data)  # left half-made by a first start that did not come to its end
        (self.directory / "conf.d").mkdir(exist_ok=True)
        (self.directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.directory / "inetrc").write_text(NAMES)
        self._choose_ports()
        ports = self._ports()
        lines = {
            "listeners.tcp.local": f"127.0.0.1:{ports['amqp']}",
            "management.tcp.ip": "127.0.0.1",
            "management.tcp.port": str(ports["management"]),
            "log.console": "true",
            "log.console.use_colors": "off",
            "log.file": "false",
            **self.settings,
        }
        text = "".join(f"{key} = {value}\n" for key, value in lines.items())
        (self.directory / "rabbitmq.conf").write_text(text)

    def _choose_ports(self) -> None:
        """Keep the ports of the last start where they are still free."""
        file = self.directory / "ports.json"
        ports: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        for name in ("amqp", "management", "distribution", "epmd"):
            if name not in ports or not port_is_free(ports[name]):
                ports[name] = free_port()
        new = file.with_suffix(".new")
        new.write_text(json.dumps(ports))
        new.replace(file)

    def _ports(self) -> dict[str, int]:
        try:
            ports: dict[str, int] = json.loads((self.directory / "ports.json").read_text())
        except FileNotFoundError:
            raise LocalStackError(f"the broker in {self.directory} was never started") from None
        return ports

    def _environment(self) -> dict[str, str]:
        """All that RabbitMQ shall know; nothing of the system's own node is read."""
        here, ports = self.directory, self._ports()
        return {
            "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(here),  # of the Erlang cookie
            "ERL_INETRC": str(here / "inetrc"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(ports["epmd"]),
            "ERL_CRASH_DUMP_SECONDS": "0",  # no dump: the log says it, and has one place
            # Names are looked up in our own epmd, so every node may have the same one.
            "RABBITMQ_NODENAME": "ringback@localhost",
            "RABBITMQ_DIST_PORT": str(ports["distribution"]),
            "RABBITMQ_MNESIA_BASE": str(here / "data"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(here / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(here / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(here / "rabbitmq-env.conf"),
            # Two schedulers: on a large machine the node would start a thread for every core.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{LOOPBACK} +S 2:2",
            "RABBITMQ_CTL_ERL_ARGS": LOOPBACK,
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",  # any free port, not the system's 35672
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
            # The script becomes the node instead of waiting for it, so signals reach the node.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _end_epmd(self) -> None:
        self._epmd.end(signal.SIGTERM, 5)

    def _answers(self) -> bool:
        ports = self._ports()
        try:
            with socket.create_connection(("127.0.0.1", ports["amqp"]), timeout=2) as peer:
                peer.sendall(b"AMQP\x00\x00\x09\x01")
                if peer.recv(1) != b"\x01":  # a method frame: Connection.Start
                    return False
            self._management("GET", "/api/vhosts/%2F")
        except (OSError, http.client.HTTPException, LocalStackError):
            return False
        return True

    def _management(self, method: str, path: str) -> None:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._ports()["management"], timeout=30
        )
        try:
            login = base64.b64encode(b"guest:guest").decode()
            connection.request(method, path, headers={"Authorization": f"Basic {login}"})
            answer = connection.getresponse()
            said = answer.read().decode(errors="replace")
        finally:
            connection.close()
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            raise LocalStackError(f"RabbitMQ answered {answer.status} to {method} {path}: {said}")
