"""Conversations, their messages, and the generations that write answers."""

import uuid
from typing import ClassVar

from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVector
from django.db import models
from django.db.models.functions import Left
from django.utils import timezone

from accounts.models import Membership, Team, User
from chat.states import FINAL, MessageStatus
from models_admin.models import ServedModel


class ConversationQuerySet(models.QuerySet["Conversation"]):
    """Conversations, by who may see them."""

    def visible_to(self, user: User) -> "ConversationQuerySet":
        """One's own, and those that somebody shares with a team both are in. Administrators read no others, either."""
        within = Membership.objects.filter(team=models.OuterRef("shared_with"))
        reader = models.Exists(within.filter(user=user))
        sharer = models.Exists(within.filter(user=models.OuterRef("owner")))
        return self.filter(models.Q(owner=user) | (models.Q(shared_with__isnull=False) & reader & sharer))

    def writable_by(self, user: User) -> "ConversationQuerySet":
        """One's own: whoever else sees a conversation reads it."""
        return self.filter(owner=user)


class Conversation(models.Model):
    """A chat of one person with one or more models."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(User, on_delete=models.CASCADE, related_name="conversations")
    title = models.CharField(max_length=120, blank=True)
    served = models.ForeignKey(ServedModel, null=True, on_delete=models.SET_NULL, related_name="+")
    shared_with = models.ForeignKey(
        Team,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="shared_conversations",
        help_text="Whose members may read it, while its owner is one of them.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now)

    objects = ConversationQuerySet.as_manager()

    class Meta:
        ordering = ["-updated_at"]
        indexes: ClassVar = [models.Index(fields=["owner", "-updated_at"])]

    def __str__(self) -> str:
        return self.title or "New chat"


class Message(models.Model):
    """What one side said. An answer's text grows while its generation runs."""

    # The rendered text; `chat.rendering.with_blocks` fills it for pages.
    blocks: list[str]

    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages")
    number = models.PositiveIntegerField(help_text="Its place in the conversation, from 1.")
    role = models.CharField(max_length=10, choices=Role)
    status = models.CharField(max_length=8, choices=MessageStatus, default=MessageStatus.DONE)
    text = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    model_slug = models.CharField(max_length=100, blank=True)
    prompt_tokens = models.PositiveIntegerField(null=True)
    completion_tokens = models.PositiveIntegerField(null=True)
    timings = models.JSONField(default=dict, blank=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["conversation", "number"], name="one_message_per_number")
        ]
        indexes: ClassVar = [
            # A tsvector holds a megabyte; and while an answer is written, it isn't indexed at every checkpoint.
            GinIndex(
                SearchVector(Left("text", 100_000), config="simple"),
                name="message_words",
                condition=models.Q(status__in=["done", "stopped", "failed"]),
            )
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.number}"

    @property
    def is_final(self) -> bool:
        """True when nothing will be added to it."""
        return self.status in FINAL


class Generation(models.Model):
    """The work of writing one answer; the row that generators claim.

    A generator holds it while `lease_until` lies ahead; `lease_owner` guards every write, so that one whose lease was
    taken over can't write any more.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    message = models.OneToOneField(Message, on_delete=models.CASCADE, related_name="generation")
    served = models.ForeignKey(ServedModel, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    ended_at = models.DateTimeField(null=True)
    lease_owner = models.UUIDField(null=True)
    lease_until = models.DateTimeField(null=True)
    attempts = models.PositiveSmallIntegerField(default=0, help_text="How often a generator took it up.")
    stop_requested = models.BooleanField(default=False)
    api_key_pk = models.UUIDField(
        null=True, editable=False, help_text="The key it was asked for with: its rights and limits hold."
    )

    class Meta:
        indexes: ClassVar = [
            models.Index(
                fields=["created_at"], condition=models.Q(ended_at__isnull=True), name="generation_unfinished"
            )
        ]

    def __str__(self) -> str:
        return f"generation of {self.message_id}"


class PromptQuerySet(models.QuerySet["Prompt"]):
    """Prompts, by who may do what with them."""

    def visible_to(self, user: User) -> "PromptQuerySet":
        """One's own, and those of teams one is in."""
        return self.filter(models.Q(owner=user, team__isnull=True) | models.Q(team__in=user.teams.all()))

    def writable_by(self, user: User) -> "PromptQuerySet":
        """One's own, and those of teams one manages."""
        managed = user.teams.filter(memberships__user=user, memberships__role__in=Membership.MANAGING)
        return self.visible_to(user).filter(models.Q(owner=user) | models.Q(team__in=managed))


class Prompt(models.Model):
    """A text to begin a message with, kept for oneself or for a team."""

    owner = models.ForeignKey(User, on_delete=models.CASCADE, related_name="prompts")
    team = models.ForeignKey(
        Team,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="prompts",
        help_text="Whose members see it; without one, its owner alone.",
    )
    title = models.CharField(max_length=80)
    text = models.TextField(max_length=20_000)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = PromptQuerySet.as_manager()

    class Meta:
        ordering = ["title", "pk"]

    def __str__(self) -> str:
        return self.title
