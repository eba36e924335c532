"""Starts the real server for the tests, on a free port, with the demo model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.units import kB

from umaserve import Session

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / "python"
MODEL = ROOT / "models/demo.pt"
PROGRAM = Path(os.environ.get("UMASERVE", ROOT / "target/debug/umaserve"))
PATIENCE = 60.0


class Server:
    """A running `umaserve serve`, found by its connection file."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory, self.options = directory, options
        self.file = directory / "connection.json"
        self.log = directory / "server.log"
        self.start()

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        command = [PROGRAM, "serve", "--model", MODEL, "--device", "cpu", "--connection-file", self.file, *self.options]
        if "--bind" not in self.options and "--unix-socket" not in self.options:
            command += ["--bind", "127.0.0.1:0"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("UMASERVE", "SLURM"))}
        assert PROGRAM.exists(), f"{PROGRAM} is not built (`make test-python` does it), or name another in UMASERVE"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + PATIENCE
        while not self.is_ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def is_ready(self) -> bool:
        try:
            said = json.loads(self.file.read_text())
        except FileNotFoundError:
            return False
        return bool(said["pid"] == self.process.pid and said["state"] == "ready")

    @property
    def url(self) -> str:
        return str(json.loads(self.file.read_text())["url"])

    @property
    def token(self) -> str:
        return str(json.loads(self.file.read_text())["token"])

    def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def session(self, **options: object) -> Session:
        return Session(self.file, **options)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most tests share; it records where a test asks for it."""
    directory = tmp_path_factory.mktemp("server")
    server = Server(directory, "--record", str(directory / "runs"), "--max-atoms", "1000")
    yield server
    server.end()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with options of their own."""
    started: list[Server] = []

    def begin(*options: str) -> Server:
        directory = tmp_path / f"server-{len(started)}"
        directory.mkdir()
        started.append(Server(directory, *options))
        return started[-1]

    yield begin
    for server in started:
        if server.process.poll() is None:
            server.end()


@pytest.fixture
def session(server: Server) -> Iterator[Session]:
    with server.session() as session:
        yield session


@pytest.fixture
def ethanol() -> Atoms:
    return molecule("CH3CH2OH")


def warm(atoms: Atoms, kelvin: float = 300.0, seed: int = 1) -> Atoms:
    """The atoms with thermal velocities."""
    masses = atoms.get_masses()[:, None]
    atoms.set_velocities(np.random.default_rng(seed).standard_normal((len(atoms), 3)) * np.sqrt(kB * kelvin / masses))
    return atoms
