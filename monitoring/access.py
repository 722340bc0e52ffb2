"""Who may see which part of a sample."""

from typing import Any

from accounts.models import User
from models_admin.models import ServedModel


def visible_models(user: User) -> frozenset[int] | None:
    """Keys of the served models whose figures the person may see; None for all."""
    if user.is_staff:
        return None
    return frozenset(ServedModel.objects.visible_to(user).values_list("pk", flat=True))


def visible_part(data: dict[str, Any], models: frozenset[int] | None) -> dict[str, Any]:
    """A sample without the llama-servers of other models. The machine's own figures are everybody's."""
    if models is None:
        return data
    return data | {"instances": [row for row in data["instances"] if row["served"] in models]}
