"""Rows for a served model whose replica a test runs itself, and an orderly end of asking it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from django.utils import timezone

from gateway import admission
from gateway.upstream import close_session
from models_admin.models import Instance, ModelFile, Node, ServedModel
from models_admin.secret_box import seal
from models_admin.states import InstanceState


def serve(base_url: str, api_key: str, *, slug: str = "fake", replicas: int = 1) -> ServedModel:
    """A served model with one ready instance at `base_url`."""
    node, _ = Node.objects.get_or_create(name="test-node", defaults={"last_seen": timezone.now()})
    file, _ = ModelFile.objects.get_or_create(
        node=node, path=f"/models/{slug}.gguf", defaults={"size_bytes": 1, "modified_at": timezone.now()}
    )
    served, _ = ServedModel.objects.get_or_create(
        slug=slug, defaults={"name": slug.title(), "file": file, "desired_replicas": replicas}
    )
    add_replica(served, base_url, api_key)
    return served


def add_replica(served: ServedModel, base_url: str, api_key: str) -> Instance:
    """One more ready instance."""
    return Instance.objects.create(
        served=served,
        node=Node.objects.get(name="test-node"),
        state=InstanceState.READY,
        port=urlsplit(base_url).port,
        api_key_encrypted=seal(api_key),
        ready_at=timezone.now(),
    )


@asynccontextmanager
async def gate_left_in_order() -> AsyncIterator[None]:
    """At the end of the block this process leaves the gate and its replicas' connections, as at its own end."""
    try:
        yield
    finally:
        await admission.stop()
        await close_session()
