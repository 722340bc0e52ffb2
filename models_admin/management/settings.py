"""Launch parameters on the command line: `models set SLUG NAME=VALUE …`, `models config [NAME=VALUE …]`."""

import shlex
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models

from accounts.models import Team
from llamaproj.errors import InvalidInput
from models_admin import actions, configuration, replacement
from models_admin.engine import launch_config, launch_rules
from models_admin.models import PortalConfig, ServedModel

_OF_MODEL = frozenset(launch_config.NAMES) | {
    "name", "description", "answer_tokens", "min_replicas", "max_replicas", "idle_timeout_s", "pinned", "preload",
    "node_labels",
}  # fmt: skip
_OF_PORTAL = frozenset(launch_config.NAMES) | {"memory_reserve_mib", "idle_timeout_s"}
_WORDS = {"on": "True", "yes": "True", "true": "True", "off": "False", "no": "False", "false": "False"}


def add_assignments(parser: ArgumentParser, *, least_one: bool) -> None:
    """NAME=VALUE, as many as one likes."""
    parser.add_argument(
        "assignments",
        nargs="+" if least_one else "*",
        metavar="NAME=VALUE",
        help="nothing after the = leaves it to what holds otherwise; several texts as a shell has them",
    )


def change_model(served: ServedModel, assignments: Iterable[str]) -> list[str]:
    """Set a model's parameters; the sentences to say. Raises `InvalidInput`."""
    given = dict(_split(one) for one in assignments)
    teams = given.pop("teams", None)
    fields = _values(ServedModel, given, _OF_MODEL)
    actions.change(served, by=None, **fields | ({} if teams is None else {"teams": _teams(teams)}))
    fresh = ServedModel.objects.select_related("file__node").get(pk=served.pk)
    count = replacement.count(fresh)
    replaced = replacement.in_words([replacement.Replacement(fresh, count)])
    return ["Saved.", *([replaced] if replaced else []), *launch_rules.doubts(fresh)]


def change_portal(assignments: Iterable[str]) -> list[str]:
    """Set the portal's configuration, or show it; the sentences to say. Raises `InvalidInput`."""
    given = dict(_split(one) for one in assignments)
    if not given:
        portal = PortalConfig.current()
        own = {name: getattr(portal, name) for name in ("memory_reserve_mib", "idle_timeout_s")}
        return [
            f"{name}={_shown(value)}"
            for name, value in (own | asdict(launch_config.of_portal(portal))).items()
        ]
    portal = configuration.change(by=None, **_values(PortalConfig, given, _OF_PORTAL))
    replaced = replacement.in_words(replacement.by_portal(portal))
    return ["Saved.", *([replaced] if replaced else [])]


def _split(assignment: str) -> tuple[str, str]:
    name, sign, value = assignment.partition("=")
    if not sign:
        raise InvalidInput(f"{assignment!r} is no NAME=VALUE.")
    return name, value


def _values(model: type[models.Model], given: dict[str, str], allowed: frozenset[str]) -> dict[str, Any]:
    values = {}
    for name, text in given.items():
        if name not in allowed:
            raise InvalidInput(
                f"There is no parameter {name!r}; there are {', '.join(sorted(allowed))}.", param=name
            )
        field = model._meta.get_field(name)
        assert isinstance(field, models.Field)
        try:
            values[name] = _value(field, text)
        except (ValidationError, ValueError) as error:
            said = error.messages[0] if isinstance(error, ValidationError) else str(error)
            raise InvalidInput(f"{name}: {said}", param=name) from None
    return values


def _value(field: "models.Field[Any, Any]", text: str) -> Any:
    if not text:
        return field.get_default()
    if isinstance(field, models.JSONField):
        return shlex.split(text)
    if isinstance(field, models.BooleanField):
        text = _WORDS.get(text.lower(), text)
    return field.to_python(text)


def _teams(text: str) -> list[Team]:
    names = shlex.split(text)
    found = list(Team.objects.filter(name__in=names))
    if missing := set(names) - {team.name for team in found}:
        raise InvalidInput(f"There is no team {min(missing)!r}.", param="teams")
    return found


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return shlex.join(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)
