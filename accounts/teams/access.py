"""Who may do what in a team. Whoever isn't in it doesn't learn that it exists: that is `Team.objects.visible_to`."""

from accounts.models import Membership, Team, User
from llamaproj.errors import NotAllowed

Role = Membership.Role


def role_of(user: User, team: Team) -> Membership.Role | None:
    """The person's role in the team, None for one who isn't in it."""
    role = team.memberships.filter(user=user).values_list("role", flat=True).first()
    return Role(role) if role else None


def may_manage(user: User, team: Team) -> bool:
    """Whether the person may invite, remove and change members."""
    return user.is_staff or role_of(user, team) in Membership.MANAGING


def may_own(user: User, team: Team) -> bool:
    """Whether the person may rename and delete the team, and say who owns it."""
    return user.is_staff or role_of(user, team) == Role.OWNER


def demand_manager(user: User, team: Team) -> None:
    """Raises `NotAllowed` unless the person manages the team."""
    if not may_manage(user, team):
        raise NotAllowed("Only owners and admins of the team may do this.")


def demand_owner(user: User, team: Team) -> None:
    """Raises `NotAllowed` unless the person owns the team or is staff."""
    if not may_own(user, team):
        raise NotAllowed("Only owners of the team may do this.")


def demand_staff(user: User) -> None:
    """Raises `NotAllowed` unless the person administers the portal."""
    if not user.is_staff:
        raise NotAllowed("Only the portal's administrators may do this.")
