"""What use would cost: today's prices, applied to everything ever used. For show-back, not for invoices."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from gateway.models import Price, UsageConfig

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """What a million tokens of a model cost. Cached prompt tokens cost what others do."""

    prompt: Decimal
    completion: Decimal

    def cost(self, prompt_tokens: int, completion_tokens: int) -> Decimal:
        """What so many tokens cost."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / _MILLION


@dataclass(frozen=True, slots=True)
class Prices:
    """Those of all models that have one, by short name."""

    rates: Mapping[str, Rate]
    currency: str

    def cost(self, model_slug: str, prompt_tokens: int, completion_tokens: int) -> Decimal | None:
        """What so many tokens of the model cost; None where it has no price."""
        rate = self.rates.get(model_slug)
        return rate.cost(prompt_tokens, completion_tokens) if rate else None


def current() -> Prices:
    """Those that hold now."""
    rows = Price.objects.values_list("served__slug", "prompt_per_million", "completion_per_million")
    rates = {slug: Rate(prompt, completion) for slug, prompt, completion in rows}
    return Prices(rates, UsageConfig.current().currency)
