"""The REST door to limits: everybody's for administrators, one's own with their use for each."""

from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from accounts.access import person
from accounts.people.api import AdministratorsOnly
from gateway.limits import actions, use
from gateway.limits.serializers import LimitSerializer, NumbersSerializer, OwnLimitSerializer, all_limits
from gateway.models import Limit
from llamaproj.rest import valid


class LimitFilter(filters.FilterSet):
    """Which limits a list is to show."""

    user = filters.CharFilter(field_name="user__username", label="Of this person, by username.")
    team = filters.CharFilter(field_name="team__name", label="Of this team, by name.")
    model = filters.CharFilter(field_name="served__slug", label="Of this model, by short name.")
    key = filters.UUIDFilter(field_name="api_key", label="Of this key.")


@extend_schema_view(
    list=extend_schema(summary="All limits"),
    retrieve=extend_schema(summary="One limit"),
)
class LimitViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Limit]):
    """Who may use how much. A change holds from the next request on."""

    permission_classes = (AdministratorsOnly,)
    queryset = all_limits()
    serializer_class = LimitSerializer
    lookup_value_converter = "int"
    filterset_class = LimitFilter
    ordering_fields = ("changed_at",)

    @extend_schema(summary="Limit somebody or something")
    def create(self, request: Request) -> Response:
        """409 where there is a limit already."""
        asked = LimitSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        limit = actions.add_limit(asked.subject(), by=person(request), **asked.numbers())
        return Response(LimitSerializer(limit).data, status=status.HTTP_201_CREATED)

    @extend_schema(summary="Change a limit", request=NumbersSerializer(partial=True))
    def partial_update(self, request: Request, pk: int) -> Response:
        """Only the numbers that are given; null is no limit."""
        limit = self.get_object()
        said = valid(NumbersSerializer(data=request.data, partial=True))
        changed = actions.change_limit(limit, by=person(request), **said)
        return Response(LimitSerializer(changed).data)

    @extend_schema(summary="Remove a limit")
    def destroy(self, request: Request, pk: int) -> Response:
        """A person without one has that of everybody."""
        actions.remove_limit(self.get_object(), by=person(request))
        return Response(status=status.HTTP_204_NO_CONTENT)


class OwnLimitsView(APIView):
    """The limits of whoever asks."""

    @extend_schema(summary="One's own limits and their use", responses=OwnLimitSerializer(many=True))
    def get(self, request: Request) -> Response:
        """One's own or everybody's, those of one's keys, and of the teams one manages."""
        return Response(OwnLimitSerializer(use.own_limits(person(request)), many=True).data)
