"""What is announced of monitoring, on the channel layer's group `monitoring`."""

from datetime import datetime
from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

GROUP = "monitoring"


def sample_taken(node_name: str, at: datetime, data: dict[str, Any]) -> None:
    """A node was sampled."""
    message = {"type": "monitoring.sample", "node": node_name, "at": at.isoformat(), "data": data}
    async_to_sync(get_channel_layer().group_send)(GROUP, message)
