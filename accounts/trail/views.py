"""The audit trail's page and file, for staff."""

from collections.abc import Iterator
from datetime import date

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.dateparse import parse_date
from django.views.decorators.http import require_GET

from accounts.access import person
from accounts.models import AuditEntry, AuditEntryQuerySet
from accounts.spreadsheet import csv_response
from accounts.teams.access import demand_staff
from accounts.trail import search
from accounts.trail.search import Asked, Cursor

_PAGE = 50
_EXPORTED = 50_000
_LONGEST = 200


@login_required
@require_GET
def trail(request: HttpRequest) -> HttpResponse:
    """Who did what, the newest first."""
    by = person(request)
    demand_staff(by)
    asked = _asked(request)
    entries = asked.among(AuditEntry.objects.visible_to(by))
    after = Cursor.parse(request.GET.get("after", ""))
    found, following = search.page(entries, after=after, size=_PAGE)
    wanted = request.GET.copy()
    wanted.pop("after", None)
    context = {
        "entries": found,
        "asked": asked,
        "query": wanted.urlencode(),
        "is_filtered": asked != Asked(),
        "is_newest": after is None,
        "following": following,
        "verbs": search.recent_verbs(),
        "exported": _EXPORTED,
    }
    return render(request, "audit/audit.html", context)


@login_required
@require_GET
def export(request: HttpRequest) -> HttpResponse:
    """The same entries as CSV, the newest 50,000 of them."""
    by = person(request)
    demand_staff(by)
    entries = _asked(request).among(AuditEntry.objects.visible_to(by)).order_by("-at", "-pk")
    name = f"audit-{timezone.now():%Y-%m-%d}.csv"
    return csv_response(name, ("at", "by", "verb", "target", "detail"), _rows(entries))


def _rows(entries: AuditEntryQuerySet) -> Iterator[tuple[str, ...]]:
    for entry in entries[:_EXPORTED].iterator():
        detail = "; ".join(f"{name}: {value}" for name, value in entry.detail.items())
        yield entry.at.isoformat(), entry.by_name, entry.verb, entry.target, detail


def _asked(request: HttpRequest) -> Asked:
    def text(name: str) -> str:
        return request.GET.get(name, "").replace("\0", "").strip()[:_LONGEST]

    def day(name: str) -> date | None:
        try:
            found = parse_date(text(name))
        except ValueError:
            return None
        # The calendar's last day has no day after it.
        return found if found is not None and found < date.max else None

    return Asked(text("who"), text("verb"), text("target"), text("text"), day("since"), day("until"))
