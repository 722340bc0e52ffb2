"""Whether and how much a replica is used, read off the replica itself: no request can be missed or counted twice."""

from datetime import datetime

from models_admin import demand, events, notes
from models_admin.engine.probe import Activity
from models_admin.models import Instance


def observe(instance: Instance, seen: Activity | None, now: datetime) -> bool:
    """Note what a ready replica says it does. True if it works, or has worked since the last look."""
    if seen is None:
        return False
    slots = int(instance.launched.get("slots", 1))
    demand.report(instance.pk, demand.Report(slots=slots, busy=seen.busy, queued=seen.queued))
    if notes.tell_written(instance.pk, seen.predicted_tokens, now.timestamp()):
        events.instance_worked(instance.served_id, instance.pk)
    worked = demand.has_done_more(instance.pk, seen.prompt_tokens + seen.predicted_tokens)
    return worked or seen.busy > 0 or seen.queued > 0
