"""How much may be used: by a key, a person, a team, a model, or by each person nobody has said more of."""

from collections.abc import Sequence
from typing import ClassVar

from django.core.validators import MinValueValidator
from django.db import models
from django.utils import timezone

from accounts.models import ApiKey, Team, User
from models_admin.models import ServedModel


class Limit(models.Model):
    """What its one subject may use; empty numbers are no limit.

    A person's own row stands instead of the one without a subject, which holds for each person without a row. A request
    counts against its key, its person, its model and the teams through which it is made; each must have room. Windows
    slide: a minute is the last 60 s, a day the last 24 h.
    """

    user = models.OneToOneField(User, null=True, blank=True, on_delete=models.CASCADE, related_name="limit")
    team = models.OneToOneField(Team, null=True, blank=True, on_delete=models.CASCADE, related_name="limit")
    api_key = models.OneToOneField(
        ApiKey, null=True, blank=True, on_delete=models.CASCADE, related_name="limit"
    )
    served = models.OneToOneField(
        ServedModel, null=True, blank=True, on_delete=models.CASCADE, related_name="limit"
    )
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    prompt_tokens_per_minute = models.PositiveIntegerField(null=True, blank=True)
    completion_tokens_per_minute = models.PositiveIntegerField(null=True, blank=True)
    prompt_tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True)
    completion_tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True)
    concurrent_requests = models.PositiveIntegerField(null=True, blank=True)
    context_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="The longest prompt and answer of one request together.",
    )
    changed_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=models.expressions.RawSQL(
                    "num_nonnulls(user_id, team_id, api_key_id, served_id) <= 1",
                    (),
                    output_field=models.BooleanField(),
                ),
                name="one_subject_at_most",
            ),
            models.UniqueConstraint(
                models.Value(1),
                condition=models.Q(
                    user__isnull=True, team__isnull=True, api_key__isnull=True, served__isnull=True
                ),
                name="one_limit_for_everybody",
            ),
        ]

    def __str__(self) -> str:
        subject = self.user or self.team or self.api_key or self.served
        return f"of {subject}" if subject else "of everybody else"

    def get_constraints(self) -> list[tuple[type[models.Model], Sequence[models.BaseConstraint]]]:
        """None for forms: those the database checks, and what forms say of it is in words a person understands."""
        return []
