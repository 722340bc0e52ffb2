"""The gateway's rows."""

from gateway.models.limits import Limit
from gateway.models.usage import (
    BUCKETS_MS,
    SUMS,
    Price,
    UsageConfig,
    UsageDay,
    UsageHour,
    UsageRecord,
    UsageTotal,
)

__all__ = [
    "BUCKETS_MS",
    "SUMS",
    "Limit",
    "Price",
    "UsageConfig",
    "UsageDay",
    "UsageHour",
    "UsageRecord",
    "UsageTotal",
]
