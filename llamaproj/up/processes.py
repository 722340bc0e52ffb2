"""The portal's own processes, as programs for the supervisor."""

import sys

from llamaproj import env
from llamaproj.up.program import Program

_FIRST = {"web", "node"}
_PYTHON = (sys.executable, "-m")
_CELERY = (*_PYTHON, "celery", "-q", "-A", "llamaproj")
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


def first() -> list[Program]:
    """What answers people and runs models: started first, because loading takes a processor for seconds."""
    return [program for program in _portal() if program.name in _FIRST]


def later() -> list[Program]:
    """The rest, started when the first answer."""
    return [program for program in _portal() if program.name not in _FIRST]


def node(address: str) -> Program:
    """This machine's node worker, whose llama-servers listen at `address`."""
    argv = [*_CELERY, "worker", "-P", "threads", "-c", "4", "-Q", f"node.{env.NODE_NAME}"]
    return Program(
        name="node",
        argv=[*argv, "-n", f"node@{env.NODE_NAME}", *_QUIET],
        env=_environment() | {"NODE_NAME": env.NODE_NAME, "NODE_ADDRESS": address},
    )


def _portal() -> list[Program]:
    """Every process of the portal on this machine."""
    # What nobody waits for yields to what writes answers, and to a model that is being loaded.
    yielding = ["nice", "-n", "10"]
    argvs = {
        "web": [*_PYTHON, *_server()],
        "generator": [*_PYTHON, "llamaproj.cli", "generator"],
        "worker": [
            *(*yielding, *_CELERY, "worker", "-P", "threads", "-c", "2", "-Q", "default"),
            *("-n", f"worker@{env.NODE_NAME}", *_QUIET),
        ],
        "beat": [*yielding, *_CELERY, "beat", "--pidfile="],
    }
    programs = [Program(name=name, argv=argv, env=_environment()) for name, argv in argvs.items()]
    return [*programs, node(env.NODE_ADDRESS)]


def _environment() -> dict[str, str]:
    """What all our processes are given besides the environment of the supervisor."""
    common = {
        "DJANGO_SETTINGS_MODULE": "llamaproj.settings",
        "PYTHONUNBUFFERED": "1",
        # Celery advises against running as root in many lines, for each worker; in a container root is common.
        "PYTHONWARNINGS": "ignore:::celery.platforms",
    }
    if not env.LOG_FORMAT and sys.stdout.isatty():
        # The children write into a pipe, but a person reads it.
        common["LOG_FORMAT"] = "console"
    return common


def _server() -> list[str]:
    """The ASGI server, as arguments of `python -m`."""
    host, port = env.HOST, str(env.PORT)
    if env.ASGI_SERVER == "daphne":
        return ["daphne", "-v", "0", "-b", host, "-p", port, "llamaproj.asgi:application"]
    if env.ASGI_SERVER == "granian":
        return [
            "granian",
            "--interface",
            "asginl",
            "--host",
            host,
            "--port",
            port,
            "llamaproj.asgi:application",
        ]
    # Deflating each small frame costs half again as much as sending it; a frame of a page is a message of text.
    frames = ["--ws-per-message-deflate", "false", "--ws-max-size", str(2 * 1024 * 1024)]
    # A connection that is used again costs a program no handshake; longer than proxies keep theirs (nginx: 60 s), so
    # that none sends a request into a connection that closes.
    options = ["--no-access-log", "--timeout-keep-alive", "75", "--timeout-graceful-shutdown", "2", *frames]
    return ["uvicorn", *options, "--host", host, "--port", port, "llamaproj.asgi:application"]
