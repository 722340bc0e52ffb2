"""The chat's pages. Every action works as a plain form, without a socket."""

from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from accounts.access import person
from chat import actions
from chat.models import Conversation, Prompt
from chat.rendering import with_blocks
from llamaproj.errors import LlamaProjError, NotFound
from models_admin.models import Instance, ServedModel
from models_admin.states import InstanceState

_PAGE_MESSAGES = 50
_PAGE_CONVERSATIONS = 50
# States of replicas that say how the model is.
_READY = (InstanceState.READY,)
_COMING = (InstanceState.STARTING, InstanceState.BACKING_OFF)
_WAITING = (InstanceState.PENDING,)
_FAILED = (InstanceState.FAILED,)
_LOST = (InstanceState.UNREACHABLE,)
# The states of models, those first that one would rather choose.
_CHOICE = ("ready", "on demand", "starting", "waiting", "stopped", "out of reach", "failed")


@login_required
@require_GET
def index(request: HttpRequest) -> HttpResponse:
    """A new chat; `?prompt=` begins its first message with one of the library."""
    page = _page(request, None)
    wanted = request.GET.get("prompt", "")
    if wanted.isdecimal() and len(wanted) < 18:
        prompt = Prompt.objects.visible_to(person(request)).filter(pk=int(wanted)).first()
        page["draft"] = prompt.text if prompt else ""
    return render(request, "chat/page.html", page)


@login_required
@require_GET
def conversation(request: HttpRequest, pk: UUID) -> HttpResponse:
    """A conversation: its last messages, or those before number `?before=`."""
    return render(request, "chat/page.html", _page(request, _visible(request, pk)))


@login_required
@require_GET
def conversations(request: HttpRequest) -> HttpResponse:
    """All conversations, the newest first; `?q=` looks in the titles."""
    return _list(request, Conversation.objects.writable_by(person(request)))


@login_required
@require_GET
def shared(request: HttpRequest) -> HttpResponse:
    """What others share with one's teams, the newest first; `?q=` looks in the titles."""
    who = person(request)
    rows = Conversation.objects.visible_to(who).exclude(owner=who).select_related("owner", "shared_with")
    return _list(request, rows, others=True)


@login_required
@require_POST
def new(request: HttpRequest) -> HttpResponse:
    """Begin a conversation with its first message."""
    try:
        begun = actions.begin(
            owner=person(request), text=request.POST.get("text", ""), served=_chosen_model(request)
        )
    except LlamaProjError as error:
        return _refused(request, None, error)
    return redirect("conversation", begun.pk)


@login_required
@require_POST
def send(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Add a message."""
    found = _own(request, pk)
    try:
        actions.send(found, text=request.POST.get("text", ""), served=_chosen_model(request))
    except LlamaProjError as error:
        return _refused(request, found, error)
    return redirect("conversation", pk)


@login_required
@require_POST
def stop(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Stop whatever is being written."""
    for answer in _own(request, pk).messages.filter(
        generation__ended_at__isnull=True, generation__isnull=False
    ):
        actions.stop(answer)
    return redirect("conversation", pk)


@login_required
@require_POST
def retry(request: HttpRequest, pk: UUID, message: UUID) -> HttpResponse:
    """Write the last answer anew."""
    found = _own(request, pk)
    try:
        actions.retry(get_object_or_404(found.messages, pk=message))
    except LlamaProjError as error:
        return _refused(request, found, error)
    return redirect("conversation", pk)


@login_required
@require_POST
def rename(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Give a conversation another title."""
    found = _own(request, pk)
    try:
        actions.rename(found, title=request.POST.get("title", ""))
    except LlamaProjError as error:
        return _refused(request, found, error)
    return redirect("conversation", pk)


@login_required
@require_POST
def share(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Let a team read a conversation, or nobody any more."""
    found = _own(request, pk)
    wanted = request.POST.get("team", "")
    team = get_object_or_404(person(request).teams, pk=wanted) if wanted.isdecimal() else None
    actions.share(found, team)
    return redirect("conversation", pk)


@login_required
@require_POST
def delete(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Remove a conversation."""
    actions.delete(_own(request, pk))
    return redirect("index")


def _list(request: HttpRequest, rows: QuerySet[Conversation], *, others: bool = False) -> HttpResponse:
    wanted = request.GET.get("q", "").replace("\0", "").strip()
    if wanted:
        rows = rows.filter(title__icontains=wanted)
    page = Paginator(rows, _PAGE_CONVERSATIONS).get_page(request.GET.get("page"))
    return render(request, "chat/conversations.html", {"page": page, "q": wanted, "others": others})


def _visible(request: HttpRequest, pk: UUID) -> Conversation:
    return get_object_or_404(
        Conversation.objects.visible_to(person(request)).select_related("served", "owner", "shared_with"),
        pk=pk,
    )


def _own(request: HttpRequest, pk: UUID) -> Conversation:
    rows = Conversation.objects.writable_by(person(request))
    return get_object_or_404(rows.select_related("served", "owner", "shared_with"), pk=pk)


def _chosen_model(request: HttpRequest) -> ServedModel:
    slug = request.POST.get("model", "")
    served = ServedModel.objects.visible_to(person(request)).filter(slug=slug).first()
    if served is None:
        raise NotFound("Choose a model first." if not slug else f"There is no model {slug!r} here.")
    return served


def _refused(request: HttpRequest, found: Conversation | None, error: LlamaProjError) -> HttpResponse:
    """The page again, with what was typed and what was wrong with it."""
    page = _page(request, found) | {"error": error, "draft": request.POST.get("text", "")}
    return render(request, "chat/page.html", page, status=error.status)


def _page(request: HttpRequest, found: Conversation | None) -> dict[str, Any]:
    models = _models(request)
    context: dict[str, Any] = {
        "conversation": found,
        "messages": [],
        "models": models,
        "selected_model": _selected(found, models),
        "some_elsewhere": any(one["elsewhere"] for one in models),
        "has_older": False,
    }
    if found is not None:
        context["is_owner"] = found.owner_id == request.user.pk
        rows = found.messages.select_related("generation").order_by("-number")
        before = request.GET.get("before", "")
        if before.isdecimal() and len(before) < 10:
            rows = rows.filter(number__lt=int(before))
            context["newer_url"] = request.path
        shown = list(rows[: _PAGE_MESSAGES + 1])
        context["has_older"] = len(shown) > _PAGE_MESSAGES
        messages = with_blocks(reversed(shown[:_PAGE_MESSAGES]))
        context["messages"] = messages
        if context["has_older"]:
            context["older_url"] = f"{request.path}?before={messages[0].number}"
    return context


def _models(request: HttpRequest) -> list[dict[str, Any]]:
    """The models the person may choose, the ready ones first."""
    replicas = Instance.objects.filter(served=OuterRef("pk"))
    of_interest = {"ready": _READY, "coming": _COMING, "waiting": _WAITING, "failed": _FAILED, "lost": _LOST}
    rows = ServedModel.objects.visible_to(person(request)).annotate(
        **{name: Exists(replicas.filter(state__in=states)) for name, states in of_interest.items()}
    )
    columns = ("slug", "name", "external", "desired_replicas", "enabled", *of_interest)
    models = [
        {"slug": row["slug"], "name": row["name"], "ready": row["ready"], "state": _state(row)}
        | {"elsewhere": row["external"] is not None}
        for row in rows.values(*columns)
    ]
    return sorted(models, key=lambda one: (_CHOICE.index(one["state"]), one["name"].lower()))


def _state(row: dict[str, Any]) -> str:
    if row["ready"]:
        return "ready"
    if not row["desired_replicas"]:
        return "on demand" if row["enabled"] else "stopped"
    if row["coming"]:
        return "starting"
    if row["waiting"]:
        return "waiting"
    return "failed" if row["failed"] else "out of reach" if row["lost"] else "waiting"


def _selected(found: Conversation | None, models: list[dict[str, Any]]) -> str:
    slugs = [one["slug"] for one in models]
    if found is not None and found.served is not None and found.served.slug in slugs:
        return found.served.slug
    return slugs[0] if slugs else ""
