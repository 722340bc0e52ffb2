"""Chats as data: beginning, sending, renaming, deleting, and whom they belong to."""

from http import HTTPStatus

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import Team, User
from chat import actions
from chat.errors import AnswerUnfinished, EmptyMessage, MessageTooLong
from chat.models import Conversation, Generation, Message
from chat.sidebar import day_label
from chat.states import MessageStatus
from llamaproj.errors import Conflict, InvalidInput
from models_admin.models import ExternalServer, ServedModel
from models_admin.states import InstanceState
from tests.serving import serve

pytestmark = pytest.mark.django_db


@pytest.fixture
def served() -> ServedModel:
    return serve("http://127.0.0.1:1", "key")


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def conversation(ada: User, served: ServedModel) -> Conversation:
    return actions.begin(owner=ada, text="Why is the sky blue? " * 5, served=served)


def finish(conversation: Conversation, text: str = "Because.") -> Message:
    Generation.objects.filter(message__conversation=conversation).update(ended_at=timezone.now())
    answer = conversation.messages.last()
    Message.objects.filter(pk=answer.pk).update(status=MessageStatus.DONE, text=text)
    answer.refresh_from_db()
    return answer


def test_a_conversation_begins_with_a_question_and_a_queued_answer(conversation):
    question, answer = conversation.messages.all()

    assert (question.role, question.number) == ("user", 1)
    assert (answer.role, answer.status) == ("assistant", "queued")
    assert Generation.objects.get().message == answer
    assert conversation.title.startswith("Why is the sky blue?")
    assert len(conversation.title) <= 61


@pytest.mark.parametrize(
    ("text", "error"),
    [("", EmptyMessage), (" \n ", EmptyMessage), ("a\0b", InvalidInput), ("x" * 200_001, MessageTooLong)],
)
def test_a_message_that_cannot_be_sent_changes_nothing(conversation, served, text, error):
    finish(conversation)

    with pytest.raises(error):
        actions.send(conversation, text=text, served=served)

    assert conversation.messages.count() == 2


def test_one_answer_at_a_time(conversation, served):
    with pytest.raises(AnswerUnfinished):
        actions.send(conversation, text="And?", served=served)


def test_only_the_last_ended_answer_can_be_retried(conversation, served):
    with pytest.raises(Conflict):
        actions.retry(conversation.messages.get(number=2))
    first = finish(conversation)
    old = Generation.objects.get()

    actions.retry(first)

    first.refresh_from_db()
    assert (first.status, first.text) == ("queued", "")
    assert Generation.objects.get().pk != old.pk


def test_titles_are_checked(conversation):
    actions.rename(conversation, title="  Sky \n colours ")
    conversation.refresh_from_db()
    assert conversation.title == "Sky colours"
    for title in ("", " ", "x" * 121, "a\0"):
        with pytest.raises(InvalidInput):
            actions.rename(conversation, title=title)


def test_deleting_takes_everything_with_it(conversation):
    actions.delete(conversation)

    assert not Message.objects.exists()
    assert not Generation.objects.exists()


@pytest.mark.parametrize("username", ["eve", "root"])
def test_conversations_of_others_look_unknown_even_to_administrators(client: Client, conversation, username):
    other = User.objects.create_user(username, is_staff=username == "root", is_superuser=username == "root")
    client.force_login(other)
    base = f"/c/{conversation.pk}/"
    answer = conversation.messages.get(number=2)

    assert client.get(base).status_code == HTTPStatus.NOT_FOUND
    for path in ("send/", "stop/", "rename/", "delete/", f"retry/{answer.pk}/"):
        response = client.post(base + path, {"text": "x", "title": "x", "model": "fake"})
        assert response.status_code == HTTPStatus.NOT_FOUND, path
    assert conversation.messages.count() == 2


def test_nobody_is_sent_to_sign_in(client: Client, conversation):
    for path in ("/", "/c/", f"/c/{conversation.pk}/"):
        response = client.get(path)
        assert response.status_code == HTTPStatus.FOUND
        assert response["location"].startswith("/accounts/login/")


def test_every_action_works_as_a_plain_form(client: Client, ada, served):
    client.force_login(ada)
    response = client.post("/c/new/", {"text": "Hello there", "model": "fake"})
    conversation = Conversation.objects.get()
    base = f"/c/{conversation.pk}/"
    assert response["location"] == base
    assert "Hello there" in client.get(base).content.decode()

    client.post(base + "stop/")
    answer = conversation.messages.get(number=2)
    assert answer.status == "stopped"
    client.post(base + f"retry/{answer.pk}/")
    finish(conversation)
    client.post(base + "send/", {"text": "More", "model": "fake"})
    client.post(base + "rename/", {"title": "Greetings"})
    conversation.refresh_from_db()
    assert conversation.title == "Greetings"
    assert conversation.messages.count() == 4
    client.post(base + "delete/")
    assert not Conversation.objects.exists()


def test_what_was_typed_survives_a_refusal(client: Client, ada, served):
    client.force_login(ada)

    response = client.post("/c/new/", {"text": "precious words", "model": "gone"})

    assert response.status_code == HTTPStatus.NOT_FOUND
    assert "precious words" in response.content.decode()
    assert not Conversation.objects.exists()


def test_the_chat_says_how_a_model_is_and_what_runs_elsewhere(client: Client, ada, served):
    client.force_login(ada)
    assert "stays in this building" in client.get("/").content.decode()
    box = ExternalServer.objects.create(name="Box", base_url="http://127.0.0.1:2/v1")
    ServedModel.objects.create(slug="far", name="Far", external=box, external_name="far")
    assert "stays in this building" not in client.get("/").content.decode()

    served.instances.update(state=InstanceState.FAILED)
    assert "Fake (failed)" in client.get("/").content.decode()
    served.instances.update(state=InstanceState.UNREACHABLE)
    assert "Fake (out of reach)" in client.get("/").content.decode()
    another = served.instances.create(node=served.instances.get().node)
    assert "Fake (waiting)" in client.get("/").content.decode()
    served.instances.filter(pk=another.pk).update(state=InstanceState.STARTING)
    assert "Fake (starting)" in client.get("/").content.decode()


def test_lists_and_pages_cost_the_same_however_much_there_is(
    client: Client, ada, served, django_assert_max_num_queries
):
    client.force_login(ada)
    for n in range(60):
        conversation = Conversation.objects.create(owner=ada, served=served, title=f"chat {n}")
    Message.objects.bulk_create(
        Message(
            conversation=conversation,
            number=n,
            role="assistant" if n % 2 == 0 else "user",
            text=f"text **{n}**",
        )
        for n in range(1, 121)
    )

    with django_assert_max_num_queries(12):
        page = client.get(f"/c/{conversation.pk}/").content.decode()
    with django_assert_max_num_queries(10):
        client.get("/c/")

    assert "<strong>120</strong>" in page
    assert "<strong>70</strong>" not in page
    assert "?before=71" in page
    older = client.get(f"/c/{conversation.pk}/?before=71").content.decode()
    assert "<strong>70</strong>" in older


def test_conversations_are_grouped_by_day():
    now = timezone.now().replace(hour=12)
    labels = [day_label(now - timezone.timedelta(days=days), now) for days in (0, 1, 3, 30)]

    assert labels == ["Today", "Yesterday", "Last 7 days", "Earlier"]


def test_a_model_one_may_no_longer_use_does_not_write_again(conversation, served):
    answer = finish(conversation)
    served.teams.add(Team.objects.create(name="others"))

    with pytest.raises(Conflict):
        actions.retry(answer)
