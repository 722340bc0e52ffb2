"""The pieces of HTML that pages include, answers to forms carry, and the socket pushes: one template, three ways."""

from collections.abc import Mapping
from dataclasses import dataclass

from django.template.loader import render_to_string

from accounts.models import User
from llamaproj import env
from models_admin import access, notes, overview, remedies
from models_admin.engine import instance_log
from models_admin.models import Instance, InstanceChange, ModelFile, Node, PortalConfig, ServedModel
from models_admin.states import ALIVE
from models_admin.states import InstanceState as S

_TIMELINE = 15
_CHOICES = 500
# Processes whose logs may be chosen, and how much of them.
_PROCESSES = 12
LOG_LINES = (50, 200, instance_log.TAIL_LINES)


def model(user: User, served: ServedModel) -> str:
    """A model's card."""
    return _render("_model.html", user, model=overview.of(served))


def models(user: User) -> str:
    """All cards."""
    return _render("_models.html", user, **models_context(user))


def models_context(user: User) -> dict[str, object]:
    """What `_models.html` shows."""
    portal = PortalConfig.current()
    return {"models": [overview.of(served, portal) for served in access.visible(user)]}


def files(user: User) -> str:
    """The table of files."""
    return _render("_files.html", user, **files_context())


def files_context() -> dict[str, object]:
    """What `_files.html` shows."""
    return {
        "files": ModelFile.objects.listed()[:_CHOICES],
        "more_files": max(0, ModelFile.objects.count() - _CHOICES),
        "many_nodes": Node.objects.count() > 1,
        "folders": env.MODELS_DIRS,
    }


def head(user: User, served: ServedModel) -> str:
    """The head of a model's own page."""
    return _render("_head.html", user, model=overview.of(served))


def replicas(user: User, served: ServedModel) -> str:
    """The instances and the timeline on a model's own page."""
    return _render("_replicas.html", user, **replicas_context(served))


def replicas_context(served: ServedModel) -> dict[str, object]:
    """What `_replicas.html` shows."""
    changes = InstanceChange.objects.filter(instance__served=served).select_related("instance__node")
    timeline = [(change, overview.WORDS[S(change.new)]) for change in changes[:_TIMELINE]]
    return {"model": overview.of(served), "timeline": timeline}


@dataclass(frozen=True)
class LogChoice:
    """Which replica's log somebody reads (empty: the newest one's), and how many lines of it."""

    replica: str = ""
    lines: int = LOG_LINES[1]

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "LogChoice":
        """The choice in a page's query; what is none is the default."""
        lines = query.get("lines", "")
        known = {str(count): count for count in LOG_LINES}
        return cls(query.get("replica", ""), known.get(lines, cls.lines))


def log(user: User, served: ServedModel, choice: LogChoice) -> str:
    """The last lines of one of the model's processes."""
    return _render("_log.html", user, **log_context(served, choice))


def log_choice(user: User, served: ServedModel, choice: LogChoice) -> str:
    """Which logs there are to choose from."""
    return _render("_log_choice.html", user, **log_context(served, choice))


def log_context(served: ServedModel, choice: LogChoice) -> dict[str, object]:
    """What `_log.html` and `_log_choice.html` show: of the processes that ran last, whether they still run or not."""
    started = Instance.objects.filter(served=served).exclude(started_at=None).select_related("node", "served")
    processes = list(started.order_by("-started_at", "-created_at")[:_PROCESSES])
    chosen = next((one for one in processes if str(one.pk) == choice.replica), None)
    instance = chosen or (processes[0] if processes else None)
    lines = notes.log_of(instance.pk)[-choice.lines :] if instance else []
    return {
        "served": served,
        "instance": instance,
        "runs": instance is not None and instance.state in ALIVE,
        "processes": [(one, overview.word_of(one)) for one in processes],
        "lines": [(instance_log.level_of(line), line) for line in lines],
        "choice": choice,
        "line_counts": LOG_LINES,
    }


def slots(user: User, served: ServedModel) -> str:
    """What the slots of the model's replicas do."""
    return _render("_slots.html", user, **slots_context(served))


def slots_context(served: ServedModel) -> dict[str, object]:
    """What `_slots.html` shows."""
    ready = served.instances.filter(state=S.READY).select_related("node", "served__external")
    listed = [(instance, notes.slots_of(instance.pk)) for instance in ready]
    return {"replicas_slots": [(instance, slots) for instance, slots in listed if slots]}


def diagnosis(user: User, served: ServedModel) -> str:
    """Why the model's replicas don't come up, and what may help."""
    return _render("_diagnosis.html", user, **diagnosis_context(served))


def diagnosis_context(served: ServedModel) -> dict[str, object]:
    """What `_diagnosis.html` shows."""
    return {"served": served, "troubles": remedies.troubles(served)}


def target(served_pk: int) -> str:
    """The selector of a model's card."""
    return f"#model-{served_pk}"


def _render(template: str, user: User, **context: object) -> str:
    manager = access.may_manage(user)
    return render_to_string(f"models_admin/{template}", {"user": user, "manager": manager, **context})
