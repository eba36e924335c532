"""How servers are found, what happens when connections and servers break."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from conftest import Server, warm

from umaserve import Address, ConnectionLost, Frame, NotAuthorized, RequestRefused, ServerFull, Session, SessionLost


@pytest.mark.parametrize(
    ("text", "base", "websocket", "token"),
    [
        ("http://127.0.0.1:8000/#token=abc", "http://127.0.0.1:8000/", "ws://127.0.0.1:8000/ws", "abc"),
        ("localhost:25", "http://localhost:25/", "ws://localhost:25/ws", None),
        ("https://a.b/node/x/1?token=t", "https://a.b/node/x/1/", "ws://a.b/node/x/1/ws", "t"),
        ("ws://h:1/ws", "http://h:1/", "ws://h:1/ws", None),
        ("wss://h:1/p/ws?token=t", "https://h:1/p/", "ws://h:1/p/ws", "t"),
        ("http://[::1]:80", "http://[::1]:80/", "ws://[::1]:80/ws", None),
    ],
)
def test_addresses(monkeypatch: pytest.MonkeyPatch, text: str, base: str, websocket: str, token: str | None) -> None:
    monkeypatch.delenv("UMASERVE_TOKEN", raising=False)
    address = Address.parse(text)
    assert (address.base, address.websocket, address.token) == (base, websocket, token)
    assert Address.parse(text, "mine").token == "mine"
    assert "abc" not in repr(address)


def test_addresses_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UMASERVE_URL", raising=False)
    assert Address.parse().base == "http://127.0.0.1:8000/"
    monkeypatch.setenv("UMASERVE_URL", "http://node7:1/")
    monkeypatch.setenv("UMASERVE_TOKEN", "from-the-environment")
    assert (Address.parse().base, Address.parse().token) == ("http://node7:1/", "from-the-environment")
    assert Address.parse("unix:/run/x").unix_socket == "/run/x"


@pytest.mark.parametrize("text", ["ftp://a/", "http://", "http://a:b/", ""])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="address|port|Port"):
        Address.parse(text)


def test_connection_files(server: Server, tmp_path: Path) -> None:
    for where in (server.file, str(server.file), server.url + "#token=" + server.token):
        with Session(where) as session:
            assert session.load(molecule("H2O")).is_evaluated
    address = Address.parse(server.file)
    assert address.get("serve/health")["status"] == "ok"
    assert address.get("serve/status")
    with pytest.raises(ConnectionLost, match=r"none\.json"):
        Session(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="not a connection file"):
        Session(tmp_path / "other.json")
    said = json.loads(server.file.read_text()) | {"url": "http://127.0.0.1:9/", "port": 9, "state": "stopped"}
    (tmp_path / "old.json").write_text(json.dumps(said))
    with pytest.raises(ConnectionLost, match="stopped"):
        Session(tmp_path / "old.json")
    (tmp_path / "far.json").write_text(json.dumps(said | {"state": "ready", "host": "node7"}))
    with pytest.raises(ConnectionLost, match=r"node7.*umaserve connect"):
        Session(tmp_path / "far.json")


def test_wrong_tokens(server: Server) -> None:
    for token in (None, "wrong-token-wrong-token"):
        with pytest.raises(NotAuthorized, match="401"):
            Session(server.url, token)
    with pytest.raises(NotAuthorized, match="401"):
        Address.parse(server.url, "wrong-token-wrong-token").recordings()


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    before = time.monotonic()
    with pytest.raises(ConnectionLost, match="cannot be reached"):
        Session(f"127.0.0.1:{port}")
    assert time.monotonic() - before < 10


def test_something_else_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(10_000)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises((ConnectionLost, RequestRefused), match="127"):
            Session(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_tls(start: Callable[..., Server], tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    for name in ("mine", "other"):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=umaserve", "-addext", "subjectAltName=IP:127.0.0.1"]
        command += ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.pem")]
        subprocess.run(command, check=True, capture_output=True)
    server = start("--tls-cert", str(tmp_path / "mine.pem"), "--tls-key", str(tmp_path / "mine.key"))
    assert server.url.startswith("https:")
    with server.session() as session:
        assert session.load(molecule("H2O")).is_evaluated
        assert session.address.get("serve/health")["status"] == "ok"
    trusting = Address(server.url, server.token, cafile=str(tmp_path / "mine.pem"))
    with Session(trusting) as session:
        assert session.load(molecule("H2O")).is_evaluated
    for wary in (
        Address(server.url, server.token),
        Address(server.url, server.token, cafile=str(tmp_path / "other.pem")),
    ):
        with pytest.raises(NotAuthorized, match="certificate"):
            Session(wary)
    said = json.loads(server.file.read_text())
    command = ["openssl", "x509", "-in", str(tmp_path / "other.pem"), "-outform", "der"]
    der = subprocess.run(command, check=True, capture_output=True)

    (tmp_path / "false.json").write_text(json.dumps(said | {"certificate": base64.b64encode(der.stdout).decode()}))
    with pytest.raises(NotAuthorized, match="connection file"):
        Session(tmp_path / "false.json")


def test_unix_socket(start: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = start("--unix-socket", str(path))
    with server.session() as session:
        assert session.load(molecule("H2O")).is_evaluated
        assert session.address.get("serve/health")["status"] == "ok"
    with Session(f"unix:{path}", server.token) as session:
        assert session.load(molecule("H2O")).is_evaluated


def test_full_servers_say_so(start: Callable[..., Server]) -> None:
    server = start("--max-sessions", "1")
    with server.session():
        with pytest.raises(ServerFull, match="503|429") as refused:
            server.session()
        assert refused.value.retry_after is not None


def test_a_broken_connection_is_made_again(server: Server, ethanol: Atoms) -> None:
    with server.session() as session:
        session.load(warm(ethanol))
        straight = session.run(60, seed=9).positions
        ethanol.info["remark"] = "kept"
        session.load(ethanol)
        seen: list[int] = []

        def cut(frame: Frame) -> None:
            seen.append(frame.step)
            if len(seen) in (1, 20, 30):
                assert session._link._socket is not None
                session._link._socket.socket.shutdown(socket.SHUT_RDWR)

        np.testing.assert_array_equal(session.run(60, seed=9, callback=cut).positions, straight)
        assert seen == sorted(set(seen))
        assert seen[-1] == 60
        assert len(seen) >= 60 - 3 * 10, "no more is lost than may be under way"
        assert session.atoms.info["remark"] == "kept"
        moved = session.edit({0: [0, 0, 3]})
        assert moved is not None
        assert session._link._socket is not None
        session._link._socket.socket.shutdown(socket.SHUT_RDWR)
        again = session.edit({0: ethanol.positions[0]})
        assert again is not None
        np.testing.assert_array_equal(again.positions[0], ethanol.positions[0])
        np.testing.assert_array_equal(again.positions[1:], straight[1:])


def test_a_run_survives_a_restart_of_the_server(start: Callable[..., Server], tmp_path: Path, ethanol: Atoms) -> None:
    server = start("--resume", str(tmp_path / "states"), "--checkpoint-seconds", "0.2")
    warm(ethanol)
    with server.session() as session:
        session.load(ethanol)
        straight = session.run(300, seed=11, every=3)
    with server.session() as session:
        session.load(ethanol)
        seen: list[int] = []

        def kill(frame: Frame) -> None:
            seen.append(frame.step)
            if frame.step == 150:
                time.sleep(0.5)
                server.end(signal.SIGKILL)
                server.start()

        last = session.run(300, seed=11, every=3, callback=kill)
        assert seen == list(range(3, 301, 3)), "every step once, in order"
        np.testing.assert_array_equal(last.positions, straight.positions)
        server.end(signal.SIGTERM)
        server.start()
        assert session.run(3).step == 303


def test_a_detached_run_survives_a_restart(start: Callable[..., Server], tmp_path: Path, ethanol: Atoms) -> None:
    server = start("--resume", str(tmp_path / "states"), "--checkpoint-seconds", "0.2")
    session = server.session()
    session.load(warm(ethanol))
    session.start(seed=1)
    next(session.watch())
    secret = session.detach()
    time.sleep(0.7)
    assert server.end(signal.SIGTERM) == 75
    server.start()
    with server.session(session_id=secret) as session:
        assert session.running
        assert session.frame is not None
        before = session.frame.step
        assert before > 0
        assert [f.step for f in session.watch(2)] == [before + 1, before + 2]
        session.stop()


def test_a_server_that_forgets(start: Callable[..., Server], ethanol: Atoms) -> None:
    server = start()
    with server.session(reconnect=30) as session:
        energy = session.load(ethanol).energy
        server.end(signal.SIGTERM)
        server.start()
        with pytest.raises(SessionLost, match="does not know"):
            session.edit({0: [0, 0, 1]})
        with pytest.raises(RequestRefused, match="load"):
            session.run(1)
        assert session.load(ethanol).energy == energy


def test_a_server_that_is_gone(start: Callable[..., Server], ethanol: Atoms) -> None:
    server = start()
    session = server.session(reconnect=1)
    session.load(ethanol)
    frames = session.frames()
    next(frames)
    server.end(signal.SIGKILL)
    before = time.monotonic()
    with pytest.raises(ConnectionLost, match="cannot be reached"):
        for _ in frames:
            pass
    assert time.monotonic() - before < 60
    server.start()
    with pytest.raises(SessionLost):
        session.edit()
    session.end()


def test_words_of_the_server_reach_the_user(
    start: Callable[..., Server], ethanol: Atoms, caplog: pytest.LogCaptureFixture
) -> None:
    server = start("--max-message-rate", "2")
    heard: list[str] = []
    with caplog.at_level(logging.WARNING, "umaserve"), server.session(on_notice=heard.append) as session:
        session.load(ethanol)
        for _ in range(60):
            if heard:
                break
            session.edit({0: ethanol.positions[0]})
    assert heard
    assert heard[0].startswith("RATE_LIMITED")
    assert heard[0] in caplog.text
