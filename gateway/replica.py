"""A server that may answer, as the gateway knows it: a value, read once, that needs no database."""

from dataclasses import dataclass
from uuid import UUID

from models_admin.models import Instance, LaunchParameters


@dataclass(frozen=True, slots=True)
class External:
    """What makes a replica somebody else's: its server here, and the model's name there."""

    pk: int
    name: str


@dataclass(frozen=True, slots=True)
class Replica:
    """One of our llama-servers, or what an external server has of a model.

    `base_url` is where OpenAI's paths begin with /v1; `slug` is the model's name for those who ask. `slots` is None
    where nobody knows them; `context_tokens` are those of one slot. One that `is_strict` lets no person's prompt meet
    another's.
    """

    pk: UUID
    served_pk: int
    slug: str
    base_url: str
    api_key: str
    external: External | None = None
    slots: int | None = None
    context_tokens: int = 0
    is_strict: bool = False

    @classmethod
    def of(cls, instance: Instance) -> "Replica":
        """The replica of a row whose model and external server are loaded."""
        served = instance.served
        external = External(served.external.pk, served.external_name) if served.external is not None else None
        launched = {} if external else instance.launched
        return cls(
            instance.pk,
            served.pk,
            served.slug,
            instance.base_url,
            instance.api_key,
            external,
            slots=launched.get("slots"),
            context_tokens=launched.get("context_tokens", 0),
            is_strict=launched.get("isolation") == LaunchParameters.Isolation.STRICT,
        )

    def url(self, path: str) -> str:
        """The address of one of OpenAI's paths."""
        return self.base_url + path
