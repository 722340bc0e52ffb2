"""The conversations in the sidebar of every page."""

from datetime import datetime, timedelta
from typing import Any

from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from accounts.access import person
from chat.models import Conversation

_SHOWN = 30


def context(request: HttpRequest) -> dict[str, object]:
    """Context processor: the person's recent conversations, grouped by day; nothing is read unless a template asks."""
    if not request.user.is_authenticated:
        return {}
    return {
        "sidebar_conversations": SimpleLazyObject(lambda: _groups(request)),
        "sidebar_more_url": reverse("conversations"),
    }


def _groups(request: HttpRequest) -> list[dict[str, Any]]:
    rows = Conversation.objects.writable_by(person(request)).only("pk", "title", "updated_at")[:_SHOWN]
    match = request.resolver_match
    current = match.kwargs.get("pk") if match else None
    groups: list[dict[str, Any]] = []
    for row in rows:
        label = day_label(row.updated_at, timezone.now())
        if not groups or groups[-1]["label"] != label:
            groups.append({"label": label, "items": []})
        groups[-1]["items"].append(
            {
                "pk": row.pk,
                "title": str(row),
                "url": reverse("conversation", args=[row.pk]),
                "current": row.pk == current,
            }
        )
    return groups


def day_label(at: datetime, now: datetime) -> str:
    """The heading under which a conversation last touched at `at` stands."""
    days = (now.date() - at.date()).days
    if days < 1:
        return "Today"
    if days < 2:
        return "Yesterday"
    return "Last 7 days" if at > now - timedelta(days=7) else "Earlier"
