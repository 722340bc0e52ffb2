"""What can go wrong, in words a person can act on.

    LlamaProjError
    ├── InvalidInput        400  the request itself is wrong
    │   └── NotStorable     400  the database can't hold what it says
    ├── NotAuthenticated    401  nobody, or a key that isn't valid
    ├── NotAllowed          403  somebody, but not allowed
    ├── NotFound            404  doesn't exist, or not for you
    ├── Conflict            409  the thing's state forbids it now
    ├── TooManyRequests     429  a limit; `retry_after` says when
    └── Unavailable         503  not now; `retry_after` says when

Domain code raises these (or an app's own subclass); each door translates them once. The docstring of a class is its
default message.
"""


class LlamaProjError(Exception):
    """Something went wrong."""

    code = "error"
    status = 500

    def __init__(
        self, message: str = "", *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.param = param
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        """One sentence for the person who asked."""
        return str(self)


class InvalidInput(LlamaProjError):
    """The request can't be understood."""

    code = "invalid_request"
    status = 400


class NotStorable(InvalidInput):
    """A value is too large, or has a character that can't be kept, such as NUL."""


class NotAuthenticated(LlamaProjError):
    """Sign in, or send a valid API key."""

    code = "not_authenticated"
    status = 401


class NotAllowed(LlamaProjError):
    """You are not allowed to do this."""

    code = "not_allowed"
    status = 403


class NotFound(LlamaProjError):
    """There is no such thing here."""

    code = "not_found"
    status = 404


class Conflict(LlamaProjError):
    """This can't be done in the present state."""

    code = "conflict"
    status = 409


class TooManyRequests(LlamaProjError):
    """Too many requests; try again later."""

    code = "rate_limited"
    status = 429


class Unavailable(LlamaProjError):
    """The service can't do this right now; try again shortly."""

    code = "unavailable"
    status = 503
