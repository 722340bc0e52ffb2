"""What can go wrong with models.

LlamaProjError
├── Conflict ── IllegalMove      a state an instance can't go to from where it is
├── Conflict ── StillRunning     it must be stopped first
├── Conflict ── NameTaken        another machine has this node's name
├── Conflict ── HubRefused       the hub doesn't hand it out to us
├── NotFound ── NotOnHub         the hub doesn't know it
└── Unavailable
    ├── HubUnreachable           the hub doesn't answer, or not now
    ├── NotServed                the model has no replica that could answer
    ├── EngineMissing            this machine has no llama-server
    └── NoPort                   a replica can't listen where it is to
"""

from llamaproj.errors import Conflict, NotFound, Unavailable


class IllegalMove(Conflict):
    """An instance can't go from its state to that one."""

    code = "illegal_move"


class StillRunning(Conflict):
    """Stop the model first."""

    code = "model_running"


class NameTaken(Conflict):
    """Another machine is alive under this node's name."""

    code = "node_name_taken"


class HubRefused(Conflict):
    """The hub doesn't hand this out."""

    code = "hub_refused"


class NotOnHub(NotFound):
    """The hub doesn't have this."""

    code = "not_on_hub"


class HubUnreachable(Unavailable):
    """The model hub can't be reached; this machine may be offline."""

    code = "hub_unreachable"


class NotServed(Unavailable):
    """The model is not running."""

    code = "model_not_running"


class EngineMissing(Unavailable):
    """This machine has no llama-server: set LLAMA_SERVER_BIN or install the extra `embedded`."""

    code = "engine_missing"


class NoPort(Unavailable):
    """There is no port at which a replica could listen."""

    code = "no_port"
