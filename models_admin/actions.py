"""What people do with models. Each verb is one transaction with its audit row; the node's worker makes it so."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify

from accounts import audit
from accounts.models import Team, User
from llamaproj.errors import Conflict, InvalidInput, NotFound
from models_admin import events, replacement, tasks
from models_admin.engine import launch_rules
from models_admin.errors import StillRunning
from models_admin.external import external
from models_admin.models import ModelFile, Node, ServedModel
from models_admin.states import InstanceState as S

DEMO_SLUG = "smollm2-135m-instruct"
_DEMO_FILE = "smollm2-135m-instruct"
_MOST_CONTEXT = 4096
_MOST_REPLICAS = 16


@transaction.atomic
def start(served: ServedModel, *, by: User | None) -> None:
    """Ask for a replica, and for another try where it has failed. Asking twice is asking once."""
    served = _locked(served)
    if served.file and served.file.obstacle:
        raise Conflict(f"This model can't be started: {served.file.obstacle}")
    if served.external and not served.external.enabled:
        raise Conflict(f"Its server {served.external.name} is switched off; switch that on first.")
    if served.enabled and served.desired_replicas and not served.instances.filter(state=S.FAILED).exists():
        return
    _want(served, max(1, served.min_replicas, served.desired_replicas))
    _try_again(served)
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
    """Replace every replica by a new one, one after the other where there is room for two.

    Asking again while they are being replaced is asking once.
    """
    served = _locked_of_ours(served)
    under_way = replacement.is_under_way(served)
    if under_way and not served.instances.filter(state=S.FAILED).exists():
        return
    for instance in served.instances.filter(state__in=[] if under_way else [S.STARTING, S.READY]):
        # What was launched otherwise than the model's settings say is replaced; this differs from any settings.
        instance.launched = {**instance.launched, "asked_again": timezone.now().isoformat()}
        instance.save(update_fields=["launched"])
    _try_again(served)
    _want(served, max(1, served.min_replicas, served.desired_replicas))
    audit.record(by, "model.restart", served)
    _announce(served)


@transaction.atomic
def scale(served: ServedModel, *, by: User | None, replicas: int, most: int | None = None) -> None:
    """Keep `replicas` running (0: load it when somebody asks for it), and up to `most` when many wait.

    Starts what is stopped. Raises `InvalidInput`.
    """
    most = max(replicas, 1) if most is None else most
    if not 0 <= replicas <= _MOST_REPLICAS or not max(replicas, 1) <= most <= _MOST_REPLICAS:
        raise InvalidInput(
            f"A model has 0 to {_MOST_REPLICAS} replicas, and no fewer at most than at least.",
            param="replicas",
        )
    served = _locked_of_ours(served)
    served.min_replicas, served.max_replicas = replicas, most
    served.save(update_fields=["min_replicas", "max_replicas"])
    _want(served, replicas, enabled=True)
    audit.record(by, "model.scale", served, replicas=replicas, most=most)
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
    if file.obstacle:
        raise Conflict(f"No model can be served from this file. {file.obstacle}")
    suggested = suggest(file)
    slug = slug or str(suggested["slug"])
    if ServedModel.objects.filter(slug=slug).exists():
        raise Conflict(f"There is a model with the short name {slug} already.", param="slug")
    fields.setdefault("enabled", fields.get("desired_replicas", 0) > 0)
    if fields["enabled"]:
        fields["desired_replicas"] = max(fields.get("desired_replicas", 0), fields.get("min_replicas", 1))
    served = ServedModel(
        file=file,
        slug=slug,
        name=name or str(suggested["name"]),
        **({"context_tokens": suggested["context_tokens"]} | fields),
    )
    launch_rules.check(served)
    served.save(force_insert=True)
    served.teams.set(teams)
    audit.record(by, "model.add", served, file=file.path)
    _announce(served)
    return served


@transaction.atomic
def change(
    served: ServedModel, *, by: User | None, teams: Iterable[Team] | None = None, **fields: Any
) -> ServedModel:
    """Set fields. Replicas that run with other settings are replaced one after the other. Returns the row as it is now.

    Compared with the row and not with `served`, which may be older: what somebody has stopped meanwhile stays stopped.
    """
    served = _locked(served)
    changed = {name: value for name, value in fields.items() if getattr(served, name) != value}
    names = sorted(changed)
    if teams is not None and set(teams) != set(served.teams.all()):
        served.teams.set(teams)
        names.append("teams")
    if not names:
        return served
    for name, value in changed.items():
        setattr(served, name, value)
    launch_rules.check(served)
    served.save(update_fields=list(changed))
    if served.enabled and not served.min_replicas <= served.desired_replicas <= served.max_replicas:
        wanted = min(max(served.desired_replicas, served.min_replicas), served.max_replicas)
        _want(served, wanted, enabled=True)
    audit.record(by, "model.change", served, fields=names)
    _announce(served)
    return served


@transaction.atomic
def remove(served: ServedModel, *, by: User | None) -> None:
    """Serve it no more; its file stays. Raises `StillRunning`."""
    served = _locked(served)
    running = served.instances.exclude(state__in=[S.STOPPED, S.FAILED, S.PENDING, S.BACKING_OFF])
    if served.desired_replicas or running.exists() or served.instances.filter(pid__isnull=False).exists():
        raise StillRunning(f"{served.name} runs, or waits to; stop it first.")
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
    files = ModelFile.objects.servable().filter(node=node, path__icontains=_DEMO_FILE)
    file = files.first()
    served = ServedModel.objects.select_related("file__node").filter(slug=DEMO_SLUG).first()
    if served is not None:
        if file and served.file and served.file.node != node and not served.file.node.is_alive:
            # The machine has another name now, as a container has after each start.
            return change(served, by=None, file=file)
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


def _try_again(served: ServedModel) -> None:
    for instance in served.instances.filter(state=S.FAILED):
        instance.move_to(S.PENDING, "Waiting to be started.", crashes=0, faults=0, node=None)


def _want(served: ServedModel, replicas: int, *, enabled: bool | None = None) -> None:
    served.enabled = replicas > 0 if enabled is None else enabled
    if served.desired_replicas != replicas:
        served.desired_replicas, served.desired_since = replicas, timezone.now()
    served.save(update_fields=["enabled", "desired_replicas", "desired_since"])


def _locked(served: ServedModel) -> ServedModel:
    rows = ServedModel.objects.select_for_update(of=("self",)).select_related("file__node")
    found = rows.filter(pk=served.pk).first()
    if found is None:
        raise NotFound(f"Somebody has just removed {served.name}.")
    return found


def _locked_of_ours(served: ServedModel) -> ServedModel:
    served = _locked(served)
    if served.external:
        raise Conflict(f"{served.name} runs on {served.external.name}; its processes aren't this portal's.")
    return served


def _announce(served: ServedModel) -> None:
    if served.external_id is not None:
        external.settle(served.pk)
    transaction.on_commit(partial(events.served_changed, served.pk))
    transaction.on_commit(tasks.wake_all)
