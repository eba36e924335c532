"""The messages of one session, numbered and acknowledged, over a socket that may break."""

from __future__ import annotations

import random
import time
from collections import deque
from contextlib import ExitStack, suppress
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect, unix_connect

from . import session_pb2 as pb
from .address import OPEN_TIMEOUT, Address, refusal
from .errors import ConnectionLost, NotAuthorized, ServerFull

#: Unacknowledged messages after which a simulation waits, unless the server was started with others.
WINDOW = 10
#: First and longest pause between two attempts to make a connection again, s.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0


class Broken(Exception):
    """The socket has broken or was closed by the server: close code (None without close frame) and reason."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{code or 'no close frame'} {reason}".strip())
        self.code = code


class Link:
    """
    Sends and receives, keeps the counters that both sides need, and decides what to acknowledge: the
    server goes on only while fewer than `window` of its messages are unacknowledged, so what is not
    acknowledged says exactly how far it may run ahead.
    """

    def __init__(self, address: Address, timeout: float | None) -> None:
        self.address, self.timeout = address, timeout
        self.seq = self.server_seq = self.ack = 0
        self.client_seq = 0  # the largest of ours that the server had processed at its last message
        self.window = WINDOW
        self._sent: deque[tuple[int, int]] = deque([(0, 0)])  # (seq, ack) of ours that may not be processed yet
        self._socket: ClientConnection | None = None
        self._held = ExitStack()  # closes the socket

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def open(self, patience: float) -> None:
        """
        Opens a socket. With `patience` (s) attempts are repeated for so long, with growing pauses, while the
        server cannot be reached or has no place.
        """
        self.close()
        deadline, pause = time.monotonic() + patience, FIRST_PAUSE
        while True:
            try:
                return self._open()
            except (ConnectionLost, ServerFull) as error:
                wait = max(pause * random.uniform(0.8, 1.2), getattr(error, "retry_after", None) or 0)
                if time.monotonic() + wait > deadline:
                    raise
            except NotAuthorized:
                # A server that comes back writes its connection file, with its token, a moment later.
                wait = pause
                if self.address.file is None or time.monotonic() + wait > deadline:
                    raise
            time.sleep(wait)
            pause = min(LONGEST_PAUSE, 1.6 * pause)
            self.address = self.address.refreshed()

    def _open(self) -> None:
        raw = self.address.open_socket()
        options: dict[str, Any] = {
            "sock": raw,
            "additional_headers": self.address.headers,
            "max_size": None,
            "max_queue": None,  # bounded by the window; pings, which find a server that has vanished, must not wait
            "compression": None,
            "proxy": None,
            "open_timeout": OPEN_TIMEOUT,
        }
        try:
            if self.address.unix_socket is None:
                opened = connect(self.address.websocket, **options)
            else:
                opened = unix_connect(None, self.address.websocket, **options)
            self._socket = self._held.enter_context(opened)
        except InvalidStatus as refused:
            raw.close()
            answer = refused.response
            body = bytes(answer.body or b"").decode(errors="replace")
            raise refusal(answer.status_code, body, self.address.base, answer.headers.get("Retry-After")) from None
        except (OSError, EOFError, InvalidHandshake, TimeoutError) as error:
            raw.close()
            raise ConnectionLost(f"{self.address.base}: no WebSocket: {error}") from None

    def close(self) -> None:
        self._socket = None
        with suppress(ConnectionClosed, OSError):
            self._held.close()

    def send(self, action: pb.ClientAction) -> int:
        """
        Numbers and sends a message and returns its number. A broken socket shows at the next
        `receive`: whoever waits for an answer learns there that the message may be lost.
        """
        self.seq += 1
        action.seq, action.schema_version = self.seq, 1
        if self.ack:
            action.ack = self.ack
        self._sent.append((self.seq, self.ack))
        if self._socket is not None:
            with suppress(ConnectionClosed):
                self._socket.send(action.SerializeToString())
        return self.seq

    def receive(self) -> pb.ServerResult:
        """
        The next message.

        Raises `Broken` if the socket is, `ConnectionLost` if nothing comes for `timeout` s.
        """
        if self._socket is None:
            raise Broken(None, "not connected")
        try:
            data = self._socket.recv(timeout=self.timeout)
            while isinstance(data, str):
                data = self._socket.recv(timeout=self.timeout)
        except TimeoutError:
            raise ConnectionLost(f"no answer from {self.address.base} within {self.timeout} s") from None
        except ConnectionClosed as closed:
            self.close()
            said = closed.rcvd
            raise Broken(said.code if said else None, said.reason if said else "") from None
        result = pb.ServerResult.FromString(data)
        self._count(result)
        return result

    def _count(self, result: pb.ServerResult) -> None:
        self.server_seq = max(self.server_seq, result.seq)
        self.client_seq = result.client_seq
        while len(self._sent) > 1 and self._sent[1][0] <= result.client_seq:
            self._sent.popleft()
        if result.WhichOneof("payload") == "session_state":
            self.ack = max(self.ack, result.seq - 1)  # nothing before it is waited for
            self._sent.clear()
            self._sent.append((self.seq, self.ack))

    def learn(self, result: pb.ServerResult) -> None:
        """
        Learns the server's window from what comes while a simulation runs: a frame that we took for
        impossible, or a wait that we did not mean.
        """
        lag = result.seq - self._sent[0][1]  # as the server saw it
        if result.WhichOneof("payload") == "frame":
            self.window = max(self.window, lag)
        elif result.notice.message == "WAITING_FOR_ACK" and lag < self.window:
            # It says so once; how much less the window is shows only when it is wide open.
            self.window = max(1, lag // 2)
            self.hold(None)

    def acknowledge(self, upto: int) -> None:
        if upto > self.ack:
            self.ack = upto
            self.send(pb.ClientAction())

    def hold(self, frames: int | None) -> None:
        """Lets the server send at most `frames` more messages (None: as many as its window holds)."""
        back = 0 if frames is None else max(0, self.window - frames)
        self.acknowledge(self.server_seq - back)

    def slack(self) -> int:
        """How many messages the server may send without another acknowledgement."""
        return max(0, self.window - (self.server_seq - self.ack))

    def confirm(self) -> None:
        """
        Waits until the server has read everything that was sent.

        Raises `ConnectionLost` if it has not within `timeout` s.
        """
        if self._socket is not None:
            with suppress(ConnectionClosed):
                pong = self._socket.ping(ack_on_close=True)
                if pong.wait(self.timeout) and self._socket.state is State.OPEN:
                    return
        raise ConnectionLost(f"{self.address.base} does not answer any more")
