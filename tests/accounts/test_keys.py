"""The first administrator and API keys."""

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts import actions, key_actions, keys, version
from accounts.key_rights import KeyRights
from accounts.models import ApiKey, AuditEntry, Membership, Team, User
from accounts.people import actions as people_actions
from llamaproj.errors import InvalidInput, NotAllowed
from models_admin.models import ServedModel
from tests.serving import serve

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def made(user: User, within: ApiKey | None = None, **rights: object) -> tuple[ApiKey, str]:
    return key_actions.create_api_key(
        user=user, name="laptop", by=user, rights=KeyRights(**rights), within=within
    )


def in_team(user: User, role: str, name: str = "Team") -> Team:
    team, _ = Team.objects.get_or_create(name=name)
    Membership.objects.create(team=team, user=user, role=role)
    return team


def model(slug: str) -> ServedModel:
    return serve(f"http://127.0.0.1:{9 + ServedModel.objects.count()}", "key", slug=slug)


def test_the_first_administrator_is_made_once():
    password = actions.ensure_first_admin("boss", "")

    assert password is not None
    assert User.objects.get().check_password(password)
    assert actions.ensure_first_admin("boss", "") is None
    assert actions.ensure_first_admin("another", "given") is None
    assert User.objects.count() == 1


def test_the_first_administrator_does_not_come_back_while_there_is_another():
    actions.ensure_first_admin("boss", "given password")
    boss, other = User.objects.get(), User.objects.create_user("other", is_staff=True)
    people_actions.change(boss, by=other, is_active=False)
    people_actions.remove(boss, by=other)

    assert actions.ensure_first_admin("boss", "given password") is None
    assert User.objects.get() == other


def test_a_given_password_is_not_shown_again():
    assert actions.ensure_first_admin("boss", "given password") is None
    assert User.objects.get().check_password("given password")


def test_a_key_is_kept_as_a_digest_only(ada):
    row, key = made(ada)

    assert key.startswith("sk-")
    assert key not in str(vars(row))
    assert ApiKey.objects.usable().get(digest=ApiKey.digest_of(key)) == row
    assert key not in str(list(AuditEntry.objects.filter(verb="apikey.create", by=ada).values()))
    assert AuditEntry.objects.filter(verb="apikey.create", by=ada).exists()


def test_a_key_ends_by_revocation_expiry_or_its_owner(ada):
    revoked, _ = made(ada)
    key_actions.revoke_api_key(revoked, by=None)
    key_actions.revoke_api_key(revoked, by=None)
    old, _ = made(ada, expires_at=timezone.now() + timedelta(days=1))
    good, _ = made(ada)

    assert set(ApiKey.objects.usable()) == {good, old}
    assert list(ApiKey.objects.usable(timezone.now() + timedelta(days=2))) == [good]
    assert AuditEntry.objects.filter(verb="apikey.revoke").count() == 1
    User.objects.update(is_active=False)
    assert not ApiKey.objects.usable().exists()


def test_a_teams_key_ends_with_its_makers_membership(ada):
    team = in_team(ada, Membership.Role.ADMIN)
    key, _ = made(ada, team=team)
    own, _ = made(ada)
    assert set(ApiKey.objects.usable()) == {key, own}

    Membership.objects.all().delete()

    assert list(ApiKey.objects.usable()) == [own]


def test_only_a_teams_managers_make_keys_of_it(ada):
    team = in_team(ada, Membership.Role.MEMBER)
    hidden = Team.objects.create(name="Hidden")
    boss = User.objects.create_user("boss", is_staff=True)

    with pytest.raises(NotAllowed, match="owners and admins of Team"):
        made(ada, team=team)
    with pytest.raises(InvalidInput, match="no such team"):
        made(ada, team=hidden)
    with pytest.raises(NotAllowed, match="boss isn't in Hidden"):
        made(boss, team=hidden)
    assert not ApiKey.objects.exists()


def test_a_revocation_is_announced_to_every_process(ada, monkeypatch, django_capture_on_commit_callbacks):
    renewed: list[str] = []
    monkeypatch.setattr(version, "renew", lambda: renewed.append("rights"))
    key, _ = made(ada)
    key_actions.revoke_api_key(key, by=ada)

    assert renewed == ["rights"]


@pytest.mark.parametrize(
    ("rights", "param"),
    [
        ({"scopes": ()}, "scopes"),
        ({"scopes": ("everything",)}, "scopes"),
        ({"priority": "first"}, "priority"),
        ({"expires_at": timezone.now() - timedelta(seconds=1)}, "expires_at"),
        ({"model_slugs": ("nowhere",)}, "model_slugs"),
    ],
)
def test_rights_that_no_key_can_have_are_refused(ada, rights, param):
    with pytest.raises(InvalidInput) as refused:
        made(ada, **rights)
    assert refused.value.param == param


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\x00b", "a\nb"])
def test_a_key_needs_a_name(ada, name):
    with pytest.raises(InvalidInput, match="name"):
        key_actions.create_api_key(user=ada, name=name, by=ada)
    key, _ = made(ada)
    with pytest.raises(InvalidInput, match="name"):
        key_actions.rename_api_key(key, name=name, by=ada)


def test_a_key_opens_only_models_its_owner_may_use(ada):
    model("open")
    model("closed").teams.add(Team.objects.create(name="Others"))

    key, _ = made(ada, model_slugs=("open", "open"))

    assert key.model_slugs == ["open"]
    with pytest.raises(InvalidInput, match="closed"):
        made(ada, model_slugs=("open", "closed"))


@pytest.mark.parametrize(
    ("own", "wanted", "param"),
    [
        ({"scopes": ("write",)}, {"scopes": ("write", "read")}, "scopes"),
        ({"model_slugs": ("a",)}, {"model_slugs": ("a", "b")}, "model_slugs"),
        ({"model_slugs": ("a",)}, {}, "model_slugs"),
        ({"team": "Team"}, {}, "team"),
        ({"team": "Team"}, {"team": "Other"}, "team"),
        ({"priority": "batch"}, {}, "priority"),
        ({"expires_at": timezone.now() + timedelta(days=3)}, {}, "expires_at"),
        (
            {"expires_at": timezone.now() + timedelta(days=3)},
            {"expires_at": timezone.now() + timedelta(days=4)},
            "expires_at",
        ),
    ],
)
def test_a_key_makes_none_that_is_stronger_than_itself(ada, own, wanted, param):
    model("a")
    model("b")
    teams = {name: in_team(ada, Membership.Role.OWNER, name) for name in ("Team", "Other")}
    own, wanted = ({**one, "team": teams.get(one.get("team"))} for one in (own, wanted))
    parent, _ = made(ada, **own)

    with pytest.raises(NotAllowed) as refused:
        made(ada, within=parent, **wanted)

    assert refused.value.param == param
    assert made(ada, within=parent, **own)[0] != parent


def test_a_key_is_renamed(ada):
    key, _ = made(ada)
    key_actions.rename_api_key(key, name=" desktop ", by=ada)
    key_actions.rename_api_key(key, name="desktop", by=ada)

    assert ApiKey.objects.get().name == "desktop"
    assert AuditEntry.objects.filter(verb="apikey.rename").count() == 1


def test_the_last_use_is_noted_at_most_once_a_minute(ada, django_assert_num_queries):
    first, second = made(ada)[0], made(ada)[0]
    now = timezone.now()

    with django_assert_num_queries(1):
        assert keys.used({first.pk: now, second.pk: now}) == 2
    assert keys.used({first.pk: now + timedelta(seconds=59), second.pk: now - timedelta(hours=1)}) == 0
    assert keys.used({first.pk: now + timedelta(seconds=61)}) == 1
    with django_assert_num_queries(0):
        assert keys.used({}) == 0

    assert ApiKey.objects.get(pk=first.pk).last_used_at == now + timedelta(seconds=61)
    assert ApiKey.objects.get(pk=second.pk).last_used_at == now


def test_the_command_prints_the_key_alone_on_its_last_line(ada, capsys):
    call_command("apikey", "create", "--user", "ada", "--name", "laptop")

    key = capsys.readouterr().out.splitlines()[-1]
    assert ApiKey.objects.usable().filter(digest=ApiKey.digest_of(key)).exists()
    call_command("apikey", "list")
    assert key[:10] in capsys.readouterr().out
    call_command("apikey", "revoke", key[:10])
    assert not ApiKey.objects.usable().exists()


def test_the_command_gives_every_right(ada, capsys):
    team = in_team(ada, Membership.Role.OWNER)
    model("open")
    rights = [
        "--team",
        "Team",
        "--scope",
        "write",
        "--scope",
        "read",
        "--model",
        "open",
        "--priority",
        "batch",
    ]

    call_command("apikey", "create", "--user", "ada", "--name", "ci", "--expires-days", "7", *rights)

    key = ApiKey.objects.get(digest=ApiKey.digest_of(capsys.readouterr().out.splitlines()[-1]))
    assert (key.team, key.scopes, key.model_slugs, key.priority) == (
        team,
        ["read", "write"],
        ["open"],
        "batch",
    )
    assert key.expires_at is not None
    assert timedelta(days=6) < key.expires_at - timezone.now() <= timedelta(days=7)


def test_the_command_refuses_in_words(ada):
    with pytest.raises(CommandError, match="no user 'nobody'"):
        call_command("apikey", "create", "--user", "nobody", "--name", "x")
    with pytest.raises(CommandError, match="no team 'None'"):
        call_command("apikey", "create", "--user", "ada", "--name", "x", "--team", "None")
    with pytest.raises(CommandError, match="at least a day"):
        call_command("apikey", "create", "--user", "ada", "--name", "x", "--expires-days", "0")
    with pytest.raises(CommandError, match="no model 'nowhere'"):
        call_command("apikey", "create", "--user", "ada", "--name", "x", "--model", "nowhere")
    with pytest.raises(CommandError, match="0 usable keys"):
        call_command("apikey", "revoke", "sk-unknown")
