"""The REST door to the audit trail, to read."""

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, serializers
from rest_framework.viewsets import GenericViewSet

from accounts.access import person
from accounts.models import AuditEntry
from accounts.people.api import AdministratorsOnly
from llamaproj.rest_lists import Filters, Moment, NewestPages


class EntrySerializer(serializers.ModelSerializer[AuditEntry]):
    """Who did what to which thing, when."""

    by = serializers.CharField(source="by_name", read_only=True)
    detail = serializers.DictField(read_only=True)

    class Meta:
        model = AuditEntry
        fields = ("id", "at", "by", "verb", "target", "detail", "team")
        read_only_fields = fields


class EntryFilter(filters.FilterSet):
    """By who, verb, thing and period."""

    by = filters.CharFilter(field_name="by_name")
    verb = filters.CharFilter()
    target = filters.CharFilter(lookup_expr="icontains")
    since = Moment(field_name="at", lookup_expr="gte")
    until = Moment(field_name="at", lookup_expr="lt")

    class Meta:
        model = AuditEntry
        fields = ("team",)


@extend_schema_view(
    list=extend_schema(summary="The audit trail"),
    retrieve=extend_schema(summary="One entry"),
)
class EntryViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[AuditEntry]):
    """What administrators did."""

    permission_classes = (AdministratorsOnly,)
    queryset = AuditEntry.objects.none()
    serializer_class = EntrySerializer
    pagination_class = NewestPages
    lookup_value_converter = "int"
    filter_backends = (Filters,)
    filterset_class = EntryFilter

    def get_queryset(self) -> QuerySet[AuditEntry]:
        """All of them."""
        return AuditEntry.objects.visible_to(person(self.request)) if self.request else self.queryset
