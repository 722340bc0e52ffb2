"""Which running replicas a changed configuration makes outdated: they are replaced one after the other."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from models_admin.engine import launch_config
from models_admin.models import PortalConfig, ServedModel
from models_admin.states import InstanceState as S


@dataclass(frozen=True)
class Replacement:
    """Replicas of one model that run with other settings than the model has now."""

    served: ServedModel
    replicas: int


def count(served: ServedModel, portal: PortalConfig | None = None) -> int:
    """How many replicas of the model, as it is in memory, run with other settings."""
    config = launch_config.of(served, portal)
    return sum(
        one.state in {S.STARTING, S.READY} and launch_config.is_outdated(one, config)
        for one in served.instances.all()
    )


def is_under_way(served: ServedModel) -> bool:
    """True while the model's replicas are being replaced: old ones still run, or leave before a new one is ready."""
    config = launch_config.of(served)
    replicas = list(served.instances.current().select_related("file", "served__file"))
    outdated = {S(one.state) for one in replicas if launch_config.is_outdated(one, config)}
    fresh = {S(one.state) for one in replicas if not launch_config.is_outdated(one, config)}
    return bool(outdated & {S.STARTING, S.READY}) or (S.DRAINING in outdated and S.READY not in fresh)


def by_portal(portal: PortalConfig) -> list[Replacement]:
    """What the portal's configuration, as it is in memory, replaces."""
    rows = ServedModel.objects.exclude(file=None).select_related("file").prefetch_related("instances__file")
    found = (Replacement(served, count(served, portal)) for served in rows)
    return [one for one in found if one.replicas]


def in_words(replacements: Iterable[Replacement]) -> str:
    """A sentence; empty where nothing is replaced."""
    found = list(replacements)
    total = sum(one.replicas for one in found)
    if not total:
        return ""
    names = ", ".join(f"{one.served.name} ({one.replicas})" for one in found)
    what = f"{total} running replicas are" if total > 1 else "1 running replica is"
    how = " one after the other" if total > 1 else ""
    return f"{what} replaced{how}: {names}. Answers being written end first."


def digest(replacements: Iterable[Replacement], portal: PortalConfig | None = None) -> str:
    """Tells whether what somebody agreed to is still what would happen."""
    about = [
        [one.served.pk, one.replicas, launch_config.of(one.served, portal).snapshot()] for one in replacements
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
