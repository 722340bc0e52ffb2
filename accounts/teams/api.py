"""The REST door to teams: the same verbs as the pages', below /api/v1/."""

from django.db.models import QuerySet
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet, ReadOnlyModelViewSet

from accounts.access import person
from accounts.models import Invitation, Membership, Team, User
from accounts.teams import access, actions, invitations
from accounts.teams.serializers import (
    InvitationSerializer,
    MadeInvitationSerializer,
    MemberSerializer,
    NewInvitationSerializer,
    NewMemberSerializer,
    RoleSerializer,
    TeamSerializer,
)
from llamaproj.errors import InvalidInput
from llamaproj.rest import valid
from llamaproj.rest_lists import page_of


@extend_schema_view(
    list=extend_schema(summary="One's teams; for staff all of them"),
    retrieve=extend_schema(summary="One team"),
)
class TeamViewSet(ReadOnlyModelViewSet[Team]):
    """Teams and who is in them."""

    queryset = Team.objects.none()
    serializer_class = TeamSerializer
    lookup_value_converter = "int"
    search_fields = ("name",)
    ordering_fields = ("name", "weight", "created_at")

    def get_queryset(self) -> QuerySet[Team]:
        """Those the person sees."""
        return Team.objects.visible_to(person(self.request)) if self.request else self.queryset

    @extend_schema(summary="Make a team", responses={201: TeamSerializer})
    def create(self, request: Request) -> Response:
        """Staff. 409 for a name that is taken."""
        said = valid(self.get_serializer(data=request.data))
        made = actions.create(by=person(request), **said)
        return Response(self.get_serializer(made).data, status=status.HTTP_201_CREATED)

    @extend_schema(summary="Rename and weigh")
    def partial_update(self, request: Request, pk: int) -> Response:
        """The name: owners and staff; the weight: staff."""
        found = self.get_object()
        said = valid(self.get_serializer(found, data=request.data, partial=True))
        actions.change(found, by=person(request), **said)
        return Response(self.get_serializer(found).data)

    @extend_schema(summary="Delete")
    def destroy(self, request: Request, pk: int) -> Response:
        """Owners and staff. 409 where a model would then be open to everybody."""
        actions.delete(self.get_object(), by=person(request))
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(summary="Its members", responses=MemberSerializer(many=True))
    @action(detail=True, search_fields=None, ordering_fields=None)
    def members(self, request: Request, pk: int) -> Response:
        """For whoever sees the team."""
        rows = self.get_object().memberships.select_related("user").order_by("user__username")
        return page_of(self, rows, MemberSerializer)

    @extend_schema(summary="Take somebody in", request=NewMemberSerializer, responses={201: MemberSerializer})
    @members.mapping.post
    def add_member(self, request: Request, pk: int) -> Response:
        """Staff; others invite by link. Twice is once."""
        found = self.get_object()
        by, said = person(request), valid(NewMemberSerializer(data=request.data))
        access.demand_staff(by)
        user = User.objects.filter(username=said["username"], is_active=True).first()
        if user is None:
            raise InvalidInput("Nobody here is called that.", param="username")
        member = actions.add(found, user, role=said["role"], by=by)
        return Response(MemberSerializer(member).data, status=status.HTTP_201_CREATED)

    @extend_schema(summary="Give a member another role", request=RoleSerializer, responses=MemberSerializer)
    @action(detail=True, methods=["patch"], url_path="members/<str:username>")
    def member(self, request: Request, pk: int, username: str) -> Response:
        """Managers; owners are made and unmade by owners. 409 for the last owner."""
        member = self._member(username)
        said = valid(RoleSerializer(data=request.data))
        actions.set_role(member, said["role"], by=person(request))
        return Response(MemberSerializer(member).data)

    @extend_schema(summary="End a membership")
    @member.mapping.delete
    def remove_member(self, request: Request, pk: int, username: str) -> Response:
        """Managers, and each for oneself. 409 for the last owner."""
        actions.remove(self._member(username), by=person(request))
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _member(self, username: str) -> Membership:
        rows = self.get_object().memberships.select_related("user", "team")
        return get_object_or_404(rows, user__username=username.replace("\0", ""))


def _seen(request: HttpRequest | None) -> QuerySet[Team]:
    """Teams one may name: it isn't told which others there are."""
    user = getattr(request, "user", None)
    return Team.objects.visible_to(user) if isinstance(user, User) else Team.objects.none()


class InvitationFilter(filters.FilterSet):
    """Invitations."""

    team = filters.ModelChoiceFilter(queryset=_seen)

    class Meta:
        model = Invitation
        fields = ()


@extend_schema_view(
    list=extend_schema(summary="Open invitations of teams one manages"),
    retrieve=extend_schema(summary="One invitation"),
)
class InvitationViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Invitation]):
    """Links by which people come in."""

    queryset = Invitation.objects.none()
    serializer_class = InvitationSerializer
    lookup_value_converter = "uuid"
    filterset_class = InvitationFilter
    ordering_fields = ("created_at", "expires_at")

    def get_queryset(self) -> QuerySet[Invitation]:
        """Open ones; staff see those into the portal, too."""
        if not self.request:
            return self.queryset
        return Invitation.objects.visible_to(person(self.request)).open().select_related("by", "team")

    @extend_schema(
        summary="Invite", request=NewInvitationSerializer, responses={201: MadeInvitationSerializer}
    )
    def create(self, request: Request) -> Response:
        """The link is in this answer and never again."""
        said = valid(NewInvitationSerializer(data=request.data, context={"request": request}))
        invitation, token = invitations.invite(by=person(request), **said)
        link = request.build_absolute_uri(reverse("join", args=[token]))
        shown = MadeInvitationSerializer(invitation, context={"link": link})
        return Response(shown.data, status=status.HTTP_201_CREATED)

    @extend_schema(summary="Revoke")
    def destroy(self, request: Request, pk: str) -> Response:
        """The link stops working at once."""
        invitations.revoke(self.get_object(), by=person(request))
        return Response(status=status.HTTP_204_NO_CONTENT)
