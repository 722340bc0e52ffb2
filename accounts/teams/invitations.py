"""Links by which people join the portal, and a team. A token is shown once and kept as a digest."""

import secrets
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from accounts import audit, version
from accounts.models import Invitation, Membership, Team, User
from accounts.teams import access
from llamaproj.errors import Conflict, InvalidInput, NotAllowed, NotFound

_TOKEN_BYTES = 32
MOST_DAYS = 90
MOST_USES = 500


class InvitationSpent(NotFound):
    """This invitation isn't valid: it was used, revoked, or has expired. Ask for a new one."""

    code = "invitation_spent"


class InvitationForSomebodyElse(NotAllowed):
    """This invitation is for somebody else."""

    code = "invitation_for_somebody_else"


@transaction.atomic
def invite(
    *,
    by: User,
    team: Team | None = None,
    role: str = Membership.Role.MEMBER,
    email: str = "",
    days: int = 7,
    most_uses: int = 1,
) -> tuple[Invitation, str]:
    """A new invitation. The second value is its token: it can't be shown again.

    Into a team: its managers, as an owner only its owners. Into the portal alone: staff.
    Raises `NotAllowed` or `InvalidInput`.
    """
    _demand_may_invite(by, team, role)
    if not 1 <= days <= MOST_DAYS:
        raise InvalidInput(f"An invitation holds for 1 to {MOST_DAYS} days.", param="days")
    if not 1 <= most_uses <= MOST_USES:
        raise InvalidInput(f"An invitation is good for 1 to {MOST_USES} people.", param="most_uses")
    if email and most_uses > 1:
        raise InvalidInput("An invitation for one address is good for one person.", param="most_uses")
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    invitation = Invitation.objects.create(
        team=team,
        role=role,
        email=email,
        digest=Invitation.digest_of(token),
        by=by,
        expires_at=timezone.now() + timedelta(days=days),
        most_uses=most_uses,
    )
    audit.record(by, "invitation.create", invitation, team=team, role=role, email=email, most_uses=most_uses)
    return invitation, token


@transaction.atomic
def revoke(invitation: Invitation, *, by: User) -> None:
    """Make the link worthless from now on. Twice is once. Raises `NotAllowed`."""
    _demand_may_invite(by, invitation.team, Membership.Role.MEMBER)
    waiting = Invitation.objects.filter(pk=invitation.pk, revoked_at__isnull=True)
    if waiting.update(revoked_at=timezone.now()):
        audit.record(by, "invitation.revoke", invitation, team=invitation.team)


def find(token: str) -> Invitation:
    """The open invitation of a token, whose maker may still invite. Raises `InvitationSpent`."""
    rows = Invitation.objects.open().filter(by__is_active=True).select_related("team", "by")
    found = rows.filter(digest=Invitation.digest_of(token)).first()
    if found is None or found.by is None:
        raise InvitationSpent
    try:
        _demand_may_invite(found.by, found.team, found.role)
    except NotAllowed:
        raise InvitationSpent from None
    return found


@transaction.atomic
def join(token: str, user: User) -> Invitation:
    """Come in with an account one has. Who is in the team already uses nothing up.

    Raises `InvitationSpent` or `InvitationForSomebodyElse`.
    """
    invitation = _take(token)
    if invitation.email and invitation.email.lower() != user.email.lower():
        raise InvitationForSomebodyElse(
            "This invitation is for another address than the one of your account. Ask for one of your own."
        )
    _come_in(invitation, user)
    return invitation


@transaction.atomic
def sign_up(token: str, *, username: str, password: str) -> User:
    """Come in with a new account; name and password were checked at the door.

    Raises `InvitationSpent`, or `Conflict` where the name was taken meanwhile or the address has an account.
    """
    invitation = _take(token)
    if invitation.email and User.objects.filter(email__iexact=invitation.email).exists():
        raise Conflict("This address has an account. Sign in with it to accept the invitation.")
    try:
        with transaction.atomic():
            user = User.objects.create_user(username, email=invitation.email, password=password)
    except IntegrityError:
        raise Conflict("Somebody has this name already. Choose another one.", param="username") from None
    admit(invitation, user)
    return user


@transaction.atomic
def admit(invitation: Invitation, user: User) -> None:
    """Let in somebody whose account was made just now."""
    audit.record(user, "user.join", user, team=invitation.team, invitation=str(invitation.pk))
    _come_in(invitation, user)
    version.renew()


def _come_in(invitation: Invitation, user: User) -> None:
    team = invitation.team
    if team is not None:
        member, is_new = team.memberships.get_or_create(user=user, defaults={"role": invitation.role})
        if not is_new:
            return
        audit.record(user, "team.join", team, team=team, role=member.role, invitation=str(invitation.pk))
        version.renew()
    Invitation.objects.filter(pk=invitation.pk).update(uses=F("uses") + 1)


def _take(token: str) -> Invitation:
    """The invitation, locked: two who come at once don't both use its last use. Raises `InvitationSpent`."""
    found = find(token)
    locked = Invitation.objects.open().select_for_update(of=("self",)).select_related("team")
    invitation = locked.filter(pk=found.pk).first()
    if invitation is None:
        raise InvitationSpent
    return invitation


def _demand_may_invite(by: User, team: Team | None, role: str) -> None:
    if role not in Membership.Role.values:
        raise InvalidInput(f"A role is one of {', '.join(Membership.Role.values)}.", param="role")
    if team is None:
        access.demand_staff(by)
    elif role == Membership.Role.OWNER:
        access.demand_owner(by, team)
    else:
        access.demand_manager(by, team)
