"""One round of tests/gateway/chaos.py; twenty are for a person to run."""

from pathlib import Path

import pytest

from tests.gateway.chaos import STREAMS, Chaos
from tests.portal import Portal

pytestmark = [pytest.mark.portal, pytest.mark.slow, pytest.mark.timeout(400)]


async def test_streams_of_a_killed_replica_end_properly_and_leave_nothing_behind(
    own_portal: Portal, demo_model: Path
) -> None:
    seen = await Chaos(own_portal, demo_model, seed=3).round()

    assert seen.problems == []
    assert seen.ends["went on"]
    assert sum(seen.ends.values()) == STREAMS
    assert seen.ends["done"] + seen.ends["went on"] == STREAMS
