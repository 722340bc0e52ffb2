"""Background work of monitoring. Every task may run twice, or late, or not at all."""

from celery import shared_task

from models_admin.models import Node
from monitoring import sampling
from monitoring.history import prune_samples

_EVERY_S = 2


@shared_task(ignore_result=True)
def tick() -> None:
    """Ask every living node for a sample; one that doesn't get to it before the next tick skips it."""
    for name in Node.objects.alive().values_list("name", flat=True):
        sample_node.apply_async(args=(name,), queue=f"node.{name}", expires=_EVERY_S)


@shared_task(ignore_result=True, acks_late=False)
def sample_node(name: str) -> None:
    """Sample this node."""
    sampling.sample(name)


@shared_task(ignore_result=True)
def prune() -> None:
    """Delete what is too old to be drawn."""
    prune_samples()
