"""Conversations, messages and generations, as REST has them."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, extend_schema_serializer
from rest_framework import serializers

from accounts.access import person
from accounts.models import Team
from chat.actions import MAX_MESSAGE_CHARS
from chat.models import Conversation, Generation, Message
from chat.progress import text_so_far
from chat.states import MessageStatus
from llamaproj.rest import Strict


class OwnTeamField(serializers.PrimaryKeyRelatedField[Team]):
    """A team one is in: of others it isn't told whether they are there."""

    def get_queryset(self) -> QuerySet[Team]:
        """By who asks."""
        request = self.context.get("request")
        return person(request).teams.all() if request is not None else Team.objects.none()


class ConversationSerializer(Strict, serializers.ModelSerializer[Conversation]):
    """A conversation; its messages are a list of their own."""

    title = serializers.CharField(max_length=120)
    model = serializers.SlugRelatedField[Any](
        slug_field="slug", source="served", read_only=True, allow_null=True, help_text="The one asked last."
    )
    owner = serializers.CharField(source="owner.username", read_only=True)
    shared_with = serializers.PrimaryKeyRelatedField[Team](
        read_only=True, allow_null=True, help_text="The team whose members may read it."
    )
    generation = serializers.UUIDField(
        source="unfinished", read_only=True, allow_null=True, help_text="Of the answer that is being written."
    )

    class Meta:
        model = Conversation
        fields = ("id", "title", "model", "owner", "shared_with", "generation", "created_at", "updated_at")
        read_only_fields = ("id", "created_at", "updated_at")


class SharedWithSerializer(Strict):
    """Who may read a conversation."""

    team = OwnTeamField(queryset=Team.objects.none(), help_text="One its owner is in.")


class _Question(Strict):
    id = serializers.UUIDField(
        required=False,
        help_text="Chosen by the client, it makes repeating safe: the second time is refused with 409.",
    )
    text = serializers.CharField(max_length=MAX_MESSAGE_CHARS, trim_whitespace=False)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A question",
            {"model": "smollm2-135m-instruct", "text": "Why is the sky blue?"},
            request_only=True,
        )
    ]
)
class BeginSerializer(_Question):
    """The first message of a new conversation."""

    model = serializers.SlugField(max_length=100, help_text="The model's short name.")
    title = serializers.CharField(max_length=120, required=False, help_text="Else its first words.")


@extend_schema_serializer(
    examples=[OpenApiExample("A question", {"text": "And why is it red at dusk?"}, request_only=True)]
)
class QuestionSerializer(_Question):
    """A further message."""

    model = serializers.SlugField(max_length=100, required=False, help_text="Else the one asked last.")


class MessageSerializer(serializers.ModelSerializer[Message]):
    """What one side said."""

    model = serializers.CharField(source="model_slug")
    text = serializers.SerializerMethodField(help_text="Markdown; of an answer being written what there is.")
    timings = serializers.DictField(child=serializers.FloatField(), help_text="In milliseconds.")
    generation = serializers.SerializerMethodField(help_text="That wrote the answer, or writes it.")

    class Meta:
        model = Message
        fields = (
            "id", "number", "role", "status", "text", "model", "error", "prompt_tokens", "completion_tokens",
            "timings", "generation", "created_at",
        )  # fmt: skip
        read_only_fields = fields

    def get_text(self, message: Message) -> str:
        """As readers of the page know it."""
        return message.text if message.is_final else text_so_far(message)

    def get_generation(self, message: Message) -> str | None:
        """None for what a person said."""
        return str(message.generation.pk) if hasattr(message, "generation") else None


class AskedSearchSerializer(serializers.Serializer[Any]):
    """What to look for."""

    q = serializers.CharField(max_length=200, help_text='Words; "words together"; this or that; -without.')


class FoundMessageSerializer(serializers.ModelSerializer[Message]):
    """A message that has the words."""

    message = serializers.UUIDField(source="id")
    conversation = serializers.UUIDField(source="conversation_id")
    title = serializers.CharField(source="conversation.title", help_text="The conversation's.")
    excerpt = serializers.CharField(help_text="Where the words are.")

    class Meta:
        model = Message
        fields = ("message", "conversation", "title", "number", "role", "excerpt", "created_at")
        read_only_fields = fields


class ConversationExportSerializer(serializers.ModelSerializer[Conversation]):
    """A conversation with everything in it."""

    model = serializers.SlugRelatedField[Any](
        slug_field="slug", source="served", read_only=True, allow_null=True
    )
    messages = MessageSerializer(many=True)

    class Meta:
        model = Conversation
        fields = ("id", "title", "model", "created_at", "updated_at", "messages")
        read_only_fields = fields


class GenerationSerializer(serializers.ModelSerializer[Generation]):
    """The work of writing one answer. Ask again until `ended_at` is set."""

    conversation = serializers.UUIDField(source="message.conversation_id")
    message = serializers.UUIDField(source="message_id", help_text="The answer.")
    model = serializers.CharField(source="message.model_slug")
    status = serializers.ChoiceField(source="message.status", choices=MessageStatus.choices)
    text = serializers.SerializerMethodField(help_text="So far.")
    error = serializers.CharField(source="message.error", help_text="Why it failed, or was cut off.")
    prompt_tokens = serializers.IntegerField(source="message.prompt_tokens", allow_null=True)
    completion_tokens = serializers.IntegerField(source="message.completion_tokens", allow_null=True)
    timings = serializers.DictField(
        child=serializers.FloatField(), source="message.timings", help_text="In milliseconds."
    )

    class Meta:
        model = Generation
        fields = (
            "id", "conversation", "message", "model", "status", "text", "error", "prompt_tokens", "completion_tokens",
            "timings", "created_at", "ended_at",
        )  # fmt: skip
        read_only_fields = fields

    def get_text(self, generation: Generation) -> str:
        """What there is."""
        message = generation.message
        return message.text if message.is_final else text_so_far(message)
