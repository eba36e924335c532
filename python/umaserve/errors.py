"""What can go wrong. Every message is the server's own words, or names what was wrong with the input."""


class UmaServeError(Exception):
    """Base class of all errors of this package."""


class RequestRefused(UmaServeError):
    """The server refused an edit or a start (`PROTO_VIOLATION`, `CALCULATOR_NOT_SUPPORTED`); nothing has changed."""


class ComputeError(UmaServeError):
    """The model could not evaluate the structure, or a step gave numbers that are not finite."""


class NotAuthorized(UmaServeError):
    """The token is missing or wrong (HTTP 401 or 403)."""


class ServerFull(UmaServeError):
    """All places are taken, or the token's own places are (HTTP 503 or 429). Try again later."""


class ConnectionLost(UmaServeError):
    """The connection broke and could not be made again in time."""


class SessionLost(UmaServeError):
    """The server was reached again but does not know the session any more; load the structure again."""
