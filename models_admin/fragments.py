"""The pieces of HTML that pages include, answers to forms carry, and the socket pushes: one template, three ways."""

from django.template.loader import render_to_string

from accounts.models import User
from models_admin import access, notes, overview
from models_admin.models import Instance, InstanceChange, ModelFile, PortalConfig, ServedModel
from models_admin.states import InstanceState as S

_TIMELINE = 15
_CHOICES = 500


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
    return {"files": ModelFile.objects.select_related("node").prefetch_related("served")[:_CHOICES]}


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


def log(user: User, served: ServedModel) -> str:
    """The last lines of a model's newest process."""
    return _render("_log.html", user, **log_context(served))


def log_context(served: ServedModel) -> dict[str, object]:
    """What `_log.html` shows: the process that ran last, whether it still runs or not."""
    newest = (
        Instance.objects.filter(served=served).order_by("-started_at", "-created_at").exclude(started_at=None)
    )
    instance = newest.first()
    return {"served": served, "instance": instance, "lines": notes.log_of(instance.pk) if instance else []}


def target(served_pk: int) -> str:
    """The selector of a model's card."""
    return f"#model-{served_pk}"


def _render(template: str, user: User, **context: object) -> str:
    manager = access.may_manage(user)
    return render_to_string(f"models_admin/{template}", {"user": user, "manager": manager, **context})
