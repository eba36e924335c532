"""Where a server is: URLs, tokens, connection files, and its HTTP side."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from .errors import ConnectionLost, NotAuthorized, RequestRefused, ServerFull


@dataclass(frozen=True)
class Address:
    """The base URL of a server (ends in `/`) and the token it asks for, if any."""

    base: str
    token: str | None = None

    @classmethod
    def parse(cls, url: str | Address, token: str | None = None) -> Address:
        """
        Accepts what the server prints: `http://HOST:PORT/PREFIX/`, with `#token=T` or `?token=T`, the
        WebSocket address `ws://HOST:PORT/ws`, and plain `HOST:PORT`. Without a token in the URL or as
        argument, the environment variable UMASERVE_TOKEN is used.
        """
        if isinstance(url, Address):
            return cls(url.base, token or url.token)
        if "://" not in url:
            url = "http://" + url
        parts = urllib.parse.urlsplit(url)
        scheme = {"http": "http", "https": "https", "ws": "http", "wss": "https"}.get(parts.scheme)
        if scheme is None or not parts.netloc:
            raise ValueError(f"{url!r} is no address of a server: expected http://HOST:PORT/")
        path = parts.path
        if parts.scheme in ("ws", "wss") and path.endswith("/ws"):
            path = path[: -len("ws")]
        if not path.endswith("/"):
            path += "/"
        said = {k: v[0] for text in (parts.query, parts.fragment) for k, v in urllib.parse.parse_qs(text).items()}
        token = token or said.get("token") or os.environ.get("UMASERVE_TOKEN") or None
        return cls(f"{scheme}://{parts.netloc}{path}", token)

    @classmethod
    def of_file(cls, path: str | os.PathLike) -> Address:
        """From the connection file that `umaserve serve --connection-file PATH` writes."""
        said = json.loads(Path(path).read_text())
        return cls.parse(said["url"], said.get("token"))

    @property
    def websocket(self) -> str:
        return "ws" + self.base[len("http") :] + "ws"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def __repr__(self) -> str:  # a token never stands in a log
        return f"Address({self.base!r}, token={'...' if self.token else None})"

    def _open(self, route: str):
        request = urllib.request.Request(self.base + route, headers=self.headers)
        try:
            return urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            raise refusal(error.code, error.read().decode(errors="replace"), self.base + route) from None
        except urllib.error.URLError as error:
            raise ConnectionLost(f"{self.base}: {error.reason}") from None

    def get(self, route: str):
        """The JSON of a route such as `serve/health` or `serve/status`."""
        with self._open(route) as answer:
            return json.load(answer)

    def recordings(self) -> list[dict]:
        """The recorded trajectories: name, bytes, modified, and whether one is still being written."""
        return self.get("recordings")

    def download(self, name: str, path: str | os.PathLike | None = None) -> Path:
        """Saves the recording `name` as `path` (default: the same name here) and returns the path."""
        path = Path(path or Path(name).name)
        with self._open("recordings/" + urllib.parse.quote(name)) as answer, open(path, "wb") as file:
            shutil.copyfileobj(answer, file)
        return path


def refusal(status: int, body: str, what: str) -> Exception:
    """The exception for an HTTP answer that is not a success."""
    try:
        body = json.loads(body).get("error", body)
    except (ValueError, AttributeError):
        pass
    text = f"{what}: HTTP {status} {body}".strip()
    if status in (401, 403):
        return NotAuthorized(text + " (give the server's token: token=..., or UMASERVE_TOKEN)")
    if status in (429, 503):
        return ServerFull(text)
    return RequestRefused(text)
