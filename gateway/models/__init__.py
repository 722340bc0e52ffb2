"""The gateway's rows."""

from gateway.models.limits import Limit
from gateway.models.usage import Price, UsageConfig, UsageHour, UsageRecord

__all__ = ["Limit", "Price", "UsageConfig", "UsageHour", "UsageRecord"]
