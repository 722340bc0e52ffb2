"""The pages of usage: one's own, a team's, everybody's; and what administrators set."""

from dataclasses import dataclass
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from accounts.access import person
from accounts.models import ApiKey, Team, User
from gateway.models import Price, UsageConfig, UsageRecord
from gateway.usage import actions, charts, export, periods, prices
from gateway.usage import scope as scopes
from gateway.usage.forms import ConfigForm, PriceForm
from gateway.usage.periods import Period
from gateway.usage.report import report
from gateway.usage.scope import Scope
from gateway.usage.tables import tables
from llamaproj.errors import NotAllowed
from models_admin.models import ServedModel

_MOST_RECORDS = 25


@require_safe
@login_required
@never_cache
def page(request: HttpRequest, pk: int | None = None, everybody: bool = False) -> HttpResponse:
    """Use in a period: one's own, that of the team `pk`, or everybody's."""
    viewer = person(request)
    scope = scopes.chosen(viewer, request.GET, team_pk=pk, everybody=everybody)
    period = periods.chosen(request.GET)
    known = prices.current()
    found = report(scope, period, known)
    context = {
        "scope": scope,
        "views": _views(viewer, scope, period),
        "period": period,
        "periods": [
            (slug, name, urlencode({"period": slug, **scope.query})) for slug, name in periods.CHOICES.items()
        ],
        "query": urlencode({**period.query, **scope.query}),
        "narrowings": _narrowings(scope, period),
        "report": found,
        "priced": found.total.cost is not None,
        "currency": known.currency,
        "charts": charts.columns(found),
        "tables": tables(scope, period, found),
        "records": _newest(scope, period),
        "retention_days": UsageConfig.current().retention_days,
    }
    return render(request, "usage/page.html", context)


@require_safe
@login_required
def download(
    request: HttpRequest, what: str, pk: int | None = None, everybody: bool = False
) -> HttpResponseBase:
    """The same as a table for spreadsheets: its `sums`, or the single `requests`."""
    scope = scopes.chosen(person(request), request.GET, team_pk=pk, everybody=everybody)
    period = periods.chosen(request.GET)
    if what == "sums":
        return export.sums(scope, period, prices.current())
    return export.records(scope, period)


@require_http_methods(["GET", "POST"])
@login_required
def settings(request: HttpRequest) -> HttpResponse:
    """Prices of all models, their currency, and how long single requests are kept."""
    user = person(request)
    if not user.is_staff:
        raise NotAllowed("Only administrators set prices.")
    known = {price.served_id: price for price in Price.objects.all()}
    served = list(ServedModel.objects.order_by("name"))
    data = request.POST or None
    config = ConfigForm(data, instance=UsageConfig.current())
    forms = [(one, PriceForm(data, prefix=f"price-{one.pk}", price=known.get(one.pk))) for one in served]
    if data and all([config.is_valid(), *(form.is_valid() for _, form in forms)]):
        with transaction.atomic():
            actions.change_config(by=user, **config.cleaned_data)
            for one, form in forms:
                values = form.values()
                if values is None:
                    actions.remove_price(one, by=user)
                else:
                    actions.set_price(one, by=user, **values)
        messages.success(request, "Saved. The prices hold for everything used so far, too.")
        return redirect("usage-settings")
    context = {"form": config, "prices": forms}
    return render(request, "usage/settings.html", context, status=422 if data else 200)


@dataclass(frozen=True, slots=True)
class View:
    """A way to look at use: whose, and where."""

    name: str
    url: str
    is_current: bool


def _views(viewer: User, scope: Scope, period: Period) -> list[View]:
    """Those the person may choose from."""
    query = urlencode(period.query)
    ways = [("You", reverse("usage"), not scope.of_several)]
    if viewer.is_staff:
        ways.append(("Everybody", reverse("usage-all"), scope.everybody))
    ways += [
        (team.name, reverse("usage-team", args=[team.pk]), team == scope.team)
        for team in Team.objects.manageable_by(viewer)
    ]
    return [View(name, f"{url}?{query}", current) for name, url, current in ways]


def _narrowings(scope: Scope, period: Period) -> list[tuple[str, str]]:
    """What the page is narrowed to, in words, with the query that widens it again."""
    words = {"model": f"Model {scope.model}", "key": "One key", "person": "One person"}
    if scope.key:
        key = ApiKey.objects.visible_to(scope.viewer).filter(pk=scope.key).first()
        words["key"] = f"Key {key.name}" if key else f"Deleted key {str(scope.key)[:8]}"
    if scope.person and scope.of_several:
        known = scope.sums(period).filter(user__isnull=False).select_related("user").first()
        words["person"] = known.user.display_name if known and known.user else "One person"
    return [
        (words[name], urlencode({**period.query, **{k: v for k, v in scope.query.items() if k != name}}))
        for name in scope.query
    ]


def _newest(scope: Scope, period: Period) -> list[UsageRecord]:
    return list(scope.records(period).select_related("user", "api_key")[:_MOST_RECORDS])
