"""What administrators do about usage."""

from decimal import Decimal
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction

from accounts import audit
from accounts.models import User
from gateway.models import Price, UsageConfig
from llamaproj.errors import InvalidInput
from models_admin.models import ServedModel


@transaction.atomic
def set_price(
    served: ServedModel, *, by: User | None, prompt_per_million: Decimal, completion_per_million: Decimal
) -> Price:
    """Say what a model's tokens cost from now on, also those used before. Raises `InvalidInput`."""
    price = Price.objects.select_for_update().filter(served=served).first() or Price(served=served)
    old = None if price.pk is None else (price.prompt_per_million, price.completion_per_million)
    price.prompt_per_million, price.completion_per_million = prompt_per_million, completion_per_million
    _check(price)
    if old != (prompt_per_million, completion_per_million):
        price.save()
        prompt, completion = str(prompt_per_million), str(completion_per_million)
        audit.record(by, "usage.price", served, prompt=prompt, completion=completion)
    return price


@transaction.atomic
def remove_price(served: ServedModel, *, by: User | None) -> None:
    """A model that costs nothing that anybody says. Asking twice is asking once."""
    if Price.objects.filter(served=served).delete()[0]:
        audit.record(by, "usage.unprice", served)


@transaction.atomic
def change_config(*, by: User | None, **fields: Any) -> UsageConfig:
    """Set how long records are kept, and the currency. Raises `InvalidInput`."""
    config = UsageConfig.objects.select_for_update().first() or UsageConfig.current()
    changed = {name: value for name, value in fields.items() if getattr(config, name) != value}
    if changed:
        for name, value in changed.items():
            setattr(config, name, value)
        _check(config)
        config.save()
        audit.record(by, "usage.config", "usage settings", **changed)
    return config


def _check(row: Price | UsageConfig) -> None:
    try:
        row.clean_fields()
    except ValidationError as error:
        field, [sentence, *_] = next(iter(error.message_dict.items()))
        raise InvalidInput(sentence, param=field) from None
