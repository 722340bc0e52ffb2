from datetime import timedelta

import pytest
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from accounts.models import Team
from chat.models import Conversation, Generation, Message
from gateway.models import UsageRecord
from gateway.usage import books
from llamaproj import env
from models_admin.models import ExternalServer, Instance, ServedModel
from monitoring import sampling
from monitoring.engine_metrics import EngineReading
from tests.serving import serve

pytestmark = pytest.mark.django_db
PAGES = ["/dashboard/", "/monitoring/", "/monitoring/history/", "/monitoring/statistics/"]


@pytest.mark.parametrize("url", PAGES)
def test_pages_are_for_those_who_sign_in(client, url):
    response = client.get(url)
    assert response.status_code == 302
    assert response["location"].startswith("/accounts/login/")


@pytest.mark.parametrize("url", PAGES)
def test_pages_only_answer_questions(client, member, url):
    client.force_login(member)
    assert client.post(url).status_code == 405


def test_a_fresh_portal_has_an_empty_dashboard(client, member):
    client.force_login(member)
    response = client.get("/dashboard/")
    assert response.status_code == 200
    assert "No machine has reported yet" in response.text
    assert "dashboard.js" not in response.text
    assert client.get("/monitoring/history/").status_code == 404


def test_the_dashboard_has_the_hooks_of_the_contract(client, member, sampled):
    sampled()
    client.force_login(member)
    page = client.get("/dashboard/").text
    for metric in ("cpu", "memory", "gpu", "net-in", "net-out", "load", "disk"):
        assert f'data-metric="{metric}" data-value' in page
    assert " style=" not in page
    assert client.get("/monitoring/")["location"] == "/dashboard/"


def test_another_machine_can_be_chosen(client, member, node, sampled):
    from models_admin.models import Node

    Node.objects.create(name="second", last_seen=timezone.now() + timedelta(seconds=1))
    client.force_login(member)
    assert 'data-node="second"' in client.get("/dashboard/").text
    assert 'data-node="test-node"' in client.get("/dashboard/?node=test-node").text
    assert client.get("/dashboard/?node=none").status_code == 404


def test_history_has_the_past_and_the_present(client, member, sampled):
    sampled(at=timezone.now() - timedelta(seconds=4), cpu=10.0)
    sampled(cpu=30.0)
    client.force_login(member)
    past = client.get("/monitoring/history/?node=test-node&minutes=10").json()
    assert [value for value in past["columns"]["cpu_percent"] if value is not None] == [10, 30]
    assert past["latest"]["data"]["cpu"]["percent"] == 30
    assert past["step_s"] == 2


def test_a_silent_machine_has_no_present(client, member, sampled):
    sampled(at=timezone.now() - timedelta(minutes=1))
    client.force_login(member)
    past = client.get("/monitoring/history/").json()
    assert past["columns"]["cpu_percent"] == [50]
    assert past["latest"] is None


def test_history_hides_models_of_others(client, member, staff, sampled):
    serve("http://127.0.0.1:9", "key", slug="closed").teams.add(Team.objects.create(name="others"))
    sampled()
    counts = []
    for user in (member, staff):
        client.force_login(user)
        counts.append(len(client.get("/monitoring/history/").json()["latest"]["data"]["instances"]))
    assert counts == [0, 1]


@pytest.mark.parametrize("minutes", ["", "0", "-1", "1.5", "abc", "1441", "9" * 50, "²"])
def test_a_wrong_time_span_is_refused_in_words(client, member, node, minutes):
    client.force_login(member)
    response = client.get("/monitoring/history/", {"minutes": minutes})
    assert response.status_code == 400
    assert "`minutes` is a number from 1 to 1440" in response.json()["error"]


def test_statistics_show_visible_models_only(client, member):
    closed = serve("http://127.0.0.1:9", "key", slug="closed")
    closed.teams.add(Team.objects.create(name="others"))
    serve("http://127.0.0.1:10", "key", slug="open")
    for slug in ("open", "closed"):
        UsageRecord.objects.create(model_slug=slug, finish="stop", door="api", total_ms=1_500)
    client.force_login(member)
    fragment = client.get("/monitoring/statistics/?window=1h").text
    assert ">open<" in fragment
    assert ">closed<" not in fragment
    assert "1.5 s" in fragment
    assert 'id="statistics"' in fragment


def test_no_request_is_said_in_words(client, member):
    client.force_login(member)
    assert "No request in the last 5 minutes" in client.get("/monitoring/statistics/?window=nonsense").text


OUTSIDE = {"REMOTE_ADDR": "10.1.2.3"}


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        ({"REMOTE_ADDR": "127.0.0.1"}, 200),
        ({"REMOTE_ADDR": "::1"}, 200),
        (OUTSIDE, 403),
        ({"REMOTE_ADDR": ""}, 403),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "127.0.0.1"}, 403),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_PROTO": "https"}, 403),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_FORWARDED": "for=10.1.2.3"}, 403),
        (OUTSIDE | {"HTTP_AUTHORIZATION": "Bearer the-token"}, 200),
        (OUTSIDE | {"HTTP_AUTHORIZATION": "bearer the-token"}, 200),
        (OUTSIDE | {"HTTP_AUTHORIZATION": "Bearer wrong"}, 403),
        (OUTSIDE | {"HTTP_AUTHORIZATION": "Bearer "}, 403),
        (OUTSIDE | {"HTTP_AUTHORIZATION": "Basic the-token"}, 403),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_AUTHORIZATION": "Bearer wrong"}, 403),
    ],
)
def test_metrics_are_for_loopback_and_the_token(client, monkeypatch, extra, status):
    monkeypatch.setattr(env, "METRICS_TOKEN", "the-token")
    assert client.get("/metrics", **extra).status_code == status


def test_without_a_token_none_is_right(client):
    assert env.METRICS_TOKEN == ""
    assert client.get("/metrics", **OUTSIDE, HTTP_AUTHORIZATION="Bearer ").status_code == 403


def test_metrics_are_for_staff_and_not_for_members(client, member, staff):
    client.force_login(member)
    assert client.get("/metrics", **OUTSIDE).status_code == 403
    client.force_login(staff)
    assert client.get("/metrics", **OUTSIDE).status_code == 200


def test_metrics_say_what_is_known(client, node, instance, sampled, member):
    sampled(cpu=25.0)
    engine = EngineReading(metrics={"tokens_predicted_total": 7.0, "n_tokens_max": 3.0})
    sampling.remember_metrics(node.name, timezone.now(), {str(instance.pk): engine})
    used = {"model_slug": "open", "door": "api", "prompt_tokens": 2, "completion_tokens": 3}
    books.write(
        [
            UsageRecord(finish=finish, total_ms=ms, **used)
            for finish, ms in (("stop", 150), ("stop", 3_000), ("error", 1))
        ]
    )
    conversation = Conversation.objects.create(owner=member)
    for number, lease in enumerate((None, timezone.now() + timedelta(minutes=1)), 1):
        message = Message.objects.create(conversation=conversation, number=number, role="assistant")
        Generation.objects.create(message=message, lease_until=lease)

    response = client.get("/metrics")
    assert response["content-type"].startswith("text/plain; version=")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert found["llamaproj_requests_total", "api", "open", "stop"] == 2
    assert found["llamaproj_requests_total", "api", "error", "open"] == 1
    assert found["llamaproj_tokens_total", "api", "completion", "open"] == 9
    assert found["llamaproj_request_duration_seconds_bucket", "0.2", "api", "open"] == 1
    assert found["llamaproj_request_duration_seconds_bucket", "+Inf", "api", "open"] == 2
    assert found["llamaproj_request_duration_seconds_sum", "api", "open"] == pytest.approx(3.15)
    assert found["llamaproj_node_cpu_ratio", "test-node"] == 0.25
    assert found["llamaproj_instances", "open", "ready", "test-node"] == 1
    assert found["llamaproj_generations", "running"] == found["llamaproj_generations", "waiting"] == 1
    labels = sorted(["open", str(instance.pk), "test-node"])
    assert found["llamacpp:tokens_predicted_total", *labels] == 7
    assert "\nllamacpp:n_tokens_max{" in response.text


def test_metrics_are_there_with_replicas_that_have_no_machine(client, instance):
    Instance.objects.create(served=instance.served, state="pending")
    server = ExternalServer.objects.create(name="box", base_url="http://127.0.0.1:9/v1")
    there = ServedModel.objects.create(slug="there", name="There", external=server, external_name="there")
    Instance.objects.create(served=there, state="ready")

    response = client.get("/metrics")
    assert response.status_code == 200
    assert 'llamaproj_instances{model="open",node="",state="pending"} 1' in response.text
    assert 'llamaproj_instances{model="there",node="",state="ready"} 1' in response.text


def test_metrics_of_a_silent_node_are_not_shown(client, sampled):
    sampled(at=timezone.now() - timedelta(minutes=1))
    assert "llamaproj_node_cpu_ratio{" not in client.get("/metrics").text
