"""The web process: pages through Django, the OpenAI-compatible API beside it, WebSockets through Channels."""

import gc
import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "llamaproj.settings")

from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

from accounts.second_factor import SocketGate
from accounts.session_watch import SessionGate
from chat.consumers import ConversationConsumer
from gateway import admission, upstream
from gateway.openai import application as openai
from llamaproj.origin import SameOrigin
from models_admin.consumers import ModelsConsumer
from models_admin.nodes.consumer import NodesConsumer
from monitoring.consumers import MonitoringConsumer

# What is loaded by now stays; looking through it again and again delays every open stream. Pages leave some 440 objects
# each to the collector: it finds 2,000 in a millisecond, 50,000 in twenty, and all streams wait meanwhile.
_GC_THRESHOLDS = (2_000, 10, 100)


async def http(scope: Any, receive: Any, send: Any) -> None:
    """Programs' requests go past Django."""
    if openai.serves(scope["path"]):
        await openai.application(scope, receive, send)
    else:
        await django_application(scope, receive, send)


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    """What a server that says so does at its start and its end."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            gc.collect()
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
            await send({"type": "lifespan.startup.complete"})
        else:
            await admission.stop()
            await upstream.close_session()
            await send({"type": "lifespan.shutdown.complete"})
            return


application = ProtocolTypeRouter(
    {
        "http": http,
        "lifespan": lifespan,
        "websocket": SameOrigin(
            AuthMiddlewareStack(
                SocketGate(
                    SessionGate(
                        URLRouter(
                            [
                                path("ws/chat/<uuid:pk>/", ConversationConsumer.as_asgi()),
                                path("ws/models/", ModelsConsumer.as_asgi()),
                                path("ws/models/nodes/", NodesConsumer.as_asgi()),
                                path("ws/monitoring/", MonitoringConsumer.as_asgi()),
                            ]
                        )
                    )
                )
            )
        ),
    }
)
