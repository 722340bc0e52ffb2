"""The web process: HTTP through Django, WebSockets through Channels."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "llamaproj.settings")

from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

from chat.consumers import ConversationConsumer
from llamaproj.origin import SameOrigin
from models_admin.consumers import ModelsConsumer
from models_admin.nodes.consumer import NodesConsumer
from monitoring.consumers import MonitoringConsumer

application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": SameOrigin(
            AuthMiddlewareStack(
                URLRouter(
                    [
                        path("ws/chat/<uuid:pk>/", ConversationConsumer.as_asgi()),
                        path("ws/models/", ModelsConsumer.as_asgi()),
                        path("ws/models/nodes/", NodesConsumer.as_asgi()),
                        path("ws/monitoring/", MonitoringConsumer.as_asgi()),
                    ]
                )
            )
        ),
    }
)
