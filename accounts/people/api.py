"""The REST door to people's accounts: oneself at /api/v1/me/, everybody at /api/v1/users/ for administrators."""

from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import ReadOnlyModelViewSet

from accounts.access import person
from accounts.models import User
from accounts.people import actions
from accounts.people.filters import PersonFilter
from accounts.people.serializers import MeSerializer, PersonSerializer
from llamaproj.rest import valid


class AdministratorsOnly(BasePermission):
    """Those who look after people."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Staff."""
        return isinstance(request.user, User) and request.user.is_active and request.user.is_staff


class MeView(APIView):
    """Who is asking."""

    @extend_schema(summary="Oneself", responses=MeSerializer)
    def get(self, request: Request) -> Response:
        """With the teams one is in."""
        return Response(MeSerializer(person(request)).data)

    @extend_schema(summary="Change one's name", request=MeSerializer(partial=True), responses=MeSerializer)
    def patch(self, request: Request) -> Response:
        """Only what is given."""
        said = valid(MeSerializer(person(request), data=request.data, partial=True))
        changed = actions.change(person(request), by=person(request), **said)
        return Response(MeSerializer(changed).data)


class PersonViewSet(ReadOnlyModelViewSet[User]):
    """Everybody who may sign in, or could once."""

    permission_classes = (AdministratorsOnly,)
    queryset = User.objects.prefetch_related("memberships__team").order_by("username")
    serializer_class = PersonSerializer
    lookup_value_converter = "int"
    filterset_class = PersonFilter
    search_fields = ("username", "first_name", "last_name", "email")
    ordering_fields = ("username", "email", "date_joined", "last_login")

    @extend_schema(summary="Add a person")
    def create(self, request: Request) -> Response:
        """Without a password nobody signs in until there is one. 409 where name or address is taken."""
        said = valid(self.get_serializer(data=request.data))
        added = actions.add(by=person(request), **said)
        return Response(self.get_serializer(added).data, status=status.HTTP_201_CREATED)

    @extend_schema(summary="Change a person")
    def partial_update(self, request: Request, pk: int) -> Response:
        """Only what is given. 409 for one's own rights, and those of the last administrator."""
        found = self.get_object()
        said = valid(self.get_serializer(found, data=request.data, partial=True))
        changed = actions.change(found, by=person(request), **said)
        return Response(self.get_serializer(changed).data)

    @extend_schema(summary="Remove a person")
    def destroy(self, request: Request, pk: int) -> Response:
        """With conversations and keys. 409 while the account is active."""
        actions.remove(self.get_object(), by=person(request))
        return Response(status=status.HTTP_204_NO_CONTENT)
