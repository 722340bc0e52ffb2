"""Teams: who sees one, who changes what in it, and that every change is in the audit trail."""

from http import HTTPStatus

import pytest
from django.test import Client

from accounts.models import ApiKey, AuditEntry, Membership, Team, User
from accounts.teams import actions
from llamaproj.errors import Conflict, InvalidInput, NotAllowed
from models_admin.models import ExternalServer, ServedModel

pytestmark = pytest.mark.django_db

OWNER, ADMIN, MEMBER = Membership.Role.OWNER, Membership.Role.ADMIN, Membership.Role.MEMBER


@pytest.fixture
def staff():
    return User.objects.create_user("staff", is_staff=True)


@pytest.fixture
def team(staff):
    return actions.create(name="Research", by=staff)


def put_in(team, name, role=MEMBER):
    user = User.objects.create_user(name)
    return Membership.objects.create(team=team, user=user, role=role)


def client_of(user):
    client = Client()
    client.force_login(user)
    return client


def verbs():
    return list(AuditEntry.objects.order_by("pk").values_list("verb", flat=True))


def test_staff_make_a_team_with_its_owner_and_both_are_in_the_trail(staff):
    ada = User.objects.create_user("ada")

    made = actions.create(name="  Research   group ", by=staff, weight=3, owner=ada)

    assert (made.name, made.weight) == ("Research group", 3)
    assert made.memberships.get().role == OWNER
    assert verbs() == ["team.create", "team.add"]


@pytest.mark.parametrize(
    ("name", "weight"), [("", 1), ("x" * 81, 1), ("a\0b", 1), ("fine", 0), ("fine", 101)]
)
def test_a_team_with_a_wrong_name_or_weight_is_not_made(staff, name, weight):
    with pytest.raises(InvalidInput):
        actions.create(name=name, by=staff, weight=weight)
    assert not Team.objects.exists()


def test_two_teams_do_not_share_a_name_whatever_its_case(staff, team):
    with pytest.raises(Conflict):
        actions.create(name="research", by=staff)


def test_members_do_not_make_teams_or_weigh_their_own(team):
    owner = put_in(team, "ada", OWNER).user
    with pytest.raises(NotAllowed):
        actions.create(name="Mine", by=owner)
    with pytest.raises(NotAllowed):
        actions.change(team, by=owner, weight=100)

    actions.change(team, by=owner, name="Search")
    assert Team.objects.get().name == "Search"


def test_the_last_owner_neither_leaves_nor_steps_down(team):
    owner = put_in(team, "ada", OWNER)
    with pytest.raises(Conflict):
        actions.remove(owner, by=owner.user)
    with pytest.raises(Conflict):
        actions.set_role(owner, ADMIN, by=owner.user)

    other = put_in(team, "ben", OWNER)
    actions.set_role(other, MEMBER, by=owner.user)
    with pytest.raises(Conflict):
        actions.remove(owner, by=owner.user)


def test_admins_do_not_touch_owners_and_make_none(team):
    owner, admin, member = put_in(team, "ada", OWNER), put_in(team, "ben", ADMIN), put_in(team, "cy")
    put_in(team, "dee", OWNER)
    for deed in (
        lambda: actions.remove(owner, by=admin.user),
        lambda: actions.set_role(owner, MEMBER, by=admin.user),
        lambda: actions.set_role(member, OWNER, by=admin.user),
        lambda: actions.set_role(admin, OWNER, by=admin.user),
        lambda: actions.delete(team, by=admin.user),
        lambda: actions.set_role(admin, MEMBER, by=member.user),
        lambda: actions.remove(admin, by=member.user),
    ):
        with pytest.raises(NotAllowed):
            deed()

    actions.set_role(member, ADMIN, by=admin.user)
    actions.remove(member, by=admin.user)
    assert verbs()[-2:] == ["team.role", "team.remove"]


def test_keys_made_for_a_team_end_with_the_membership(team):
    member = put_in(team, "ada", ADMIN)
    key = ApiKey.objects.create(user=member.user, team=team, name="k", prefix="sk-1", digest="1")
    own = ApiKey.objects.create(user=member.user, name="own", prefix="sk-2", digest="2")

    actions.remove(member, by=member.user)

    key.refresh_from_db()
    own.refresh_from_db()
    assert key.revoked_at is not None
    assert own.revoked_at is None
    assert verbs()[-2:] == ["team.leave", "apikey.revoke"]


def test_a_team_is_not_deleted_while_its_end_would_open_a_model_to_everybody(staff, team):
    server = ExternalServer.objects.create(name="elsewhere", base_url="http://127.0.0.1:9/v1")
    served = ServedModel.objects.create(slug="secret", name="Secret", external=server)
    served.teams.add(team)
    with pytest.raises(Conflict, match="Secret"):
        actions.delete(team, by=staff)

    served.teams.add(actions.create(name="Others", by=staff))
    actions.delete(team, by=staff)
    assert not Team.objects.filter(name="Research").exists()
    assert verbs()[-1] == "team.delete"


def test_strangers_do_not_learn_that_a_team_exists(team):
    put_in(team, "ada", OWNER)
    stranger = client_of(User.objects.create_user("eve"))
    member = team.memberships.get()

    assert "Research" not in stranger.get("/teams/").content.decode()
    assert stranger.get(f"/teams/{team.pk}/").status_code == HTTPStatus.NOT_FOUND
    for path in ("edit/", "delete/", "invite/", "members/", f"members/{member.pk}/remove/"):
        assert stranger.post(f"/teams/{team.pk}/{path}").status_code == HTTPStatus.NOT_FOUND, path


@pytest.mark.parametrize(
    ("role", "sees_invitations", "may_edit"),
    [(OWNER, True, True), (ADMIN, True, False), (MEMBER, False, False)],
)
def test_the_page_offers_what_the_role_may_do(team, role, sees_invitations, may_edit):
    client = client_of(put_in(team, "ada", role).user)
    page = client.get(f"/teams/{team.pk}/")

    assert ("Invite by link" in page.content.decode()) is sees_invitations
    allowed = HTTPStatus.OK if may_edit else HTTPStatus.FORBIDDEN
    assert client.get(f"/teams/{team.pk}/edit/").status_code == allowed
    assert (
        client.post(f"/teams/{team.pk}/invite/").status_code == HTTPStatus.FORBIDDEN
    ) is not sees_invitations
    assert (
        client.post(f"/teams/{team.pk}/members/", {"username": "staff"}).status_code == HTTPStatus.FORBIDDEN
    )


def test_staff_run_a_team_from_its_pages(staff):
    client = client_of(staff)
    User.objects.create_user("ada")
    assert client.post("/teams/", {"name": "", "weight": 1}).status_code == 422
    client.post("/teams/", {"name": "Research", "weight": 2})
    team = Team.objects.get()
    client.post(f"/teams/{team.pk}/members/", {"username": "ada", "role": "member"})
    member = team.memberships.get()
    client.post(f"/teams/{team.pk}/members/{member.pk}/role/", {"role": "owner"})
    client.post(f"/teams/{team.pk}/edit/", {"name": "Search", "weight": 5})
    page = client.get(f"/teams/{team.pk}/").content.decode()
    assert "Search" in page
    assert "team.role" in page

    nobody = client.post(f"/teams/{team.pk}/members/", {"username": "nobody", "role": "member"})
    assert nobody.status_code == HTTPStatus.NOT_FOUND
    assert "Nobody here is called" in nobody.content.decode()
    client.post(f"/teams/{team.pk}/delete/")
    assert not Team.objects.exists()
    assert verbs() == ["team.create", "team.add", "team.role", "team.change", "team.delete"]


def test_the_admin_site_goes_through_the_same_verbs(staff):
    client = client_of(staff)
    ada = User.objects.create_user("ada")
    inline = {"memberships-TOTAL_FORMS": 1, "memberships-INITIAL_FORMS": 0}
    row = {"memberships-0-user": ada.pk, "memberships-0-role": "member"}
    client.post("/admin/accounts/team/add/", {"name": "Research", "weight": 1, **inline, **row})
    team, member = Team.objects.get(), Membership.objects.get()
    inline["memberships-INITIAL_FORMS"] = 1
    row |= {"memberships-0-id": member.pk, "memberships-0-team": team.pk, "memberships-0-role": "owner"}
    client.post(f"/admin/accounts/team/{team.pk}/change/", {"name": "Search", "weight": 2, **inline, **row})
    row["memberships-0-DELETE"] = "on"
    client.post(f"/admin/accounts/team/{team.pk}/change/", {"name": "Search", "weight": 2, **inline, **row})
    client.post(f"/admin/accounts/team/{team.pk}/delete/", {"post": "yes"})

    assert verbs() == ["team.create", "team.add", "team.change", "team.role", "team.remove", "team.delete"]
    assert not Team.objects.exists()


def test_programs_run_a_team_within_the_same_rules(staff):
    admin = client_of(staff)
    ada = User.objects.create_user("ada")

    def ask(client, method, path, **body):
        return getattr(client, method)(f"/api/v1/{path}", body, content_type="application/json")

    made = ask(admin, "post", "teams/", name="Research", weight=2)
    assert made.status_code == HTTPStatus.CREATED, made.content
    assert ask(admin, "post", "teams/", name="research").status_code == HTTPStatus.CONFLICT
    pk = made.json()["id"]
    added = ask(admin, "post", f"teams/{pk}/members/", username="ada", role="admin")
    assert added.json() == {"username": "ada", "name": "ada", "role": "admin"}

    manager, stranger = client_of(ada), client_of(User.objects.create_user("eve"))
    assert manager.get(f"/api/v1/teams/{pk}/members/").json()["count"] == 1
    assert stranger.get("/api/v1/teams/").json()["count"] == 0
    assert stranger.get(f"/api/v1/teams/{pk}/members/").status_code == HTTPStatus.NOT_FOUND
    assert ask(manager, "post", "teams/", name="Mine").status_code == HTTPStatus.FORBIDDEN
    assert ask(manager, "patch", f"teams/{pk}/", name="Mine").status_code == HTTPStatus.FORBIDDEN
    assert ask(manager, "patch", f"teams/{pk}/members/ada/", role="owner").status_code == HTTPStatus.FORBIDDEN

    invited = ask(manager, "post", "invitations/", team=pk, days=1)
    assert "/join/" in invited.json()["link"]
    assert "link" not in manager.get("/api/v1/invitations/").json()["results"][0]
    assert ask(stranger, "post", "invitations/", team=pk).status_code == HTTPStatus.BAD_REQUEST
    assert ask(manager, "post", "invitations/").status_code == HTTPStatus.FORBIDDEN
    assert manager.delete(f"/api/v1/invitations/{invited.json()['id']}/").status_code == HTTPStatus.NO_CONTENT

    assert manager.get("/api/v1/audit/").status_code == HTTPStatus.FORBIDDEN
    trail = admin.get("/api/v1/audit/?verb=team.add").json()["results"]
    assert [entry["target"] for entry in trail] == ["Research"]
    assert admin.delete(f"/api/v1/teams/{pk}/members/ada/").status_code == HTTPStatus.NO_CONTENT
    assert admin.delete(f"/api/v1/teams/{pk}/").status_code == HTTPStatus.NO_CONTENT
