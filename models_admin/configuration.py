"""What people do with the portal's configuration."""

from functools import partial
from typing import Any

from django.db import transaction

from accounts import audit
from accounts.models import User
from models_admin import events, tasks
from models_admin.engine import launch_rules
from models_admin.models import PortalConfig, ServedModel


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
