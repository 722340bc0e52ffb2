"""What people do with models. Each verb is one transaction with its audit row; the node's worker makes it so."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify

from accounts import audit
from accounts.models import Team, User
from llamaproj.errors import Conflict, InvalidInput
from models_admin import events, launch, tasks
from models_admin.errors import StillRunning
from models_admin.models import ModelFile, Node, ServedModel
from models_admin.states import InstanceState as S

DEMO_SLUG = "smollm2-135m-instruct"
_DEMO_FILE = "smollm2-135m-instruct"
_MOST_CONTEXT = 4096


@transaction.atomic
def start(served: ServedModel, *, by: User | None) -> None:
    """Ask for a replica, and for another try where it has failed. Asking twice is asking once."""
    served = _locked(served)
    if served.file and served.file.error:
        raise Conflict(f"This model's file can't be served: {served.file.error}")
    failed = list(served.instances.filter(state=S.FAILED))
    if served.enabled and served.desired_replicas and not failed:
        return
    _want(served, max(1, served.min_replicas, served.desired_replicas))
    for instance in failed:
        instance.move_to(S.PENDING, "Waiting to be started.", crashes=0)
    audit.record(by, "model.start", served)
    _announce(served)


@transaction.atomic
def stop(served: ServedModel, *, by: User | None) -> None:
    """Want no replica any more. Answers being written may end first, for a while."""
    served = _locked(served)
    if not served.enabled and not served.desired_replicas:
        return
    _want(served, 0)
    audit.record(by, "model.stop", served)
    _announce(served)


@transaction.atomic
def restart(served: ServedModel, *, by: User | None) -> None:
    """Replace every replica by a new one."""
    served = _locked(served)
    for instance in served.instances.filter(state__in=[S.STARTING, S.READY]):
        instance.move_to(S.DRAINING, "Being replaced by a new one.")
    for instance in served.instances.filter(state=S.FAILED):
        instance.move_to(S.PENDING, "Waiting to be started.", crashes=0)
    _want(served, max(1, served.min_replicas, served.desired_replicas))
    audit.record(by, "model.restart", served)
    _announce(served)


@transaction.atomic
def add(
    file: ModelFile,
    *,
    by: User | None,
    slug: str = "",
    name: str = "",
    teams: Iterable[Team] = (),
    **fields: Any,
) -> ServedModel:
    """Serve a file under a name of its own. No team: for everybody. Raises `InvalidInput` or `Conflict`."""
    if file.error:
        raise Conflict(f"This file can't be served: {file.error}")
    if file.missing:
        raise Conflict("This file isn't there any more.")
    suggested = suggest(file)
    slug = slug or str(suggested["slug"])
    if ServedModel.objects.filter(slug=slug).exists():
        raise InvalidInput(f"There is a model with the short name {slug} already.", param="slug")
    launch.check_extra_flags(fields.get("extra_flags", []))
    fields.setdefault("enabled", fields.get("desired_replicas", 0) > 0)
    served = ServedModel.objects.create(
        file=file,
        slug=slug,
        name=name or str(suggested["name"]),
        **({"context_tokens": suggested["context_tokens"]} | fields),
    )
    served.teams.set(teams)
    audit.record(by, "model.add", served, file=file.path)
    _announce(served)
    return served


@transaction.atomic
def change(
    served: ServedModel, *, by: User | None, teams: Iterable[Team] | None = None, **fields: Any
) -> ServedModel:
    """Set fields. A replica that runs keeps its command line until it is started anew."""
    launch.check_extra_flags(fields.get("extra_flags", served.extra_flags))
    changed = {name: value for name, value in fields.items() if getattr(served, name) != value}
    names = sorted(changed)
    if teams is not None and set(teams) != set(served.teams.all()):
        served.teams.set(teams)
        names.append("teams")
    if not names:
        return served
    for name, value in changed.items():
        setattr(served, name, value)
    served.save(update_fields=list(changed))
    audit.record(by, "model.change", served, fields=names)
    _announce(served)
    return served


@transaction.atomic
def remove(served: ServedModel, *, by: User | None) -> None:
    """Serve it no more; its file stays. Raises `StillRunning`."""
    served = _locked(served)
    running = served.instances.exclude(state__in=[S.STOPPED, S.FAILED, S.PENDING, S.BACKING_OFF])
    if served.desired_replicas or running.exists() or served.instances.filter(pid__isnull=False).exists():
        raise StillRunning(f"{served.name} is running; stop it first.")
    audit.record(by, "model.remove", served)
    pk = served.pk
    served.delete()
    transaction.on_commit(partial(events.served_changed, pk))


def scan(*, by: User | None) -> None:
    """Have every living node read its model folders."""
    audit.record(by, "model-files.scan", "all nodes")
    for name in Node.objects.alive().values_list("name", flat=True):
        tasks.ask_scan(name)


@transaction.atomic
def install_demo(node: Node) -> ServedModel | None:
    """Serve the demo model, unless it is served already: what people made of it since is theirs.

    None where its file isn't there.
    """
    files = ModelFile.objects.filter(node=node, missing=False, error="", path__icontains=_DEMO_FILE)
    file = files.first()
    served = ServedModel.objects.select_related("file__node").filter(slug=DEMO_SLUG).first()
    if served is not None:
        if file and served.file and served.file.node != node and not served.file.node.is_alive:
            # The machine has another name now, as a container has after each start.
            change(served, by=None, file=file)
        return served
    if file is None:
        return None
    return add(
        file,
        by=None,
        slug=DEMO_SLUG,
        name="SmolLM2 135M Instruct",
        description="A small model to try the portal with. It answers fast and is often wrong.",
        context_tokens=_MOST_CONTEXT,
        slots=4,
        # Left alone it sometimes repeats itself until its context is full.
        answer_tokens=1024,
        desired_replicas=1,
    )


def suggest(file: ModelFile) -> dict[str, object]:
    """Sane values for serving a file: its own name, and no more context than it was trained for or memory likes."""
    stem = file.path.rsplit("/", 1)[-1].rsplit(".", 1)[0].removesuffix("-00001-of-00001")
    slug = slugify(stem.replace(".", "-"))[:90] or f"model-{file.pk}"
    free, number = slug, 2
    while ServedModel.objects.filter(slug=free).exists():
        free, number = f"{slug}-{number}", number + 1
    context = min(file.context_tokens or _MOST_CONTEXT, _MOST_CONTEXT)
    return {"slug": free, "name": (file.name or stem)[:120], "context_tokens": max(256, context)}


def _want(served: ServedModel, replicas: int) -> None:
    served.enabled = replicas > 0
    if served.desired_replicas != replicas:
        served.desired_replicas, served.desired_since = replicas, timezone.now()
    served.save(update_fields=["enabled", "desired_replicas", "desired_since"])


def _locked(served: ServedModel) -> ServedModel:
    return ServedModel.objects.select_for_update(of=("self",)).select_related("file__node").get(pk=served.pk)


def _announce(served: ServedModel) -> None:
    transaction.on_commit(partial(events.served_changed, served.pk))
    transaction.on_commit(tasks.wake_all)
