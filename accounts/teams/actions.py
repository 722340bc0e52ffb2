"""What people do with teams. `by` is None where the portal itself acts."""

from django.db import transaction
from django.utils import timezone

from accounts import audit, key_actions, version
from accounts.models import ApiKey, Membership, Team, User
from accounts.teams import access
from llamaproj.errors import Conflict, InvalidInput

Role = Membership.Role
_LIGHTEST, _HEAVIEST = 1, 100


@transaction.atomic
def create(*, name: str, by: User, weight: int = 1, owner: User | None = None) -> Team:
    """A new team, with its owner if one is named. Raises `NotAllowed`, `InvalidInput` or `Conflict`."""
    access.demand_staff(by)
    name = _checked_name(name)
    team = Team.objects.create(name=name, weight=_checked_weight(weight))
    audit.record(by, "team.create", team, team=team, weight=team.weight)
    if owner is not None:
        add(team, owner, role=Role.OWNER, by=by)
    version.renew()
    return team


@transaction.atomic
def change(team: Team, *, by: User, name: str | None = None, weight: int | None = None) -> None:
    """Rename it (owners, staff), weigh it (staff). Raises `NotAllowed`, `InvalidInput` or `Conflict`."""
    changed: dict[str, object] = {}
    if name is not None and name != team.name:
        access.demand_owner(by, team)
        changed["name"] = _checked_name(name, team)
    if weight is not None and weight != team.weight:
        access.demand_staff(by)
        changed["weight"] = _checked_weight(weight)
    if not changed:
        return
    audit.record(by, "team.change", team, team=team, **changed)
    Team.objects.filter(pk=team.pk).update(**changed)
    team.refresh_from_db()
    version.renew()


@transaction.atomic
def delete(team: Team, *, by: User) -> None:
    """End it with its memberships, invitations, keys and limits. Raises `NotAllowed` or `Conflict`."""
    access.demand_owner(by, team)
    Team.objects.select_for_update().get(pk=team.pk)
    # A model of no team is open to everybody.
    alone = [model.name for model in team.models.prefetch_related("teams") if len(model.teams.all()) == 1]
    if alone:
        raise Conflict(
            f"Without {team} everybody could use {', '.join(alone)}. Open it to another team first."
        )
    members = sorted(team.memberships.values_list("user__username", flat=True))
    audit.record(by, "team.delete", team, members=members)
    team.delete()
    version.renew()


@transaction.atomic
def add(team: Team, user: User, *, role: str, by: User | None) -> Membership:
    """Make somebody a member without an invitation: staff and the portal itself. Twice is once.

    Raises `NotAllowed` or `InvalidInput`.
    """
    if by is not None:
        access.demand_staff(by)
    member, is_new = team.memberships.get_or_create(user=user, defaults={"role": _checked_role(role)})
    if is_new:
        audit.record(by, "team.add", team, team=team, member=user.username, role=member.role)
        version.renew()
    return member


@transaction.atomic
def set_role(member: Membership, role: str, *, by: User) -> None:
    """Give a member another role. Raises `NotAllowed`, `InvalidInput` or `Conflict`."""
    role = _checked_role(role)
    team = _locked(member)
    if member.role == role:
        return
    access.demand_manager(by, team)
    if Role.OWNER in {member.role, role}:
        access.demand_owner(by, team)
    if member.role == Role.OWNER:
        _demand_another_owner(member, by)
    audit.record(by, "team.role", team, team=team, member=member.user.username, old=member.role, role=role)
    Membership.objects.filter(pk=member.pk).update(role=role)
    member.role = role
    if role == Role.MEMBER:
        _revoke_invitations(member)
    version.renew()


@transaction.atomic
def remove(member: Membership, *, by: User) -> None:
    """End a membership: one's own (leaving), or somebody else's. Keys made for the team end with it.

    Raises `NotAllowed` or `Conflict`.
    """
    team = _locked(member)
    leaves = member.user_id == by.pk
    if not leaves:
        access.demand_manager(by, team)
    if member.role == Role.OWNER:
        access.demand_owner(by, team)
        _demand_another_owner(member, by)
    verb = "team.leave" if leaves else "team.remove"
    audit.record(by, verb, team, team=team, member=member.user.username, role=member.role)
    _revoke_invitations(member)
    for key in ApiKey.objects.filter(team=team, user=member.user, revoked_at__isnull=True):
        key_actions.revoke_api_key(key, by=by)
    member.delete()
    version.renew()


def _locked(member: Membership) -> Team:
    """The member's team, locked: of two owners who demote each other one remains. Raises `Conflict`."""
    team = Team.objects.select_for_update().get(pk=member.team_id)
    role = Membership.objects.filter(pk=member.pk).values_list("role", flat=True).first()
    if role is None:
        raise Conflict("This person isn't in the team any more.")
    member.role = role
    return team


def _demand_another_owner(member: Membership, by: User) -> None:
    others = member.team.memberships.filter(role=Role.OWNER).exclude(pk=member.pk)
    if not by.is_staff and not others.exists():
        raise Conflict(
            f"{member.user} is the last owner of {member.team}. Make somebody else an owner first."
        )


def _revoke_invitations(member: Membership) -> None:
    """What somebody may no longer do, their links don't do either."""
    member.team.invitations.open().filter(by=member.user).update(revoked_at=timezone.now())


def _checked_role(role: str) -> Membership.Role:
    if role not in Role.values:
        raise InvalidInput(f"A role is one of {', '.join(Role.values)}.", param="role")
    return Role(role)


def _checked_weight(weight: int) -> int:
    if not _LIGHTEST <= weight <= _HEAVIEST:
        raise InvalidInput(f"A weight lies between {_LIGHTEST} and {_HEAVIEST}.", param="weight")
    return weight


def _checked_name(name: str, team: Team | None = None) -> str:
    name = " ".join(name.split())
    longest = Team._meta.get_field("name").max_length or 0
    if not name or len(name) > longest or "\0" in name:
        raise InvalidInput(f"A name has 1 to {longest} characters.", param="name")
    others = Team.objects.exclude(pk=team.pk) if team else Team.objects.all()
    if others.filter(name__iexact=name).exists():
        raise Conflict(f"There is a team {name} already.", param="name")
    return name
