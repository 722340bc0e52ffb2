import json
import time
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import httpx
import pytest
from django.db import connection
from django.test import Client

from accounts.models import Membership, Team, User
from chat import actions, search
from chat.models import Conversation, Generation, Message
from chat.states import MessageStatus
from models_admin.models import ServedModel
from tests.portal import DEMO_MODEL, Portal
from tests.serving import serve

pytestmark = pytest.mark.django_db


@pytest.fixture
def served() -> ServedModel:
    return serve("http://127.0.0.1:9", "key")


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def begun(ada: User, served: ServedModel) -> Conversation:
    return actions.begin(owner=ada, text="Why is the *sky* blue?", served=served)


def call(user: User, method: str, path: str, body: object = None, **headers: str) -> Any:
    client = Client()
    client.force_login(user)
    data = {"data": json.dumps(body), "content_type": "application/json"} if body is not None else {}
    return getattr(client, method)(f"/api/v1/{path}", **data, headers=headers)


def refused(response: Any, status: HTTPStatus, code: str, param: str | None = None) -> None:
    assert response.status_code == status, response.content
    assert (response.json()["code"], response.json()["param"]) == (code, param)


def end(conversation: Conversation, text: str, status: MessageStatus = MessageStatus.DONE) -> Message:
    """What a generator does at the end."""
    Generation.objects.filter(message__conversation=conversation, ended_at=None).update(
        ended_at=conversation.created_at
    )
    conversation.messages.filter(role="assistant").update(text=text, status=status, timings={"total_ms": 7.5})
    return conversation.messages.last()


def test_a_conversation_is_begun_read_renamed_and_deleted(ada: User, served: ServedModel) -> None:
    begun = call(ada, "post", "conversations/", {"model": "fake", "text": "Why is the sky blue?"})
    assert begun.status_code == HTTPStatus.CREATED
    body = begun.json()
    assert (body["title"], body["model"], body["owner"]) == ("Why is the sky blue?", "fake", "ada")
    assert body["generation"] == str(Generation.objects.get().pk)

    path = f"conversations/{body['id']}/"
    assert call(ada, "get", path).json() == body
    assert [one["id"] for one in call(ada, "get", "conversations/").json()["results"]] == [body["id"]]
    assert call(ada, "patch", path, {"title": "Sky"}).json()["title"] == "Sky"
    assert call(ada, "patch", path, body | {"title": "Sky"}).status_code == HTTPStatus.OK
    refused(call(ada, "patch", path, {"title": ""}), HTTPStatus.BAD_REQUEST, "invalid_request", "title")

    assert call(ada, "delete", path).status_code == HTTPStatus.NO_CONTENT
    refused(call(ada, "delete", path), HTTPStatus.NOT_FOUND, "not_found")


def test_a_question_is_answered_in_the_background(ada: User, begun: Conversation) -> None:
    messages = f"conversations/{begun.pk}/messages/"
    refused(call(ada, "post", messages, {"text": "More?"}), HTTPStatus.CONFLICT, "answer_unfinished")
    first = end(begun, "Because of **scattering**.")

    asked = call(ada, "post", messages, {"text": "And red?"})

    assert asked.status_code == HTTPStatus.ACCEPTED
    generation = asked.json()
    assert (generation["status"], generation["text"], generation["ended_at"]) == ("queued", "", None)
    assert call(ada, "get", f"generations/{generation['id']}/").json() == generation
    listed = call(ada, "get", messages).json()["results"]
    assert [one["role"] for one in listed] == ["user", "assistant"] * 2
    assert listed[1]["text"] == first.text
    assert listed[1]["timings"] == {"total_ms": 7.5}
    assert listed[3] | {"id": generation["message"], "generation": generation["id"]} == listed[3]
    assert len(call(ada, "get", messages + "?page_size=3&page=2").json()["results"]) == 1


def test_asking_again_with_the_same_id_is_refused(ada: User, begun: Conversation) -> None:
    chosen = str(uuid4())
    end(begun, "So.")
    messages = f"conversations/{begun.pk}/messages/"
    assert call(ada, "post", messages, {"id": chosen, "text": "A"}).status_code == HTTPStatus.ACCEPTED
    end(begun, "So.")
    refused(call(ada, "post", messages, {"id": chosen, "text": "A"}), HTTPStatus.CONFLICT, "conflict", "id")
    assert begun.messages.count() == 4

    body = {"id": chosen, "model": "fake", "text": "A", "title": "B"}
    assert call(ada, "post", "conversations/", body).json()["title"] == "B"
    refused(call(ada, "post", "conversations/", body), HTTPStatus.CONFLICT, "conflict", "id")


def test_an_answer_is_stopped_and_written_anew(ada: User, begun: Conversation) -> None:
    generation = f"generations/{Generation.objects.get().pk}/"
    refused(call(ada, "post", generation + "retry/"), HTTPStatus.CONFLICT, "conflict")
    for _ in range(2):
        stopped = call(ada, "post", generation + "stop/").json()
        assert stopped["status"] == "stopped"
        assert stopped["ended_at"]

    again = call(ada, "post", generation + "retry/")

    assert again.status_code == HTTPStatus.ACCEPTED
    assert again.json()["status"] == "queued"
    refused(call(ada, "get", generation), HTTPStatus.NOT_FOUND, "not_found")


def test_a_conversation_is_exported_as_json_and_markdown(ada: User, begun: Conversation) -> None:
    end(begun, "Because of **scattering**.")
    path = f"conversations/{begun.pk}/export/"

    whole = call(ada, "get", path)
    assert [one["text"] for one in whole.json()["messages"]] == [
        "Why is the *sky* blue?",
        "Because of **scattering**.",
    ]
    assert whole["content-disposition"] == 'attachment; filename="Why is the sky blue.json"'

    for text in (call(ada, "get", path + "?format=markdown"), call(ada, "get", path, accept="text/markdown")):
        assert text["content-type"] == "text/markdown; charset=utf-8"
        assert text.content.decode().splitlines()[::2] == [
            "# Why is the *sky* blue?",
            f"*{begun.created_at:%Y-%m-%d %H:%M} UTC*",
            "## You",
            "Why is the *sky* blue?",
            "## fake",
            "Because of **scattering**.",
        ]
    refused(call(ada, "get", path + "?format="), HTTPStatus.BAD_REQUEST, "invalid_request", "format")
    missing = call(ada, "get", f"conversations/{uuid4()}/export/?format=markdown")
    refused(missing, HTTPStatus.NOT_FOUND, "not_found")


def test_conversations_are_their_owners_alone(begun: Conversation) -> None:
    boss = User.objects.create_user("boss", is_staff=True)
    generation = Generation.objects.get().pk

    assert call(boss, "get", "conversations/").json()["results"] == []
    for method, path in (
        ("get", f"conversations/{begun.pk}/"),
        ("patch", f"conversations/{begun.pk}/"),
        ("delete", f"conversations/{begun.pk}/"),
        ("get", f"conversations/{begun.pk}/messages/"),
        ("post", f"conversations/{begun.pk}/messages/"),
        ("get", f"conversations/{begun.pk}/export/"),
        ("get", f"generations/{generation}/"),
        ("post", f"generations/{generation}/stop/"),
        ("post", f"generations/{generation}/retry/"),
    ):
        body = None if method == "get" else {"text": "Hello", "title": "Mine"}
        refused(call(boss, method, path, body), HTTPStatus.NOT_FOUND, "not_found")
    begun.refresh_from_db()
    assert begun.title == "Why is the *sky* blue?"
    assert not Generation.objects.get().stop_requested


def test_a_conversation_is_shared_with_a_team_of_its_owner(ada: User, begun: Conversation) -> None:
    ben = User.objects.create_user("ben")
    lab, other = Team.objects.create(name="Lab"), Team.objects.create(name="Other")
    for who in (ada, ben):
        Membership.objects.create(team=lab, user=who)
    path = f"conversations/{begun.pk}/"

    for _ in range(2):
        assert call(ada, "put", path + "share/", {"team": lab.pk}).json()["shared_with"] == lab.pk
    assert call(ben, "get", path).json()["shared_with"] == lab.pk
    for method in ("put", "delete"):
        refused(call(ben, method, path + "share/", {"team": lab.pk}), HTTPStatus.NOT_FOUND, "not_found")
    for team in (other.pk, 0, None):
        refused(
            call(ada, "put", path + "share/", {"team": team}),
            HTTPStatus.BAD_REQUEST,
            "invalid_request",
            "team",
        )
    for _ in range(2):
        assert call(ada, "delete", path + "share/").status_code == HTTPStatus.NO_CONTENT
    refused(call(ben, "get", path), HTTPStatus.NOT_FOUND, "not_found")


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("text", {"model": "fake"}),
        ("text", {"model": "fake", "text": ""}),
        ("text", {"model": "fake", "text": "a\0b"}),
        ("text", {"model": "fake", "text": 5}),
        ("text", {"model": "fake", "text": "a" * 200_001}),
        ("model", {"text": "a"}),
        ("model", {"text": "a", "model": "unknown"}),
        ("id", {"text": "a", "model": "fake", "id": "7"}),
        ("temperature", {"text": "a", "model": "fake", "temperature": 1}),
    ],
)
def test_a_question_that_can_not_be_asked(
    ada: User, served: ServedModel, param: str, body: dict[str, Any]
) -> None:
    refused(call(ada, "post", "conversations/", body), HTTPStatus.BAD_REQUEST, "invalid_request", param)
    assert not Conversation.objects.exists()


def test_conversations_are_filtered_searched_and_ordered(ada: User, served: ServedModel) -> None:
    for text in ("Apples", "Pears", "Cherries"):
        actions.begin(owner=ada, text=text, served=served)

    def titles(query: str) -> list[str]:
        return [one["title"] for one in call(ada, "get", f"conversations/?{query}").json()["results"]]

    assert titles("") == ["Cherries", "Pears", "Apples"]
    assert titles("ordering=title&page_size=2") == ["Apples", "Cherries"]
    assert titles("search=pear") == ["Pears"]
    assert titles("model=other") == []
    assert titles("mine=false") == []
    for wrong, param in (("page=2&page=1", "page"), ("mine=", "mine"), ("ordering=", "ordering")):
        refused(call(ada, "get", "conversations/?" + wrong), HTTPStatus.BAD_REQUEST, "invalid_request", param)


def test_words_are_found_in_what_one_may_read(ada: User, begun: Conversation, served: ServedModel) -> None:
    end(begun, "Because short waves are scattered more than long ones. " + "More. " * 100)
    eve = User.objects.create_user("eve")
    actions.begin(owner=eve, text="What is scattered?", served=served)

    def found(query: str) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = call(ada, "get", "conversations/search/?q=" + query).json()["results"]
        return results

    (one,) = found("scattered waves")
    assert one["conversation"] == str(begun.pk)
    assert "scattered" in one["excerpt"]
    assert len(one["excerpt"]) < 300
    assert found("scattered -long") == []
    assert found('"waves short"') == []
    assert [hit["role"] for hit in found("sky")] == ["user"]
    for wrong in ("", "%00", "a" * 201):
        refused(
            call(ada, "get", "conversations/search/?q=" + wrong),
            HTTPStatus.BAD_REQUEST,
            "invalid_request",
            "q",
        )


def test_words_are_found_through_the_index(ada: User, begun: Conversation) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
    plan = search.search("sky", reader=ada).order_by().explain()

    assert "message_words" in plan


def test_lists_need_a_bounded_number_of_queries(
    ada: User, served: ServedModel, django_assert_max_num_queries: Any
) -> None:
    for number in range(12):
        begun = actions.begin(owner=ada, text=str(number), served=served)
    end(begun, "So.")
    client = Client()
    client.force_login(ada)
    for path in ("conversations/", f"conversations/{begun.pk}/messages/"):
        with django_assert_max_num_queries(7):
            client.get(f"/api/v1/{path}")


@pytest.mark.portal
def test_a_program_talks_through_rest(portal: Portal) -> None:
    key = portal.manage(
        "apikey",
        "create",
        "--user",
        portal.username,
        "--name",
        "rest",
        *(part for scope in ("inference", "read", "write") for part in ("--scope", scope)),
    ).split()[-1]
    with httpx.Client(
        base_url=portal.base_url + "/api/v1/", headers={"authorization": f"Bearer {key}"}, timeout=30
    ) as program:
        begun = program.post("conversations/", json={"model": DEMO_MODEL, "text": "Count to three."}).json()
        path, deadline = f"generations/{begun['generation']}/", time.monotonic() + 60
        while not (answer := program.get(path).json())["ended_at"]:
            assert time.monotonic() < deadline, answer
            time.sleep(0.1)

        assert answer["status"] == "done", answer
        assert answer["text"]
        assert answer["completion_tokens"] > 0
        text = program.get(f"conversations/{begun['id']}/export/", headers={"accept": "text/markdown"}).text
        assert answer["text"] in text
        assert program.delete(f"conversations/{begun['id']}/").status_code == HTTPStatus.NO_CONTENT
