"""The door's answers beside llama-server's own, field by field, as the table in docs/openai-api.md has them.

python -m tests.gateway.compat

asks both the same and writes the table; tests/gateway/test_compat.py does so in CI and holds the document to it.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import sse

DOCUMENT = Path(__file__).parents[2] / "docs" / "openai-api.md"
BEGIN, END = "<!-- compared: begin -->\n", "<!-- compared: end -->\n"
WRITE = "LLAMAPROJ_WRITE_COMPARISON"

HI = [{"role": "user", "content": "Say hello."}]
STEADY = {"temperature": 0, "seed": 1, "max_tokens": 6, "cache_prompt": False}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
# The demo model calls no tool by itself: it is held to one by llama-server's grammar, and the first tokens of a call,
# "<issue_start>" (tools.jinja) and '{"', are made the likeliest.
TOOLS_TEMPLATE = Path(__file__).with_name("tools.jinja")
_OPENING = {"8": 40, "39428": 16}
_CITY = {"type": "object", "properties": {"city": {"enum": ["Bern", "Oslo"]}}, "required": ["city"]}
_WEATHER = {"type": "function", "function": {"name": "weather", "parameters": _CITY}}
_MUST_CALL = {
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "logit_bias": _OPENING,
    "stop": ["<issue_closed>"],
    "max_tokens": 40,
}
_CALLED = {
    "id": "call-1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
}
_HISTORY = [
    {"role": "user", "content": "The weather in Bern?"},
    {"role": "assistant", "content": None, "tool_calls": [_CALLED]},
    {"role": "tool", "tool_call_id": "call-1", "content": "Sun."},
]
_FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}}
_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Request:
    """What both are asked: of the model launched as `slug`, at `path`."""

    slug: str
    path: str
    body: dict[str, Any]

    @property
    def is_streamed(self) -> bool:
        """Whether the answer comes in events."""
        return bool(self.body.get("stream"))


def _chat(**more: Any) -> Request:
    return Request("all", "/v1/chat/completions", STEADY | {"messages": HI} | more)


def _tools(**more: Any) -> Request:
    """A second call, after the first one was answered."""
    asked = STEADY | _MUST_CALL | {"messages": _HISTORY, "tools": [_WEATHER]}
    return Request("tools", "/v1/chat/completions", asked | more)


_RESPONSE_TOOLS = {
    **(STEADY | _MUST_CALL | {"input": "The weather in Bern?", "max_output_tokens": 40, "stream": True}),
    "tools": [{"type": "function", "name": "weather", "parameters": _CITY}],
}
ANSWERED = [
    _chat(),
    _chat(n=2),
    _chat(logprobs=True, top_logprobs=2),
    _chat(response_format=_FORM),
    _chat(**_USAGE),
    _tools(),
    _tools(**_USAGE),
    _chat(stream=True, logprobs=True, top_logprobs=2),
    Request("all", "/v1/completions", STEADY | {"prompt": "Once upon"}),
    Request("all", "/v1/completions", STEADY | {"prompt": "Once upon", "logprobs": 2}),
    Request("all", "/v1/completions", STEADY | {"prompt": "Once upon"} | _USAGE),
    Request("all", "/v1/responses", STEADY | {"input": "Say hello.", "max_output_tokens": 6}),
    Request("all", "/v1/responses", STEADY | {"input": "Say hello.", "max_output_tokens": 6, "stream": True}),
    Request("tools", "/v1/responses", _RESPONSE_TOOLS),
    Request("all", "/v1/embeddings", {"input": ["one", "two"]}),
    Request("all", "/v1/embeddings", {"input": "one", "encoding_format": "base64"}),
    Request("rank", "/v1/rerank", {"query": "cats", "documents": ["a cat", "a car"]}),
    Request("all", "/tokenize", {"content": "Hello you", "with_pieces": True}),
    Request("all", "/apply-template", {"messages": HI}),
    Request("tools", "/apply-template", {"messages": _HISTORY, "tools": [_WEATHER]}),
]
REFUSED = {
    "a message without a role": _chat(messages=[{"content": "x"}]),
    "no messages": Request("all", "/v1/chat/completions", {}),
    "`tools` that is a number": _chat(tools=7),
    "`tool_choice` that is none": _chat(tools=[_WEATHER], tool_choice="sometimes"),
    "`max_tokens` that is a word": _chat(max_tokens="many"),
    "an unknown `response_format`": _chat(response_format={"type": "poem"}),
    "a grammar that is none": _chat(grammar="root ::= ("),
    "a picture for a model that sees none": _chat(
        messages=[
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
            }
        ]
    ),
    "a text longer than the context": _chat(messages=[{"role": "user", "content": "word " * 3000}]),
    "completions without `prompt`": Request("all", "/v1/completions", {}),
    "embeddings without `input`": Request("all", "/v1/embeddings", {}),
    "rerank of a model that can't": Request("all", "/v1/rerank", {"query": "a", "documents": ["b"]}),
    "a path that is none": Request("all", "/v1/nothing", {}),
}
# What is another one in each answer, wherever it stands: names (the ids of tokens are numbers), moments and durations.
_NAMES = {"id", "item_id", "call_id"}
_MOMENT = re.compile(r"(^|\.)(created|created_at|completed_at|timings\.\w+_(ms|per_second))$")
SAME, ANEW, MISSING, ADDED, OTHER = "the same", "of the moment", "**missing**", "**only here**", "**differs**"
_SEVERITY = [SAME, ANEW, ADDED, MISSING, OTHER]


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a JSON object with the path to it; what stands in lists has one path for all places."""
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from fields(one, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for one in value:
            yield from fields(one, f"{path}[]")
    else:
        yield path, value


def of_answer(content: bytes, *, is_streamed: bool) -> dict[str, list[Any]]:
    """The values of an answer by their paths; of a stream those of all its events, their names, and how it ends."""
    found: dict[str, list[Any]] = {}
    said = sse.payloads(content) if is_streamed else [content]
    for one in said:
        chunk = {"data: [DONE]": True} if one == sse.DONE else orjson.loads(one)
        for path, value in fields(chunk):
            found.setdefault(path, []).append(value)
    if names := [
        line.decode() for line in content.split(b"\n") if is_streamed and line.startswith(b"event:")
    ]:
        found["event:"] = list(names)
    return found


def verdict(path: str, theirs: list[Any] | None, ours: list[Any] | None) -> str:
    """What the door makes of llama-server's field."""
    if theirs is None or ours is None:
        return ADDED if theirs is None else MISSING
    is_name = path.rpartition(".")[2] in _NAMES and isinstance(theirs[0], str)
    if is_name or _MOMENT.search(path):
        return ANEW if {_kind(one) for one in theirs} == {_kind(one) for one in ours} else OTHER
    equal = len(theirs) == len(ours) and all(map(_is_equal, theirs, ours))
    return SAME if equal else OTHER


def _kind(value: Any) -> str:
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    )


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        # Two runs over the same weights; what a batch is made of shows in the last digits.
        return bool(one == pytest.approx(other, rel=1e-3, abs=1e-5))
    return bool(one == other)


class Comparison:
    """What is found, and how it reads."""

    def __init__(self) -> None:
        self._verdicts: dict[str, dict[str, dict[bool, str]]] = {}
        self._refusals: list[str] = []
        self.differences: list[str] = []

    def add(self, request: Request, theirs: bytes, ours: bytes) -> None:
        """An answer of each."""
        there = of_answer(theirs, is_streamed=request.is_streamed)
        here = of_answer(ours, is_streamed=request.is_streamed)
        rows = self._verdicts.setdefault(request.path, {})
        for path in there | here:
            found = verdict(path, there.get(path), here.get(path))
            if found not in {SAME, ANEW}:
                self.differences.append(
                    f"{request.path} {path} {found}: {there.get(path)} there, {here.get(path)} here"
                )
            known = rows.setdefault(path, {}).get(request.is_streamed, found)
            rows[path][request.is_streamed] = max(known, found, key=_SEVERITY.index)

    def add_refusal(self, what: str, theirs: tuple[int, bytes], ours: tuple[int, bytes]) -> None:
        """An error of each."""
        there, here = orjson.loads(theirs[1])["error"], orjson.loads(ours[1])["error"]
        if set(here) != {"message", "type", "code", "param"} or not here["message"]:
            self.differences.append(f"{what}: {here} is no error of OpenAI's")
        param = f", `{here['param']}`" if here["param"] else ""
        self._refusals.append(
            f"| {what} | {theirs[0]} `{there['type']}` | {ours[0]} `{here['type']}`, `{here['code']}`{param} |"
        )

    def table(self) -> str:
        """As the document has it."""
        lines: list[str] = []
        for endpoint, rows in self._verdicts.items():
            is_streamed = any(True in found for found in rows.values())
            lines += [f"#### `{endpoint}`", ""]
            lines += (
                ["| field | whole | streamed |", "| --- | --- | --- |"]
                if is_streamed
                else ["| field | |", "| --- | --- |"]
            )
            for path, found in sorted(rows.items()):
                cells = [found.get(False, "–"), found.get(True, "–")] if is_streamed else [found[False]]
                lines.append(f"| `{path}` | {' | '.join(cells)} |")
            lines.append("")
        lines += [
            "#### Refusals",
            "",
            "| request | llama-server | here |",
            "| --- | --- | --- |",
            *self._refusals,
        ]
        return "\n".join(lines) + "\n"


def written() -> str:
    """The table that the document has."""
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0].strip() + "\n"


def write(table: str) -> None:
    """Put it into the document."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def main() -> int:
    """Compare and write."""
    os.environ[WRITE] = "1"
    return int(pytest.main(["-q", str(Path(__file__).with_name("test_compat.py"))]))


if __name__ == "__main__":
    sys.exit(main())
