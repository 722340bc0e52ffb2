"""API keys through the REST API."""

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from accounts import key_actions
from accounts.access import person
from accounts.authentication import key_of
from accounts.key_serializers import (
    AskedKeySerializer,
    CreatedKeySerializer,
    KeySerializer,
    RenamedKeySerializer,
)
from accounts.models import ApiKey
from llamaproj.rest import valid
from llamaproj.rest_lists import Flag


class KeyFilter(filters.FilterSet):
    """Which keys a list is to show."""

    user = filters.CharFilter(field_name="user__username", label="Of this person, by username.")
    team = filters.CharFilter(field_name="team__name", label="Of this team, by name.")
    usable = Flag(method="filter_usable", label="Whether it can be used: neither revoked nor expired.")

    class Meta:
        model = ApiKey
        fields = ("priority",)

    def filter_usable(self, keys: QuerySet[ApiKey], name: str, value: bool) -> QuerySet[ApiKey]:
        """Those that can be used, or the others."""
        usable = ApiKey.objects.usable().values("pk")
        return keys.filter(pk__in=usable) if value else keys.exclude(pk__in=usable)


@extend_schema_view(
    list=extend_schema(summary="One's own keys, and those of teams one manages"),
    retrieve=extend_schema(summary="One key"),
)
class KeyViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[ApiKey]):
    """API keys. The key itself is in the answer to its making, and nowhere else."""

    queryset = ApiKey.objects.none()
    serializer_class = KeySerializer
    lookup_value_converter = "uuid"
    filterset_class = KeyFilter
    search_fields = ("name", "prefix")
    ordering_fields = ("created_at", "expires_at", "last_used_at", "name")

    def get_queryset(self) -> QuerySet[ApiKey]:
        """Those the person may see."""
        if not self.request:
            return self.queryset
        return ApiKey.objects.visible_to(person(self.request)).select_related("user", "team")

    @extend_schema(summary="Make a key", request=AskedKeySerializer, responses={201: CreatedKeySerializer})
    def create(self, request: Request) -> Response:
        """It acts as you. Asked for with a key, it can't be stronger than that one."""
        asked = AskedKeySerializer(data=request.data, context=self.get_serializer_context())
        asked.is_valid(raise_exception=True)
        user = person(request)
        row, key = key_actions.create_api_key(
            user=user,
            name=asked.validated_data["name"],
            by=user,
            rights=asked.rights(),
            within=key_of(request),
        )
        shown = CreatedKeySerializer(row).data | {"key": key}
        return Response(shown, status=status.HTTP_201_CREATED, headers={"cache-control": "no-store"})

    @extend_schema(summary="Rename a key", request=RenamedKeySerializer, responses=KeySerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        """What a key may do doesn't change: make another one for that."""
        key = self.get_object()
        said = valid(RenamedKeySerializer(data=request.data))
        if "name" in said:
            key_actions.rename_api_key(key, name=said["name"], by=person(request))
        return Response(self.get_serializer(key).data)

    @extend_schema(summary="Revoke a key")
    def destroy(self, request: Request, pk: str) -> Response:
        """It is refused everywhere from now on. Revoking twice is revoking once."""
        key_actions.revoke_api_key(self.get_object(), by=person(request))
        return Response(status=status.HTTP_204_NO_CONTENT)
