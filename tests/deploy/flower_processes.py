"""Flower's own processes on this machine: a SuperLink, SuperNodes, and runs of an app."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
BIN = pathlib.Path(sys.executable).parent
MOST = 600
"""Seconds that anything may take."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """A SuperLink and SuperNodes with all that they write in one directory."""

    def __init__(self, path):
        self.path, self.processes, self.port = path, {}, free_port()
        (path / "home").mkdir()
        (path / "home" / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )

    @property
    def env(self):
        kept = ("XLA", "JAX", "HOME", "LANG", "TMPDIR")
        return {
            **{k: v for k, v in os.environ.items() if k.startswith(kept)},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "FLWR_HOME": str(self.path / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        }

    def start(self, name, *command):
        with (self.path / f"{name}.log").open("ab") as log:
            # A session of its own: what it starts ends with it.
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.env, cwd=self.path, start_new_session=True
            )

    def start_link(self):
        self.start(
            "link", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port",
            str(self.port), "--database", str(self.path / "state.db"),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        self.wait_for(lambda: connects(self.port), "the SuperLink")

    def start_node(self, client):
        directory = self.path / "nodes" / client
        self.start(
            f"node{client}", "flower-supernode", "--insecure", "--superlink",
            f"127.0.0.1:{self.port}", "--port", str(free_port()), "--node-config",
            f'client="{client}" directory="{directory}"',
        )  # fmt: skip

    def stop(self, name, signum=signal.SIGKILL):
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        process.wait(timeout=MOST)

    def close(self):
        for name in list(self.processes):
            self.stop(name)

    def run(self, app, **settings):
        """Start a run of an app; return the process that shows its log until it ends."""
        config = " ".join(f"{name.replace('_', '-')}={value}" for name, value in settings.items())
        more = ["--run-config", config] if config else []
        self.start("run", "flwr", "run", str(app), "here", "--stream", *more)
        return self.processes["run"]

    def wait_for(self, look, what, seconds=MOST):
        until = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > until:
                logs = "\n".join(
                    f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}"
                    for log in sorted(self.path.glob("*.log"))
                )
                raise AssertionError(f"{what} did not come in {seconds} s\n{logs}")
            time.sleep(0.2)
        return found


def connects(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
