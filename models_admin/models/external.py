"""Servers that run elsewhere: any that speak OpenAI's API."""

from typing import ClassVar

from django.core.validators import RegexValidator
from django.db import models

from models_admin import secret_box


class ExternalServer(models.Model):
    """Docker Model Runner, Ollama, vLLM, another portal: asked, never spawned."""

    name = models.CharField(max_length=100, unique=True)
    base_url = models.CharField(
        max_length=500,
        validators=[RegexValidator(r"^https?://[^\s?#]+$", "This starts with http:// or https://.")],
        help_text="Up to and including /v1, such as http://host:12434/engines/v1.",
    )
    api_key_encrypted = models.BinaryField(default=b"", blank=True, editable=False)
    enabled = models.BooleanField(default=True)
    # What it last said of itself.
    healthy = models.BooleanField(null=True, editable=False)
    problem = models.TextField(blank=True, editable=False)
    checked_at = models.DateTimeField(null=True, blank=True, editable=False)
    # The names of its models.
    models_offered = models.JSONField(default=list, blank=True, editable=False)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def api_key(self) -> str:
        """The key it wants; empty where it wants none or it can't be read any more."""
        return secret_box.unseal(bytes(self.api_key_encrypted)) if self.api_key_encrypted else ""

    @property
    def has_key(self) -> bool:
        """True where a key is kept."""
        return bool(self.api_key_encrypted)

    @property
    def word(self) -> str:
        """How it is, in a word or two."""
        if not self.enabled:
            return "switched off"
        if self.healthy is None:
            return "being asked"
        return "answers" if self.healthy else "out of reach"

    def url(self, path: str) -> str:
        """Where one of OpenAI's paths, as in `/v1/chat/completions`, is asked. Not every server's end in /v1."""
        return self.base_url + path.removeprefix("/v1")
