"""Ten models, one machine with room for three, requests for all of them: a busy hour in fast motion.

    HOUR_REQUESTS=80 python -m pytest -s tests/models_admin/test_many_models.py

is a longer one than runs by default; it prints what was loaded and who waited how long.
"""

import os
import random
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.portal import Portal

MODELS = 10
ROOM_FOR = 3
REQUESTS = int(os.environ.get("HOUR_REQUESTS", "5"))
CLIENTS = 3
PATIENCE_S = 120

pytestmark = [pytest.mark.portal, pytest.mark.slow, pytest.mark.timeout(420 + 10 * REQUESTS)]

# What a page would do, for ten models at once: different contexts and slots over the demo file, loaded on demand.
SERVE = """
from models_admin import actions
from models_admin.memory import footprint
from models_admin.models import ModelFile, Node, PortalConfig
PortalConfig(memory_reserve_mib=0, prompt_cache_mib=0).save()
file = ModelFile.objects.get(error="", kind="model")
needs = []
for number in range({models}):
    shape = {{"context_tokens": 256 * (1 + number % 4), "slots": 1 + number % 2}}
    served = actions.add(file, by=None, slug=f"model-{{number}}", min_replicas=0, enabled=True, **shape)
    needs.append(footprint.needed(served).ram_bytes)
limit = max(needs) * {room_for}
Node.objects.update(memory_limit_bytes=limit)
print(limit)
"""


class Watch(threading.Thread):
    """What the llama-servers take together, several times a second."""

    def __init__(self, portal: Portal) -> None:
        super().__init__(daemon=True)
        self.portal, self.most_bytes, self.most_replicas = portal, 0, 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            taken = []
            for pid in self.portal.llama_servers():
                try:
                    taken.append(psutil.Process(pid).memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            self.most_bytes = max(self.most_bytes, sum(taken))
            self.most_replicas = max(self.most_replicas, len(taken))


def test_models_come_and_go_as_they_are_asked_for_within_the_memory_there_is(own_portal: Portal) -> None:
    own_portal.env["DEMO_MODEL"] = "1"
    own_portal.start().wait_ready(models=1)
    own_portal.manage("models", "stop", "smollm2-135m-instruct")
    limit = int(own_portal.manage("shell", "-c", SERVE.format(models=MODELS, room_for=ROOM_FOR)).split()[-1])
    key = own_portal.manage("apikey", "create", "--user", "admin", "--name", "hour").split()[-1]
    watch = Watch(own_portal)
    watch.start()
    generator = random.Random(5)  # the same hour each time
    asked = [f"model-{generator.randrange(MODELS)}" for _ in range(REQUESTS)]
    asked += [f"model-{number}" for number in range(MODELS)]

    def ask(slug: str) -> tuple[str, float]:
        began = time.monotonic()
        deadline = began + PATIENCE_S
        body = {"model": slug, "messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 8}
        while True:
            answer = httpx.post(
                f"{own_portal.base_url}/v1/chat/completions",
                json=body,
                headers={"authorization": f"Bearer {key}"},
                timeout=PATIENCE_S,
            )
            # The one refusal there may be is a stated limit, with the time to come back.
            if answer.status_code == 503 and "retry-after" in answer.headers and time.monotonic() < deadline:
                time.sleep(float(answer.headers["retry-after"]) / 5)
                continue
            assert answer.status_code == 200, (slug, answer.status_code, answer.text)
            assert answer.json()["choices"][0]["message"]["content"]
            return slug, time.monotonic() - began

    try:
        with ThreadPoolExecutor(CLIENTS) as clients:
            waits = list(clients.map(ask, asked))
    finally:
        watch.over.set()
        watch.join()
    rows = own_portal.query(
        "SELECT s.slug, count(*) FILTER (WHERE c.new = 'ready'), count(*) FILTER (WHERE c.new = 'crashed')"
        " FROM models_admin_servedmodel s JOIN models_admin_instance i ON i.served_id = s.id"
        " JOIN models_admin_instancechange c ON c.instance_id = i.id GROUP BY s.slug ORDER BY s.slug"
    )
    by_model = defaultdict(list)
    for slug, seconds in waits:
        by_model[slug].append(seconds)
    for slug, loaded, crashed in rows:
        found = sorted(by_model[slug]) or [0.0]
        print(
            f"{slug}: {len(by_model[slug])} requests, {loaded} loads, {crashed} crashes;"
            f" waits: median {found[len(found) // 2]:.1f} s, longest {found[-1]:.1f} s"
        )
    waited = sorted(seconds for _, seconds in waits)
    print(
        f"{len(waits)} requests; waits: median {waited[len(waited) // 2]:.1f} s, longest {waited[-1]:.1f} s;"
        f" at most {watch.most_replicas} replicas, {watch.most_bytes / 2**20:.0f} of {limit / 2**20:.0f} MiB"
    )
    assert watch.most_bytes <= limit
    assert 1 < watch.most_replicas <= ROOM_FOR + 1
    loads = {slug: loaded for slug, loaded, _ in rows}
    assert all(loads[f"model-{number}"] for number in range(MODELS))
    assert sum(loads.values()) > MODELS, "some were unloaded and loaded again"
    assert not sum(crashed for _, _, crashed in rows)
