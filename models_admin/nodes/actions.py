"""What people do with nodes. Each verb is one transaction with its audit row; the scheduler follows."""

from typing import Any

from django.db import transaction

from accounts import audit
from accounts.models import User
from llamaproj.errors import Conflict, InvalidInput
from models_admin import tasks
from models_admin.models import ModelFile, Node, ServedModel

_CHANGEABLE = frozenset({"labels", "memory_limit_bytes", "accepts_replicas"})


@transaction.atomic
def accept(node: Node, accepts: bool, *, by: User | None) -> None:
    """Place replicas there, or nothing new any more: what runs there goes on either way."""
    change(node, by=by, accepts_replicas=accepts)


@transaction.atomic
def change(node: Node, *, by: User | None, **fields: Any) -> None:
    """Set labels, memory_limit_bytes (None: as much as there is, less the reserve), accepts_replicas.

    Raises `InvalidInput`, and `ValidationError` for labels that aren't short words.
    """
    if unknown := fields.keys() - _CHANGEABLE:
        raise TypeError(f"a person doesn't set a node's {min(unknown)}")
    if (fields.get("memory_limit_bytes") or 0) < 0:
        raise InvalidInput("Less than nothing can't be given to models.", param="memory_limit_bytes")
    node = Node.objects.select_for_update().get(pk=node.pk)
    changed = {name: value for name, value in fields.items() if getattr(node, name) != value}
    if not changed:
        return
    for name, value in changed.items():
        setattr(node, name, value)
    node.clean_fields(exclude=[field.name for field in Node._meta.fields if field.name not in changed])
    # Only these: its worker writes the others every few seconds.
    node.save(update_fields=list(changed))
    audit.record(by, "node.change", node, **changed)
    transaction.on_commit(tasks.wake_all)


@transaction.atomic
def remove(node: Node, *, by: User | None) -> None:
    """Forget a silent node with its replicas and files. It is back as soon as its worker runs again.

    Models served from its files go on from the same content elsewhere. Raises `Conflict` where there is none, or where
    the node is alive.
    """
    node = Node.objects.select_for_update().get(pk=node.pk)
    if node.is_alive:
        raise Conflict(f"{node.name} is alive; stop its worker first.")
    orphans = []
    for served in ServedModel.objects.filter(file__node=node).select_related("file"):
        assert served.file is not None, "filtered by its file"
        same = ModelFile.objects.filter(content_id=served.file.content_id, missing=False, error="").exclude(
            node=node
        )
        other = same.first() if served.file.content_id else None
        if other is None:
            orphans.append(served.name)
        else:
            ServedModel.objects.filter(pk=served.pk).update(file=other)
    if orphans:
        raise Conflict(
            f"Only {node.name} has the files of {', '.join(orphans)}; copy them to another machine, or remove the"
            f" {'model' if len(orphans) == 1 else 'models'} first."
        )
    audit.record(by, "node.remove", node)
    node.delete()
    transaction.on_commit(tasks.wake_all)
