"""The REST door to the audit trail, to read."""

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, serializers
from rest_framework.pagination import CursorPagination
from rest_framework.viewsets import GenericViewSet

from accounts.access import person
from accounts.models import AuditEntry
from accounts.people.api import AdministratorsOnly


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
    since = filters.IsoDateTimeFilter(field_name="at", lookup_expr="gte")
    until = filters.IsoDateTimeFilter(field_name="at", lookup_expr="lt")

    class Meta:
        model = AuditEntry
        fields = ("team",)


class Newest(CursorPagination):
    """The newest first, however long the trail is."""

    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 200
    ordering = ("-at", "-id")


@extend_schema_view(
    list=extend_schema(summary="The audit trail"),
    retrieve=extend_schema(summary="One entry"),
)
class EntryViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[AuditEntry]):
    """What administrators did."""

    permission_classes = (AdministratorsOnly,)
    queryset = AuditEntry.objects.none()
    serializer_class = EntrySerializer
    pagination_class = Newest
    lookup_value_converter = "int"
    filter_backends = (filters.DjangoFilterBackend,)
    filterset_class = EntryFilter

    def get_queryset(self) -> QuerySet[AuditEntry]:
        """All of them."""
        return AuditEntry.objects.visible_to(person(self.request)) if self.request else self.queryset
