"""What people do with prompts."""

from django.db import transaction
from django.utils import timezone

from accounts.models import Team, User
from chat.models import Prompt
from llamaproj.errors import InvalidInput, NotAllowed


@transaction.atomic
def save(*, by: User, title: str, text: str, team: Team | None = None) -> Prompt:
    """Keep a prompt, for oneself or for a team one is in. Raises `InvalidInput`."""
    _check_team(team, by)
    return Prompt.objects.create(
        owner=by, team=team, title=_checked("title", title), text=_checked("text", text)
    )


@transaction.atomic
def change(prompt: Prompt, *, by: User, title: str, text: str, team: Team | None) -> None:
    """Write it anew. Raises `InvalidInput`, and `NotAllowed` unless one's own or of a team one manages.

    What belongs to somebody else stays in its team: it would otherwise be lost to both.
    """
    _demand_writable(prompt, by)
    if team != prompt.team:
        if prompt.owner_id != by.pk:
            raise NotAllowed(
                f"{prompt.owner.display_name} decides with whom this prompt is shared.", param="team"
            )
        _check_team(team, by)
    prompt.title, prompt.text, prompt.team = _checked("title", title), _checked("text", text), team
    prompt.updated_at = timezone.now()
    prompt.save()


@transaction.atomic
def delete(prompt: Prompt, *, by: User) -> None:
    """Remove it. Raises `NotAllowed` unless one's own or of a team one manages."""
    _demand_writable(prompt, by)
    prompt.delete()


def _demand_writable(prompt: Prompt, by: User) -> None:
    if not Prompt.objects.writable_by(by).filter(pk=prompt.pk).exists():
        raise NotAllowed("Only who wrote it and the team's owners and admins change this prompt.")


def _check_team(team: Team | None, by: User) -> None:
    if team is not None and not team.memberships.filter(user=by).exists():
        raise InvalidInput("A prompt is shared with a team one is in.", param="team")


def _checked(name: str, text: str) -> str:
    text = " ".join(text.split()) if name == "title" else text.replace("\r\n", "\n").strip()
    longest = getattr(Prompt._meta.get_field(name), "max_length", None) or 0
    if not text or len(text) > longest or "\0" in text:
        raise InvalidInput(f"A prompt's {name} has 1 to {longest:,} characters.", param=name)
    return text
