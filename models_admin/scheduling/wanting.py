"""How many replicas of a model are wanted: it follows those who wait and those who stay away."""

from models_admin import demand, scaling
from models_admin.models import ServedModel
from models_admin.scheduling.world import World, want
from models_admin.states import InstanceState as S


def follow_demand(world: World, served: ServedModel) -> None:
    """Let the number of replicas wanted follow those who wait and those who don't come any more."""
    if not served.enabled:
        return
    asked = world.is_asked[served.pk]
    policy = scaling.Policy(
        least=served.min_replicas,
        most=max(served.max_replicas, served.min_replicas, 1),
        idle_timeout_s=served.idle_timeout_s or world.portal.idle_timeout_s,
        pinned=served.pinned,
    )
    wanted = scaling.target(served.desired_replicas, _load(world, served, policy), policy, asked=asked)
    if (
        served.on_demand
        and not asked
        and not served.pinned
        and not _serves(world, served)
        and (world.now - served.desired_since).total_seconds() > policy.up_after_s * 5
    ):
        # Whoever it was to be loaded for has gone.
        wanted = 0
    if wanted != served.desired_replicas:
        want(served, wanted, "asked for" if asked else "load")


def _load(world: World, served: ServedModel, policy: scaling.Policy) -> scaling.Load:
    ready = [one for one in world.replicas[served.pk] if one.state == S.READY]
    reports = [one.report for one in ready if one.report]
    idle = [one.idle_s(world.now) for one in ready]
    now = world.now.timestamp()
    # The gateway keeps its requests in a line of its own; others' wait in the replicas'.
    queued = sum(report.queued for report in reports) + demand.waiting_for(served.pk)
    load = scaling.Load(
        ready=len(ready),
        slots=sum(report.slots for report in reports),
        busy=sum(report.busy for report in reports),
        queued=queued,
        queued_for_s=0.0,
        calm_for_s=0.0,
        idle_s=min((one or 0.0 for one in idle), default=0.0),
    )
    if policy.most == 1 and len(ready) < 2:
        return load
    calm = scaling.is_calm(load, policy)
    return scaling.Load(
        **vars(load)
        | {
            "queued_for_s": demand.held_for(f"queued:{served.pk}", queued > 0, now),
            "calm_for_s": demand.held_for(f"calm:{served.pk}", calm, now),
        }
    )


def _serves(world: World, served: ServedModel) -> bool:
    """True unless its replicas, if there are any, have only been waited for."""
    return any(one.state != S.PENDING for one in world.replicas[served.pk])
