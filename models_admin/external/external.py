"""External servers, watched: what they offer, and the one instance of each model that is served from them.

`check` asks a server and notes what it says; `settle` moves a model's instance to what was last noted. Both may run
twice, late, or at the same time as another.

    stopped ─▶ pending ─▶ starting ─▶ ready ◀─▶ unreachable
       ▲        (while nothing is known)  │          │
       └──────────────────────────────────┴──────────┘ (model or server switched off)
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta

import structlog
from asgiref.sync import async_to_sync
from django.core.cache import cache
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.text import slugify
from redis import RedisError

from models_admin import events
from models_admin.engine import launch_rules
from models_admin.external import probe as external_probe
from models_admin.external.probe import Finding
from models_admin.models import ExternalServer, Instance, InstanceChange, ServedModel
from models_admin.states import MOVES
from models_admin.states import InstanceState as S

log = structlog.get_logger(__name__)

# Somebody may wait for a server that is back, so the pause never gets long.
_FIRST_PAUSE_S = 15.0
_LONGEST_PAUSE_S = 60.0
_FAILURES_KEPT_S = 3600
# A server that comes and goes writes a line each time.
_KEPT_CHANGES = 200
_BIRTH = (S.STOPPED, S.PENDING, S.STARTING)


def check(server: ExternalServer) -> Finding:
    """Ask the server, note what it says, and settle its models. Takes seconds where it doesn't answer."""
    key = server.api_key
    if server.has_key and not key:
        finding = Finding(
            server.base_url,
            problem="Its key can't be read any more, because SECRET_KEY has changed; type it again.",
        )
    else:
        finding = async_to_sync(external_probe.ask)(server.base_url, key)
    told: dict[str, object] = {
        "healthy": finding.healthy,
        "problem": finding.problem,
        "checked_at": timezone.now(),
    }
    if finding.healthy:
        told |= {"models_offered": list(finding.models), "base_url": finding.base_url}
    # Whoever changed the server meanwhile asked something else.
    same = ExternalServer.objects.filter(
        pk=server.pk, base_url=server.base_url, api_key_encrypted=bytes(server.api_key_encrypted)
    )
    if not same.update(**told):
        return finding
    _count_failure(server.pk, failed=not finding.healthy)
    if finding.healthy != server.healthy:
        log.info("external server", server=server.name, healthy=finding.healthy, problem=finding.problem)
    settle_all(server.pk)
    return finding


def describe(server: ExternalServer, finding: Finding) -> str:
    """What a check of the server found, in a sentence or two."""
    if not finding.healthy:
        return f"{server.name}: {finding.problem}"
    count = len(finding.models)
    said = f"{server.name} answers and offers {count} model{'' if count == 1 else 's'}."
    if finding.base_url != server.base_url:
        said += f" Its address was completed to {finding.base_url}."
    return said


def is_due(server: ExternalServer) -> bool:
    """True where it is time to ask again: at once after a change, less and less often while it fails."""
    if server.checked_at is None or server.healthy:
        return True
    # A little less than the clock's own tick, which is never exact.
    pause = min(_FIRST_PAUSE_S * 2 ** max(0, _failures(server.pk) - 1), _LONGEST_PAUSE_S) - 1
    return timezone.now() - server.checked_at >= timedelta(seconds=pause)


def settle_all(server_pk: int) -> None:
    """Settle every model served from the server."""
    for pk in ServedModel.objects.filter(external=server_pk).values_list("pk", flat=True):
        settle(pk)


@transaction.atomic
def settle(served_pk: int) -> None:
    """Bring the model's one instance to where its server's last check puts it. Models from files are left alone."""
    served = ServedModel.objects.select_for_update().filter(pk=served_pk, external__isnull=False).first()
    if served is None or served.external is None:
        return
    server = served.external
    wanted = served.enabled and server.enabled
    if served.desired_replicas != int(wanted):
        served.desired_replicas, served.desired_since = int(wanted), timezone.now()
        served.save(update_fields=["desired_replicas", "desired_since"])
        transaction.on_commit(lambda: events.served_changed(served.pk))
    instance = served.instances.first()
    if instance is None:
        if not wanted:
            return
        instance = Instance.objects.create(served=served)
    state, reason = _right_state(served, server)
    for step in _steps(S(instance.state), state):
        up = {"started_at": timezone.now(), "ready_at": timezone.now()} if step == S.READY else {}
        if not instance.move_to(step, reason if step == state else f"Asking {server.name}.", **up):
            return
    if instance.state == state and instance.reason != reason:
        Instance.objects.filter(pk=instance.pk).update(reason=reason)
        transaction.on_commit(lambda: events.instance_changed(served.pk, instance.pk))
    kept = instance.changes.values("pk")[:_KEPT_CHANGES]
    InstanceChange.objects.filter(instance=instance).exclude(pk__in=kept).delete()


def _right_state(served: ServedModel, server: ExternalServer) -> tuple[S, str]:
    if not server.enabled:
        return S.STOPPED, f"The server {server.name} is switched off."
    if not served.enabled:
        return S.STOPPED, "Stopped."
    if server.healthy is None:
        return S.STARTING, f"Asking {server.name}."
    if not server.healthy:
        return S.UNREACHABLE, f"{server.name}: {server.problem}"
    if served.external_name not in server.models_offered:
        return S.UNREACHABLE, f"{server.name} doesn't offer {served.external_name} at the moment."
    return S.READY, "Ready for requests."


def _steps(old: S, new: S) -> tuple[S, ...]:
    """The legal way from one state to the other, through a new start where there is no direct one."""
    if old == new or (new == S.STARTING and old in {S.READY, S.UNREACHABLE}):
        # What was asked anew keeps its state until there is an answer.
        return ()
    if new in MOVES[old]:
        return (new,)
    born = _BIRTH[_BIRTH.index(old) + 1 :] if old in _BIRTH else _BIRTH
    return (*born, *((new,) if new not in born else ()))


# What is offered ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """One server that offers a model, and what serves it from there."""

    server: ExternalServer
    served: ServedModel | None


@dataclass(frozen=True)
class Offer:
    """A model by its name, wherever it is offered. `twins` are models of the same name that are served from files."""

    name: str
    places: tuple[Place, ...]
    twins: tuple[ServedModel, ...]


def offers() -> list[Offer]:
    """What all servers that are switched on offer: each name once, with every place that has it."""
    servers = list(ExternalServer.objects.filter(enabled=True))
    served = {
        (one.external_id, one.external_name): one
        for one in ServedModel.objects.filter(external__isnull=False)
    }
    twins: dict[str, list[ServedModel]] = defaultdict(list)
    for one in ServedModel.objects.filter(file__isnull=False).select_related("file"):
        names = {
            one.slug,
            _slug_of(one.name),
            _slug_of(one.file.file_name.rsplit(".", 1)[0]) if one.file else "",
        }
        for name in names:
            twins[name].append(one)
    places: dict[str, list[Place]] = defaultdict(list)
    for server in servers:
        for name in server.models_offered:
            places[name].append(Place(server, served.get((server.pk, name))))
    return [
        Offer(name, tuple(found), tuple(twins.get(_slug_of(name), ())))
        for name, found in sorted(places.items(), key=lambda item: item[0].casefold())
    ]


def suggest_slug(server: ExternalServer, name: str) -> str:
    """A free short name for the server's model: its own; with the server's where another model has that already."""
    plain = _slug_of(name)[:60] or f"{slugify(server.name)[:30]}-model"
    suffixed = f"{plain}-{slugify(server.name)[:30] or 'external'}"
    taken = set(
        ServedModel.objects.filter(Q(slug=plain) | Q(slug__startswith=suffixed)).values_list(
            "slug", flat=True
        )
    )
    free, number = plain, 2
    while free in taken or free in launch_rules.reserved_slugs():
        free = suffixed if free == plain else f"{suffixed}-{number}"
        number += free != suffixed
    return free


def suggest_name(name: str) -> str:
    """What people may call a server's model: without whose it is and which version is meant anyway."""
    return name.rsplit("/", 1)[-1].removesuffix(":latest")[:120]


def _slug_of(name: str) -> str:
    """`ai/smollm2:135M-Q4_0` is smollm2-135m-q4_0; `llama3:latest` is llama3."""
    return slugify(suggest_name(name).replace(":", "-").replace(".", "-"))


# Failures are counted in Valkey: losing the count costs a few questions more.


def _count_failure(server_pk: int, *, failed: bool) -> None:
    try:
        if failed:
            cache.set(_failures_key(server_pk), _failures(server_pk) + 1, _FAILURES_KEPT_S)
        else:
            cache.delete(_failures_key(server_pk))
    except RedisError:
        return


def _failures(server_pk: int) -> int:
    try:
        return int(cache.get(_failures_key(server_pk), 0))
    except RedisError:
        return 0


def _failures_key(server_pk: int) -> str:
    return f"external-failures:{server_pk}"
