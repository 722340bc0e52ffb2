"""What people do with the portal's configuration and with machines: verbs like those of `actions`."""

from functools import partial
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction

from accounts import audit
from accounts.models import User
from llamaproj.errors import InvalidInput
from models_admin import events, launch_rules, tasks
from models_admin.models import Node, PortalConfig, ServedModel


@transaction.atomic
def change(*, by: User | None, **fields: Any) -> PortalConfig:
    """Set fields of the portal's configuration. Replicas that become outdated are replaced one after the other.

    Raises `InvalidInput`, also where a model could not be started with it.
    """
    portal = PortalConfig.objects.select_for_update().first() or PortalConfig.current()
    changed = {name: value for name, value in fields.items() if getattr(portal, name) != value}
    if not changed:
        return portal
    for name, value in changed.items():
        setattr(portal, name, value)
    launch_rules.check(portal)
    portal.save()
    audit.record(by, "config.change", "portal configuration", fields=sorted(changed))
    for pk in ServedModel.objects.values_list("pk", flat=True):
        transaction.on_commit(partial(events.served_changed, pk))
    transaction.on_commit(tasks.wake_all)
    return portal


@transaction.atomic
def change_node(node: Node, *, by: User | None, **fields: Any) -> Node:
    """Set what administrators say of a machine: address, labels, memory limit, whether it takes replicas.

    Raises `InvalidInput`.
    """
    node = Node.objects.select_for_update().get(pk=node.pk)
    changed = {name: value for name, value in fields.items() if getattr(node, name) != value}
    if not changed:
        return node
    for name, value in changed.items():
        setattr(node, name, value)
    if node.memory_limit_bytes is not None and node.memory_limit_bytes < 0:
        raise InvalidInput("A limit is no negative number.", param="memory_limit_bytes")
    try:
        node.clean_fields()
    except ValidationError as error:
        param, sentences = next(iter(error.message_dict.items()))
        raise InvalidInput(sentences[0], param=param) from None
    node.save(update_fields=list(changed))
    audit.record(by, "node.change", node, fields=sorted(changed))
    transaction.on_commit(tasks.wake_all)
    return node
