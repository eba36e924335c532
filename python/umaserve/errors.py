"""What can go wrong. Every message is the server's own words, or names what was wrong with the input."""


class UmaServeError(Exception):
    """Base class of all errors of this package. Arguments that make no sense raise `ValueError`, as usual."""


class RequestRefused(UmaServeError):
    """
    The server refused an edit or a start (notices `PROTO_VIOLATION`, `CALCULATOR_NOT_SUPPORTED`,
    `IDLE_WAITING_FOR_GEOMETRY`), or an HTTP request; the structure is as it was before.
    """


class ComputeError(UmaServeError):
    """
    The model could not evaluate the structure, or a step gave numbers that are not finite (notice
    `COMPUTE_ERROR`). After a failed step the structure is the last good one, after a failed edit the edited one.
    """


class NotAuthorized(UmaServeError):
    """The token is missing or wrong, or the origin is foreign (HTTP 401 or 403)."""


class ServerFull(UmaServeError):
    """
    All places are taken, or the token's own places or requests are used up, or the server is starting
    or stopping (HTTP 429 or 503).
    """

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        #: Seconds after which the server says that it is worth another try; None if it does not say.
        self.retry_after = retry_after


class ConnectionLost(UmaServeError):
    """The server cannot be reached, or the connection broke and could not be made again in time."""


class TakenOver(ConnectionLost):
    """The session goes on at another socket: somebody else has taken it up (close code 4001)."""


class SessionLost(UmaServeError):
    """
    The server was reached again but does not know the session any more. The `Session` has a new, empty
    one: load the structure again.
    """
