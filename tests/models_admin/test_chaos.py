import pytest

from tests.models_admin.chaos import Chaos
from tests.portal import Portal

pytestmark = [pytest.mark.portal, pytest.mark.slow, pytest.mark.timeout(300)]


def test_after_any_misfortunes_every_model_is_as_wanted(own_portal: Portal) -> None:
    own_portal.env["DEMO_MODEL"] = "1"
    own_portal.start().wait_ready(models=1)
    own_portal.manage("models", "stop", "smollm2-135m-instruct")
    Chaos(own_portal, seed=3).run(events=14)
    assert own_portal.stop() == 0
    assert own_portal.processes() == []
