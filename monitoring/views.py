"""The dashboard's pages, its data, and the door for Prometheus."""

import ipaddress
import secrets
from dataclasses import asdict
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST

from accounts.models import User
from llamaproj import env
from llamaproj.errors import InvalidInput, LlamaProjError, NotFound
from models_admin.models import Node, ServedModel
from monitoring import access, metrics
from monitoring import history as history_of
from monitoring.models import Sample
from monitoring.statistics import WINDOWS, only, statistics

# What the charts can be asked to span.
_SPANS = {10: "10 min", 60: "1 h", 360: "6 h", 1_440: "24 h"}
_FORWARDED = (
    "HTTP_FORWARDED",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_REAL_IP",
    "HTTP_VIA",
)


@login_required
@require_safe
def dashboard(request: HttpRequest) -> HttpResponse:
    """What one machine, its models and the requests are doing."""
    nodes = list(Node.objects.all())
    context = {
        "nodes": nodes,
        "node": _chosen_node(request, nodes),
        "minutes": _minutes(request),
        "spans": _SPANS,
        **_statistics_context(request),
    }
    return render(request, "monitoring/dashboard.html", context)


@login_required
@require_safe
def monitoring(request: HttpRequest) -> HttpResponse:
    """The dashboard is what there is to monitor with."""
    return redirect("dashboard")


@login_required
@require_safe
@never_cache
def history(request: HttpRequest) -> JsonResponse:
    """A node's last minutes, and its newest sample as the socket would send it."""
    try:
        node = _chosen_node(request, list(Node.objects.all()))
        if node is None:
            raise NotFound("There is no machine yet.")
        past = asdict(history_of.history(node, _minutes(request)))
    except LlamaProjError as error:
        return JsonResponse({"error": error.message, "code": error.code}, status=error.status)
    past["latest"] = None
    for sample in Sample.objects.newest(node.name):
        data = access.visible_part(sample.data, access.visible_models(_user(request)))
        past["latest"] = {"timestamp": sample.at, "data": {"node": node.name, **data}}
    return JsonResponse(past)


@login_required
@require_safe
@never_cache
def api_statistics(request: HttpRequest) -> HttpResponse:
    """The statistics' part of the dashboard."""
    return render(request, "monitoring/_statistics.html", _statistics_context(request))


@require_safe
@never_cache
def prometheus(request: HttpRequest) -> HttpResponse:
    """All metrics, for staff, for the token's holder and for this machine."""
    if not _may_read_metrics(request):
        return HttpResponseForbidden(
            "Metrics are for administrators, for loopback, and for Authorization: Bearer METRICS_TOKEN.\n",
            content_type="text/plain; charset=utf-8",
        )
    return HttpResponse(metrics.render(), content_type=CONTENT_TYPE_LATEST)


def _may_read_metrics(request: HttpRequest) -> bool:
    user = request.user
    if user.is_authenticated and user.is_active and user.is_staff:
        return True
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return bool(env.METRICS_TOKEN) and secrets.compare_digest(
            token.strip().encode(), env.METRICS_TOKEN.encode()
        )
    # A proxy on this machine connects from loopback too; what it adds gives its clients away.
    return _is_loopback(request.META.get("REMOTE_ADDR", "")) and not any(
        name in request.META for name in _FORWARDED
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _chosen_node(request: HttpRequest, nodes: list[Node]) -> Node | None:
    """The node asked for, else the one seen last. Raises `NotFound` for a name that no node has."""
    name = request.GET.get("node")
    if name:
        chosen = next((node for node in nodes if node.name == name), None)
        if chosen is None:
            raise NotFound("There is no machine of this name.")
        return chosen
    return max(nodes, key=lambda node: node.last_seen.timestamp() if node.last_seen else 0.0, default=None)


def _minutes(request: HttpRequest) -> int:
    text = request.GET.get("minutes", "10")
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= history_of.LONGEST_MINUTES:
        raise InvalidInput(f"`minutes` is a number from 1 to {history_of.LONGEST_MINUTES}.", param="minutes")
    return int(text)


def _statistics_context(request: HttpRequest) -> dict[str, Any]:
    window = WINDOWS.get(request.GET.get("window", ""), WINDOWS["5m"])
    known = statistics(window)
    slugs = ServedModel.objects.visible_to(_user(request)).values_list("slug", flat=True)
    return {"windows": WINDOWS.values(), "statistics": known, "models": only(known.models, slugs)}


def _user(request: HttpRequest) -> User:
    assert isinstance(request.user, User)  # every caller requires a login
    return request.user
