"""Who is asking, and what they may use: remembered under the version of rights that it was read under."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from channels.db import database_sync_to_async
from django.db.models import Q
from django.utils import timezone

from accounts.models import ApiKey, Team, User
from gateway.admission.readings import shared
from gateway.admission.subjects import Subject
from gateway.errors import ModelNotFound
from gateway.models import Limit
from llamaproj.errors import NotAllowed, NotAuthenticated
from models_admin.models import ServedModel, ServedModelQuerySet

# Changes are announced; what an announcement missed is seen after so long.
KEEP_S = 30.0
# More keys than ever work at the same time.
_MOST_CALLERS = 4096
_INTERACTIVE, _BATCH = 1, 2


@dataclass(frozen=True, slots=True)
class Right:
    """What one caller may do with one model: whom its requests count against."""

    served_pk: int
    subjects: tuple[Subject, ...]
    context_tokens: int | None
    # As the scripts read it.
    packed: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a way in: a key's holder, or a person in the chat (`api_key_pk` is None)."""

    user_pk: int
    username: str
    is_staff: bool
    api_key_pk: UUID | None = None
    team_pk: int | None = None
    scopes: frozenset[str] = frozenset({ApiKey.Scope.INFERENCE})
    model_slugs: frozenset[str] = frozenset()
    priority: str = ApiKey.Priority.INTERACTIVE
    weight: int = 1
    expires_at: float | None = None
    version: str = ""
    read_at: float = 0.0
    digest: str = ""
    rights: dict[str, Right] = field(default_factory=dict, compare=False, repr=False)

    @property
    def queue_class(self) -> int:
        """Its class in the queue of a busy model."""
        return _BATCH if self.priority == ApiKey.Priority.BATCH else _INTERACTIVE

    def require_inference(self) -> None:
        """Raise `NotAllowed` for a key that was made for something else."""
        if ApiKey.Scope.INFERENCE not in self.scopes:
            raise NotAllowed("This API key isn't made for using models. Make one that is, in the settings.")


_callers: OrderedDict[str, Caller] = OrderedDict()


async def caller_of(authorization: str, version: str) -> Caller:
    """The holder of the key in an `Authorization` header. Raises `NotAuthenticated`.

    What is remembered may have been read under another version than `version`, where that is empty: `admit` finds out.
    """
    scheme, _, key = authorization.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise NotAuthenticated("Send an API key: Authorization: Bearer sk-…")
    return await _find(ApiKey.digest_of(key), version)


async def caller_of_key(pk: UUID, version: str) -> Caller:
    """The holder of a key that was shown before. Raises `NotAuthenticated` for one that isn't valid any more."""
    return await _find(f"key {pk}", version)


async def caller_of_user(user_pk: int, version: str) -> Caller:
    """A person in the chat. Raises `NotAuthenticated` for one who may not sign in any more."""
    return await _find(f"user {user_pk}", version)


async def renewed(caller: Caller, version: str) -> Caller:
    """The same caller as it is under another version. Raises `NotAuthenticated`."""
    return await _find(caller.digest, version)


def forget() -> None:
    """Remember nobody."""
    _callers.clear()


_readings: dict[tuple[str, str], "asyncio.Future[Caller]"] = {}


async def _find(digest: str, version: str) -> Caller:
    found = _callers.get(digest)
    now = time.monotonic()
    if (
        found is None
        or (version and found.version != version)
        or now - found.read_at >= KEEP_S
        or (found.expires_at is not None and found.expires_at <= time.time())
    ):
        try:
            found = await shared(_readings, (digest, version), lambda: _read(digest, version))
        except NotAuthenticated:
            _callers.pop(digest, None)
            raise
        _callers[digest] = found
        while len(_callers) > _MOST_CALLERS:
            _callers.popitem(last=False)
    return found


@database_sync_to_async
def _read(digest: str, version: str) -> Caller:
    if digest.startswith("user "):
        user = User.objects.filter(pk=int(digest.removeprefix("user ")), is_active=True).first()
        if user is None:
            raise NotAuthenticated
        return _caller(user, version, digest, weight=_weight(Team.objects.filter(members=user)))
    usable = ApiKey.objects.usable(timezone.now()).select_related("user", "team")
    kind, _, pk = digest.partition(" ")
    key = (usable.filter(pk=pk) if kind == "key" else usable.filter(digest=digest)).first()
    if key is None:
        raise NotAuthenticated("This API key isn't valid, or was revoked, or has expired.")
    return _caller(
        key.user,
        version,
        digest,
        api_key_pk=key.pk,
        team_pk=key.team_id,
        scopes=frozenset(key.scopes),
        model_slugs=frozenset(key.model_slugs),
        priority=key.priority,
        weight=key.team.weight if key.team else _weight(Team.objects.filter(members=key.user)),
        expires_at=key.expires_at.timestamp() if key.expires_at else None,
    )


def _caller(user: User, version: str, digest: str, **more: Any) -> Caller:
    return Caller(
        user.pk,
        user.username,
        user.is_staff,
        version=version,
        read_at=time.monotonic(),
        digest=digest,
        **more,
    )


def _weight(teams: Any) -> int:
    return max(teams.values_list("weight", flat=True), default=1)


_right_readings: dict[tuple[str, str, str], "asyncio.Future[Right]"] = {}


async def right(caller: Caller, slug: str) -> Right:
    """What the caller may do with a model. Raises `ModelNotFound`, also where it exists for others only."""
    found = caller.rights.get(slug)
    if found is None:
        key = (caller.digest, caller.version, slug)
        found = caller.rights[slug] = await shared(_right_readings, key, lambda: _read_right(caller, slug))
    return found


def usable_models(caller: Caller) -> ServedModelQuerySet:
    """The models a caller may use: a team's key those of the team; a key for certain models only those."""
    found = ServedModel.objects.all()
    if caller.team_pk is not None:
        found = found.filter(Q(teams__isnull=True) | Q(teams=caller.team_pk)).distinct()
    elif not caller.is_staff:
        found = found.filter(Q(teams__isnull=True) | Q(teams__members=caller.user_pk)).distinct()
    return found.filter(slug__in=caller.model_slugs) if caller.model_slugs else found


@database_sync_to_async
def _read_right(caller: Caller, slug: str) -> Right:
    served = usable_models(caller).filter(slug=slug).first()
    if served is None:
        raise ModelNotFound(f"There is no model {slug!r} here.", param="model")
    if caller.team_pk is not None:
        teams = Team.objects.filter(pk=caller.team_pk)
    else:
        teams = Team.objects.filter(members=caller.user_pk)
        if served.teams.exists():
            teams = teams.filter(models=served)
    wanted = Q(user=caller.user_pk) | Q(team__in=teams) | Q(served=served)
    wanted |= Q(user=None, team=None, api_key=None, served=None)
    if caller.api_key_pk is not None:
        wanted |= Q(api_key=caller.api_key_pk)
    limits = list(Limit.objects.filter(wanted).select_related("team", "served"))
    own = any(limit.user_id for limit in limits)
    subjects = tuple(
        Subject.of(limit, caller.user_pk) for limit in limits if not (own and Subject.is_for_everybody(limit))
    )
    contexts = [limit.context_tokens for limit in limits if limit.context_tokens is not None]
    return Right(
        served_pk=served.pk,
        subjects=subjects,
        context_tokens=min(contexts, default=None),
        packed="".join(subject.packed for subject in subjects),
    )
