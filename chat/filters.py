"""By what REST's lists of conversations are filtered."""

from django.db.models import QuerySet
from django_filters import rest_framework as filters

from accounts.access import person
from chat.models import Conversation
from llamaproj.rest_lists import Flag


class ConversationFilter(filters.FilterSet):
    """Conversations."""

    model = filters.CharFilter(field_name="served__slug")
    mine = Flag(method="by_owner", label="One's own, or those of others.")

    class Meta:
        model = Conversation
        fields = ()

    def by_owner(self, queryset: QuerySet[Conversation], name: str, value: bool) -> QuerySet[Conversation]:
        """One's own, or not."""
        owner = person(self.request)
        return queryset.filter(owner=owner) if value else queryset.exclude(owner=owner)
