"""A person's API keys, and those of the teams the person manages."""

from dataclasses import dataclass
from datetime import timedelta

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts import key_actions
from accounts.access import person
from accounts.models import ApiKey, Membership, Team, User
from accounts.settings.forms import KeyForm
from llamaproj.errors import LlamaProjError, NotFound

# A key that ends within so many days says so.
_SOON = timedelta(days=14)


@dataclass(frozen=True)
class ShownKey:
    """A key and how it stands."""

    key: ApiKey
    usable: bool
    word: str
    tone: str

    @classmethod
    def of(cls, key: ApiKey, usable: bool) -> "ShownKey":
        """In words."""
        now = timezone.now()
        if key.revoked_at is not None:
            return cls(key, usable, "revoked", "off")
        if key.expires_at is not None and key.expires_at <= now:
            return cls(key, usable, "expired", "off")
        if not usable:
            return cls(key, usable, "ended with its owner's membership", "off")
        if key.expires_at is not None and key.expires_at - now < _SOON:
            return cls(key, usable, "ends soon", "warn")
        return cls(key, usable, "in force", "ok")


@require_safe
@login_required
def index(request: HttpRequest) -> HttpResponse:
    """Those in force, and those that have ended. `?team=` shows one team's."""
    user = person(request)
    found = _manageable(user)
    team = _team(user, request.GET["team"]) if request.GET.get("team") else None
    if team is not None:
        found = ApiKey.objects.filter(team=team)
    usable = set(ApiKey.objects.usable().filter(pk__in=found.values("pk")).values_list("pk", flat=True))
    shown = [ShownKey.of(key, key.pk in usable) for key in found.select_related("user", "team")]
    context = {
        "page": "keys",
        "team": team,
        "keys": [one for one in shown if one.usable],
        "ended": [one for one in shown if not one.usable][:50],
    }
    return render(request, "settings/keys.html", context)


@never_cache
@require_http_methods(["GET", "POST"])
@login_required
def new(request: HttpRequest) -> HttpResponse:
    """Make a key. It is shown on the answer's page, and never again."""
    user = person(request)
    form = KeyForm(user, request.POST or None)
    if form.is_valid():
        try:
            row, key = key_actions.create_api_key(
                user=user, name=form.cleaned_data["name"], by=user, rights=form.rights()
            )
        except LlamaProjError as error:
            field = {"expires_at": "date", "model_slugs": "models"}.get(error.param or "", error.param)
            form.add_error(field if field in form.fields else None, error.message)
        else:
            return render(
                request, "settings/key_made.html", {"page": "keys", "key": key, "row": row}, status=201
            )
    return render(
        request, "settings/key_new.html", {"page": "keys", "form": form}, status=422 if form.errors else 200
    )


@require_POST
@login_required
def rename(request: HttpRequest, pk: str) -> HttpResponse:
    """Call it something else."""
    user = person(request)
    key = get_object_or_404(ApiKey.objects.visible_to(user), pk=pk)
    key_actions.rename_api_key(key, name=request.POST.get("name", ""), by=user)
    return redirect("settings-keys")


@require_POST
@login_required
def revoke(request: HttpRequest, pk: str) -> HttpResponse:
    """End it, everywhere."""
    user = person(request)
    key = get_object_or_404(ApiKey.objects.visible_to(user), pk=pk)
    key_actions.revoke_api_key(key, by=user)
    messages.success(request, f"{key.name} is revoked: it is refused everywhere, and what it was doing ends.")
    return redirect("settings-keys")


def _manageable(user: User) -> QuerySet[ApiKey]:
    managed = Membership.objects.filter(user=user, role__in=Membership.MANAGING).values("team")
    return ApiKey.objects.filter(Q(user=user) | Q(team__in=managed))


def _team(user: User, pk: str) -> Team:
    team = Team.objects.manageable_by(user).filter(pk=pk).first() if pk.isdecimal() and len(pk) < 10 else None
    if team is None:
        raise NotFound
    return team
