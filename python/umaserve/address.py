"""Where a server is: URLs, tokens, connection files, sockets, and its HTTP side."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import ConnectionLost, NotAuthorized, RequestRefused, ServerFull, UmaServeError

DEFAULT = "http://127.0.0.1:8000/"
#: How long a server may take to accept a connection, or to answer an HTTP request, s.
OPEN_TIMEOUT, HTTP_TIMEOUT = 20.0, 60.0
#: A connection file whose heart has not beaten for so long is that of a server that has gone, s.
STALE = 30.0


@dataclass(frozen=True)
class Address:
    """
    How a server is reached: its base URL (ends in `/`), the token it asks for, and what TLS or a Unix
    socket need. No proxy of the environment is used.
    """

    base: str
    token: str | None = field(default=None, repr=False)
    unix_socket: str | None = None
    certificate: bytes | None = field(default=None, repr=False)
    """With https: the one certificate (DER) that the server has to show, whoever has signed it."""
    cafile: str | None = None
    """With https: certificates (PEM) to trust instead of the system's."""
    file: Path | None = None
    """The connection file that this comes from."""

    @classmethod
    def parse(cls, server: str | os.PathLike[str] | Address | None = None, token: str | None = None) -> Address:
        """
        Accepts what the server prints, `http://HOST:PORT/PREFIX/` with `#token=T` or `?token=T`, the
        WebSocket address `ws://HOST:PORT/ws`, plain `HOST:PORT`, `unix:PATH` for a Unix socket, and
        the path of a connection file (`runs/connection.json`). None means the environment
        variable UMASERVE_URL, else `http://127.0.0.1:8000/`. Without a token in the address, in the
        connection file or as argument, UMASERVE_TOKEN is used.
        """
        if isinstance(server, Address):
            return replace(server, token=token) if token else server
        if server is None:
            server = os.environ.get("UMASERVE_URL") or DEFAULT
        if not isinstance(server, str) or server.endswith(".json"):
            return cls.of_file(server, token)
        environment = os.environ.get("UMASERVE_TOKEN") or None
        if server.startswith("unix:"):
            path = server[len("unix:") :]
            path = path[2:] if path.startswith("//") else path
            return cls("http://localhost/", token or environment, unix_socket=path)
        parts = urllib.parse.urlsplit(server if "://" in server else "http://" + server)
        scheme = {"http": "http", "https": "https", "ws": "http", "wss": "https"}.get(parts.scheme)
        if scheme is None or not parts.hostname:
            raise ValueError(f"{server!r} is no address of a server: expected http://HOST:PORT/")
        try:
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"{server!r}: {error}") from None
        path = parts.path
        if parts.scheme in ("ws", "wss") and path.endswith("/ws"):
            path = path[: -len("ws")]
        if not path.endswith("/"):
            path += "/"
        said = {k: v[0] for text in (parts.query, parts.fragment) for k, v in urllib.parse.parse_qs(text).items()}
        return cls(f"{scheme}://{parts.netloc}{path}", token or said.get("token") or environment)

    @classmethod
    def of_file(cls, path: str | os.PathLike[str], token: str | None = None) -> Address:
        """
        From the connection file that the server keeps (`--connection-file`, else `connection.json` in the
        directory of `--record`). It is read again whenever a connection has to be made again, so that a
        server that comes back at another port is found.
        """
        path = Path(path)
        try:
            said = json.loads(path.read_text())
        except OSError as error:
            raise ConnectionLost(f"no connection file: {error}") from None
        except ValueError:
            said = None
        if not isinstance(said, dict) or not (said.get("port") or said.get("unix_socket")):
            raise ValueError(f"{path}: not a connection file")
        address = cls.parse(said.get("url") or "http://localhost/", token or said.get("token") or None)
        certificate = said.get("certificate")
        return replace(
            address,
            base=f"http://localhost{said.get('path_prefix', '')}/" if not said.get("port") else address.base,
            unix_socket=None if said.get("port") else said["unix_socket"],
            certificate=base64.b64decode(certificate) if certificate else None,
            file=path,
        )

    def refreshed(self) -> Address:
        """The same address as its connection file has it now."""
        if self.file is None:
            return self
        try:
            return Address.of_file(self.file)
        except (UmaServeError, ValueError):
            return self

    @property
    def headers(self) -> dict[str, str]:
        """What a request needs to be let in."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def websocket(self) -> str:
        """The address of the WebSocket as it is spoken over `open_socket`, where TLS is already done."""
        return "ws" + self.base[self.base.index("://") :] + "ws"

    def open_socket(self, timeout: float = OPEN_TIMEOUT) -> socket.socket:
        """A connected socket, with TLS if the address says https; nothing has been sent over it yet."""
        parts = urllib.parse.urlsplit(self.base)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "localhost", parts.port or (443 if secure else 80)
        plain: socket.socket | None = None
        try:
            if self.unix_socket is not None:
                plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                plain.settimeout(timeout)
                plain.connect(self.unix_socket)
                return plain
            plain = socket.create_connection((host, port), timeout=timeout)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not secure:
                return plain
            wrapped = self._tls().wrap_socket(plain, server_hostname=host)
            if self.certificate is not None and wrapped.getpeercert(binary_form=True) != self.certificate:
                wrapped.close()
                raise NotAuthorized(f"{self.base}: the certificate is not that of the connection file")
            return wrapped
        except ssl.SSLCertVerificationError as error:
            if plain is not None:
                plain.close()
            raise NotAuthorized(f"{self.base}: {error.verify_message or error} (see Address.cafile)") from None
        except OSError as error:
            if plain is not None:
                plain.close()
            where = f"unix:{self.unix_socket}" if self.unix_socket else self.base
            raise ConnectionLost(f"{where} cannot be reached: {error}{self._hint()}") from None

    def _tls(self) -> ssl.SSLContext:
        if self.certificate is None:
            return ssl.create_default_context(cafile=self.cafile)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The certificate itself is compared, before anything is sent.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def _hint(self) -> str:
        """What the connection file says about a server that does not answer."""
        if self.file is None:
            return ""
        try:
            said = json.loads(self.file.read_text())
            state, age, host = said.get("state"), time.time() - float(said.get("heartbeat", 0)), said.get("host")
        except (OSError, ValueError, TypeError, AttributeError):
            return ""
        if state in ("stopped", "failed") or age > STALE:
            return f" ({self.file}: {state}, written {age:.0f} s ago)"
        if host and host != socket.gethostname():
            return f" (it runs on {host}: open a tunnel with `umaserve connect {self.file} --tunnel`)"
        return ""

    @contextmanager
    def _open(self, route: str) -> Iterator[http.client.HTTPResponse]:
        parts = urllib.parse.urlsplit(self.base)
        connection = http.client.HTTPConnection(parts.netloc, timeout=HTTP_TIMEOUT)
        connection.sock = self.open_socket()
        connection.sock.settimeout(HTTP_TIMEOUT)
        try:
            with self._reading(route):
                connection.request("GET", parts.path + route, headers=self.headers)
                answer = connection.getresponse()
                if answer.status != 200:
                    body = answer.read().decode(errors="replace")
                    raise refusal(answer.status, body, self.base + route, answer.headers.get("Retry-After"))
            yield answer
        finally:
            connection.close()

    @contextmanager
    def _reading(self, route: str) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLost(f"{self.base}{route}: {error}") from None

    def get(self, route: str) -> Any:
        """The JSON of a route such as `serve/health` or `serve/status`."""
        with self._open(route) as answer, self._reading(route):
            return json.load(answer)

    def recordings(self) -> list[dict[str, Any]]:
        """
        The recorded trajectories, newest first: `name`, `bytes`, `modified` (ms since 1970), `live` (still
        being written) and, if known, `frames`.
        """
        listed: list[dict[str, Any]] = self.get("recordings")["recordings"]
        return listed

    def download(self, name: str, path: str | os.PathLike[str] | None = None) -> Path:
        """
        Saves the recording `name` as `path` (default: the same name here) and returns the path. Of a
        recording that is still being written this is a complete copy.
        """
        target = Path(path or Path(name).name)
        part = target.with_name(target.name + ".part")
        route = "recordings/" + urllib.parse.quote(name)
        try:
            with self._open(route) as answer, part.open("wb") as file:
                expected = answer.length
                while True:
                    with self._reading(route):
                        piece = answer.read(1 << 20)
                    if not piece:
                        break
                    file.write(piece)
                if expected is not None and file.tell() != expected:
                    raise ConnectionLost(f"{name}: {file.tell()} of {expected} bytes have come")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target


def refusal(status: int, body: str, what: str, retry_after: str | None = None) -> UmaServeError:
    """The exception for an HTTP answer that is not a success."""
    try:
        said = json.loads(body)
        body = said.get("error") or " ".join(str(said[k]) for k in ("status", "reason") if said.get(k)) or body
    except (ValueError, AttributeError):
        pass
    text = f"{what}: HTTP {status} {body.strip()}".strip()
    if status in (401, 403):
        return NotAuthorized(text + " (give the server's token: token=..., or UMASERVE_TOKEN)")
    if status in (429, 503):
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
        return ServerFull(text, seconds)
    return RequestRefused(text)
