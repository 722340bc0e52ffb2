"""What can go wrong between "this user wants this model" and a stream of tokens.

LlamaProjError
├── NotFound ── ModelNotFound         no such model, or none this person may use
├── InvalidInput
│   ├── ContextExceeded               the prompt doesn't fit the model's context
│   ├── UpstreamRefused               llama-server found the request wrong
│   └── NotSupported                  the model isn't launched for this, or its server doesn't know it
├── TooManyRequests ── LimitReached a limit of a key, person, team or model
├── Unavailable
│   ├── QueueFull                     more wait for the model than make sense
│   ├── NotServed                     (models_admin) nothing runs that could answer
│   └── UpstreamBusy                  an external server takes nothing more for now
├── CircularRoute                     portals serve each other's models in a circle
└── UpstreamLost                      the replica died, hung or answered garbage
"""

from llamaproj.errors import InvalidInput, LlamaProjError, NotFound, TooManyRequests, Unavailable


class ModelNotFound(NotFound):
    """There is no such model here."""

    code = "model_not_found"


class ContextExceeded(InvalidInput):
    """The text is longer than the model's context."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int | None = None, context_tokens: int | None = None) -> None:
        sizes = (
            f"The text is {prompt_tokens:,} tokens long, but this model reads at most {context_tokens:,}. "
            if prompt_tokens and context_tokens
            else "The text is longer than this model's context. "
        )
        super().__init__(sizes + "Shorten it or start a new chat.", param="messages")
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class UpstreamRefused(InvalidInput):
    """The model's server refused the request."""

    code = "invalid_request"


class NotSupported(InvalidInput):
    """This model can't do that."""

    code = "not_supported"


class UpstreamLost(LlamaProjError):
    """The model's server stopped answering."""

    code = "upstream_lost"
    status = 502


class UpstreamBusy(Unavailable):
    """The model's server takes no more requests at the moment; try again shortly."""

    code = "upstream_busy"


class CircularRoute(LlamaProjError):
    """This model is served from a portal that has it from this one. An administrator can untangle them."""

    code = "circular_route"
    status = 508


class LimitReached(TooManyRequests):
    """A limit is reached; try again later."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float | None = None, is_of_a_day: bool = False) -> None:
        super().__init__(message, retry_after=retry_after)
        if is_of_a_day:
            self.code = "insufficient_quota"


class QueueFull(Unavailable):
    """Too many requests wait for this model; try again later."""

    code = "queue_full"
