"""Teams, members and invitations, as REST has them."""

from typing import Any

from rest_framework import serializers

from accounts.models import Invitation, Membership, Team
from accounts.teams import invitations
from llamaproj.rest import Strict


class TeamSerializer(Strict, serializers.ModelSerializer[Team]):
    """A team."""

    class Meta:
        model = Team
        fields = ("id", "name", "weight", "created_at")
        read_only_fields = ("id", "created_at")
        # A name that is taken is a conflict, and `actions` says so.
        extra_kwargs: dict[str, dict[str, Any]] = {"name": {"validators": []}}


class MemberSerializer(serializers.ModelSerializer[Membership]):
    """Somebody in a team."""

    username = serializers.CharField(source="user.username", read_only=True)
    name = serializers.CharField(source="user.display_name", read_only=True)

    class Meta:
        model = Membership
        fields = ("username", "name", "role")
        read_only_fields = fields


class NewMemberSerializer(Strict):
    """Whom staff take in."""

    username = serializers.CharField(max_length=150)
    role = serializers.ChoiceField(choices=Membership.Role.choices, default=Membership.Role.MEMBER)


class RoleSerializer(Strict):
    """What a member may do."""

    role = serializers.ChoiceField(choices=Membership.Role.choices)


class InvitationSerializer(serializers.ModelSerializer[Invitation]):
    """An invitation; its link can't be shown again."""

    by = serializers.CharField(source="by.username", read_only=True, allow_null=True)

    class Meta:
        model = Invitation
        fields = ("id", "team", "role", "email", "by", "created_at", "expires_at", "most_uses", "uses")
        read_only_fields = fields


class NewInvitationSerializer(Strict):
    """Whom a link lets in, and for how long."""

    team = serializers.PrimaryKeyRelatedField(
        queryset=Team.objects.none(),
        allow_null=True,
        default=None,
        help_text="Without one, the portal alone: for staff.",
    )
    role = serializers.ChoiceField(choices=Membership.Role.choices, default=Membership.Role.MEMBER)
    email = serializers.EmailField(default="", allow_blank=True, help_text="Whom it is for.")
    days = serializers.IntegerField(min_value=1, max_value=invitations.MOST_DAYS, default=7)
    most_uses = serializers.IntegerField(min_value=1, max_value=invitations.MOST_USES, default=1)

    def get_fields(self) -> dict[str, Any]:
        """Only teams one sees can be named."""
        fields = super().get_fields()
        request = self.context.get("request")
        if request and request.user.is_authenticated:
            team: Any = fields["team"]
            team.queryset = Team.objects.visible_to(request.user)
        return fields


class MadeInvitationSerializer(InvitationSerializer):
    """A new invitation with its link, which is shown this once."""

    link = serializers.SerializerMethodField()

    class Meta(InvitationSerializer.Meta):
        fields = (*InvitationSerializer.Meta.fields, "link")  # type: ignore[assignment]  # one more
        read_only_fields = fields  # type: ignore[assignment]  # one more

    def get_link(self, invitation: Invitation) -> str:
        """The address to send."""
        return str(self.context["link"])
