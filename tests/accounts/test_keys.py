"""The first administrator and API keys."""

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts import actions
from accounts.models import ApiKey, AuditEntry, User

pytestmark = pytest.mark.django_db


def test_the_first_administrator_is_made_once():
    password = actions.ensure_first_admin("boss", "")

    assert password is not None
    assert User.objects.get().check_password(password)
    assert actions.ensure_first_admin("boss", "") is None
    assert actions.ensure_first_admin("another", "given") is None
    assert User.objects.count() == 1


def test_a_given_password_is_not_shown_again():
    assert actions.ensure_first_admin("boss", "given password") is None
    assert User.objects.get().check_password("given password")


def test_a_key_is_kept_as_a_digest_only():
    user = User.objects.create_user("ada")
    row, key = actions.create_api_key(user=user, name="laptop", by=user)

    assert key.startswith("sk-")
    assert key not in str(vars(row))
    assert ApiKey.objects.usable().get(digest=ApiKey.digest_of(key)) == row
    assert AuditEntry.objects.filter(verb="apikey.create", by=user).exists()


def test_a_key_ends_by_revocation_expiry_or_its_owner():
    user = User.objects.create_user("ada")
    revoked, _ = actions.create_api_key(user=user, name="revoked", by=None)
    actions.revoke_api_key(revoked, by=None)
    actions.revoke_api_key(revoked, by=None)
    actions.create_api_key(user=user, name="old", by=None, expires_at=timezone.now() - timedelta(seconds=1))
    good, _ = actions.create_api_key(user=user, name="good", by=None)

    assert list(ApiKey.objects.usable()) == [good]
    assert AuditEntry.objects.filter(verb="apikey.revoke").count() == 1
    User.objects.update(is_active=False)
    assert not ApiKey.objects.usable().exists()


def test_the_command_prints_the_key_alone_on_its_last_line(capsys):
    User.objects.create_user("ada")

    call_command("apikey", "create", "--user", "ada", "--name", "laptop")

    key = capsys.readouterr().out.splitlines()[-1]
    assert ApiKey.objects.usable().filter(digest=ApiKey.digest_of(key)).exists()
    call_command("apikey", "list")
    assert key[:10] in capsys.readouterr().out
    call_command("apikey", "revoke", key[:10])
    assert not ApiKey.objects.usable().exists()


def test_the_command_refuses_in_words():
    with pytest.raises(CommandError, match="no user 'nobody'"):
        call_command("apikey", "create", "--user", "nobody", "--name", "x")
    with pytest.raises(CommandError, match="0 usable keys"):
        call_command("apikey", "revoke", "sk-unknown")
