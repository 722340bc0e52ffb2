"""What a key may do, and whether that is no more than what whoever makes it may."""

from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone

from accounts.models import ApiKey, Team
from llamaproj.errors import InvalidInput, NotAllowed


@dataclass(frozen=True)
class KeyRights:
    """A key's rights. No `model_slugs`: every model of its owner; no `expires_at`: until it is revoked."""

    scopes: tuple[str, ...] = (ApiKey.Scope.INFERENCE,)
    model_slugs: tuple[str, ...] = ()
    team: Team | None = None
    priority: str = ApiKey.Priority.INTERACTIVE
    expires_at: datetime | None = None

    def check(self) -> None:
        """Raises `InvalidInput` for rights that no key can have."""
        if not self.scopes:
            raise InvalidInput("Choose at least one thing that the key may do.", param="scopes")
        if unknown := set(self.scopes) - set(ApiKey.Scope.values):
            known = ", ".join(ApiKey.Scope.values)
            raise InvalidInput(f"There is no scope {min(unknown)!r}; use {known}.", param="scopes")
        if self.priority not in ApiKey.Priority.values:
            known = " or ".join(ApiKey.Priority.values)
            raise InvalidInput(f"There is no priority {self.priority!r}; use {known}.", param="priority")
        if self.expires_at is not None and self.expires_at <= timezone.now():
            raise InvalidInput("The key would have expired already.", param="expires_at")

    def check_within(self, key: ApiKey) -> None:
        """Raises `NotAllowed` where these are more than `key` has: a key makes none that is stronger than itself."""
        if more := sorted(set(self.scopes) - set(key.scopes)):
            raise NotAllowed(
                f"This key hasn't the scope {more[0]} itself, so it can't give it.", param="scopes"
            )
        if key.model_slugs and (not self.model_slugs or set(self.model_slugs) - set(key.model_slugs)):
            raise NotAllowed(
                f"This key opens only {', '.join(key.model_slugs)}: choose among these.", param="model_slugs"
            )
        if key.team_id is not None and (self.team is None or self.team.pk != key.team_id):
            raise NotAllowed("A team's key makes keys of that team only.", param="team")
        if key.priority == ApiKey.Priority.BATCH and self.priority != ApiKey.Priority.BATCH:
            raise NotAllowed("A batch key makes batch keys only.", param="priority")
        if key.expires_at is not None and (self.expires_at is None or self.expires_at > key.expires_at):
            raise NotAllowed(
                f"This key ends on {key.expires_at:%Y-%m-%d %H:%M} UTC; one made by it can't last longer.",
                param="expires_at",
            )
