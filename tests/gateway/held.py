"""What the gate of a running portal holds, looked at from outside: requests, slots, and what counts against limits."""

import time

import redis

from llamaproj import env
from tests.portal import Portal

# Whatever number of it (gateway.admission.scripts, which needs Django): a portal keeps one.
_GATE = "llamaproj:gate:*:"


def valkey_of(portal: Portal) -> "redis.Redis":
    """Its memory; whoever takes it closes it."""
    return redis.Redis.from_url(f"unix://{env.socket_dir(portal.data_dir)}/valkey.sock?db=0")


def held(portal: Portal) -> dict[str, int]:
    """Requests on their way or in line, slots given out, places taken under limits; without the zeros."""
    with valkey_of(portal) as valkey:
        counts = {"requests": sum(1 for _ in valkey.scan_iter(f"{_GATE}t:*"))}
        for key in valkey.scan_iter(f"{_GATE}r:*"):
            counts[f"open at {key.decode()}"] = int(valkey.hget(key, "open") or 0)
            counts[f"KV tokens at {key.decode()}"] = int(valkey.hget(key, "kv") or 0)
        for key in valkey.scan_iter(f"{_GATE}l:*"):
            counts[key.decode()] = int(valkey.hget(key, "open") or 0)
        for key in valkey.scan_iter(f"{_GATE}m:*:facts"):
            counts[f"waiting at {key.decode()}"] = int(valkey.hget(key, "waiting") or 0)
    return {name: count for name, count in counts.items() if count}


def wait_until_free(portal: Portal, seconds: float) -> tuple[float, dict[str, int]]:
    """How long it took until nothing was held any more, and what still is after `seconds`."""
    began = time.monotonic()
    while left := held(portal):
        if time.monotonic() - began > seconds:
            break
        time.sleep(0.05)
    return time.monotonic() - began, left


def used_tokens(portal: Portal, subject: str) -> tuple[int, int]:
    """Prompt and completion tokens that count against the limits a day of "user:1", "key:…", "team:…" or "model:…"."""
    with valkey_of(portal) as valkey:
        windows = next(valkey.scan_iter(f"{_GATE}l:{subject}"), b"")
        prompt, completion = ((valkey.hget(windows, metric) or b"0").split()[0] for metric in (4, 5))
    return int(prompt), int(completion)
