import pytest
from django.core.management import CommandError, call_command

from accounts.models import AuditEntry, Team
from models_admin import tasks
from models_admin.engine import launch_config
from models_admin.models import Instance, Node, PortalConfig, ServedModel
from models_admin.states import InstanceState as S

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nobody_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "wake", lambda name: None)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    call_command("models", *words)
    return capsys.readouterr().out


def test_a_model_is_scaled(served: ServedModel) -> None:
    call_command("models", "scale", "fake-model", "2", "--most", "4", verbosity=0)
    served.refresh_from_db()
    assert (served.min_replicas, served.max_replicas, served.enabled) == (2, 4, True)
    with pytest.raises(CommandError, match="0 to 16"):
        call_command("models", "scale", "fake-model", "17")


def test_a_models_parameters_are_set(
    served: ServedModel, node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    Instance.objects.create(
        served=served, node=node, state=S.READY, launched=launch_config.of(served).snapshot()
    )
    Team.objects.create(name="Red team")
    answer = said(
        capsys,
        "set",
        "fake-model",
        "slots=3",
        "vision=off",
        "extra_flags=--mlock --temp 0.5",
        "teams='Red team'",
    )
    assert "1 running replica is replaced: Fake (1)." in answer
    served.refresh_from_db()
    assert (served.slots, served.vision, served.extra_flags) == (3, False, ["--mlock", "--temp", "0.5"])
    assert served.teams.get().name == "Red team"
    said(capsys, "set", "fake-model", "slots=", "vision=", "extra_flags=", "teams=")
    served.refresh_from_db()
    assert (served.slots, served.vision, served.extra_flags) == (None, None, [])
    assert not served.teams.exists()
    assert [entry.verb for entry in AuditEntry.objects.all()] == ["model.change", "model.change"]


@pytest.mark.parametrize(
    ("assignment", "refusal"),
    [
        ("slots=0", "greater than or equal to 1"),
        ("slots=many", "slots: .*integer"),
        ("vision=perhaps", "vision: "),
        ("extra_flags=--tools all", "isn't allowed"),
        ("extra_flags='", "extra_flags: No closing quotation"),
        ("ubatch_tokens=4096", "part of the batch"),
        ("enabled=on", "no parameter 'enabled'"),
        ("slots", "no NAME=VALUE"),
        ("teams=Nobody", "no team 'Nobody'"),
    ],
)
def test_a_wrong_assignment_is_a_sentence(served: ServedModel, assignment: str, refusal: str) -> None:
    with pytest.raises(CommandError, match=refusal):
        call_command("models", "set", "fake-model", assignment)
    assert not AuditEntry.objects.exists()


def test_the_portals_configuration_is_shown_and_set(
    served: ServedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "batch_tokens=2048\n" in said(capsys, "config")
    assert said(capsys, "config", "batch_tokens=1024", "idle_timeout_s=60", "vision=off") == "Saved.\n"
    shown = said(capsys, "config")
    assert "batch_tokens=1024\n" in shown
    assert "idle_timeout_s=60\n" in shown
    assert "vision=off\n" in shown
    assert launch_config.of(served).batch_tokens == 1024
    said(capsys, "config", "batch_tokens=", "idle_timeout_s=")
    assert (PortalConfig.current().batch_tokens, PortalConfig.current().idle_timeout_s) == (None, 900)
    with pytest.raises(CommandError, match="no parameter 'pinned'"):
        call_command("models", "config", "pinned=on")
