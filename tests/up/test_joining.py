"""Who may join a portal, and from which address."""

import socket

import pytest
from django.db import connection
from django.test import override_settings

from llamaproj import env
from llamaproj.up import node, node_address, portal
from llamaproj.up.errors import StartError
from models_admin import secret_box
from models_admin.models import Node, PortalConfig
from models_admin.nodes import facts as node_facts


@pytest.fixture
def prepared(db, monkeypatch):
    """A database that a portal with this SECRET_KEY has made ready."""
    monkeypatch.setattr(portal, "_disconnect", lambda: None)
    portal._note_key()


def test_a_node_with_the_portals_key_and_version_may_join(prepared):
    portal.check_joining()
    assert not portal.has_joined()
    node_facts.register()
    assert portal.has_joined()


def test_another_key_is_refused_and_not_given_away(prepared):
    assert PortalConfig.current().key_fingerprint == secret_box.fingerprint()
    with override_settings(SECRET_KEY="another"):
        assert PortalConfig.current().key_fingerprint != secret_box.fingerprint()
        with pytest.raises(StartError, match="SECRET_KEY differs from the portal's"):
            portal.check_joining()
        # The portal itself may be given a new key.
        portal._note_key()
        portal.check_joining()
    assert "only-for-tests" not in PortalConfig.current().key_fingerprint


def test_noting_the_key_keeps_what_administrators_have_set(prepared):
    PortalConfig.objects.update(slots=7, key_fingerprint="")
    portal._note_key()
    assert PortalConfig.current().slots == 7


def test_a_database_that_no_portal_has_prepared_is_refused(prepared):
    PortalConfig.objects.all().delete()
    with pytest.raises(StartError, match="start the portal first"):
        portal.check_joining()


def test_an_older_and_a_newer_portal_are_told_apart(prepared):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO django_migrations (app, name, applied) VALUES ('chat', '9999_tomorrow', now())"
        )
        with pytest.raises(StartError, match="The portal is newer than this node"):
            portal.check_joining()
        cursor.execute("DELETE FROM django_migrations WHERE app = 'chat'")
        with pytest.raises(StartError, match="The portal is older than this node"):
            portal.check_joining()
        cursor.execute("DELETE FROM django_migrations")
        with pytest.raises(StartError, match="No portal has been started on this database"):
            portal.check_joining()


def test_a_name_that_is_alive_elsewhere_is_refused(prepared):
    node_facts.register()
    portal.check_joining()
    Node.objects.update(machine="another")
    with pytest.raises(StartError, match=f"Another machine is alive under the name {env.NODE_NAME}"):
        portal.check_joining()


def test_what_a_node_lacks_is_named(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://10.0.0.1:6379/0")
    with pytest.raises(StartError, match="set DATABASE_URL to the portal's"):
        node._check_given()


# The address --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_an_address_of_this_machine_is_taken(monkeypatch, address):
    monkeypatch.setattr(env, "NODE_ADDRESS", address)
    assert node_address.find() == address
    node_address.check()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("0.0.0.0", "means every network of this machine"),
        ("::", "means every network of this machine"),
        ("10.255.255.254", "is not an address of this machine"),
        ("8.8.8.8", "is a public address, where anybody could reach the llama-servers"),
        ("no.such.host.invalid", "is neither an address nor a known name"),
    ],
)
def test_another_address_is_refused(monkeypatch, address, words):
    monkeypatch.setattr(env, "NODE_ADDRESS", address)
    for refuse in (node_address.check, node_address.find):
        with pytest.raises(StartError, match=f"NODE_ADDRESS={address} .*{words}"):
            refuse()


def test_a_public_address_is_taken_from_who_insists_if_it_is_this_machines(monkeypatch):
    monkeypatch.setattr(env, "NODE_ADDRESS", "8.8.8.8")
    monkeypatch.setattr(env, "NODE_PUBLIC", True)
    with pytest.raises(StartError, match="is not an address of this machine"):
        node_address.check()
    monkeypatch.setattr(env, "NODE_ADDRESS", "0.0.0.0")
    with pytest.raises(StartError, match="means every network"):
        node_address.check()


def test_without_one_it_is_the_way_to_the_database(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@10.9.8.7:5433/x")

    class Probe(socket.socket):
        def connect(self, target):
            assert target[0] == "10.9.8.7"

        def getsockname(self):
            return ("127.0.0.2", 1) if loopback else ("10.9.8.1", 1)

        def bind(self, place):
            assert place[0] == "10.9.8.1"

    monkeypatch.setattr(socket, "socket", Probe)
    loopback = False
    assert node_address.find() == "10.9.8.1"
    loopback = True
    with pytest.raises(StartError, match="set NODE_ADDRESS"):
        node_address.find()


def test_a_database_behind_a_unix_socket_is_on_this_machine(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres@/x?host=/run/db")
    assert node_address.find() == "127.0.0.1"
