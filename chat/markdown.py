"""Markdown to safe HTML, block by block.

An answer grows; its finished blocks don't. `BlockRenderer` is fed text as it comes and says which top-level blocks are
finished for good and how the open last one looks now, parsing only the open tail each time. However the text was cut
into pieces, the finished blocks are the same: a test holds this.
"""

import re
from collections.abc import Sequence
from html import escape

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

_ATTRIBUTES = {
    "a": {"href", "title"},
    "figure": {"class"},
    "button": {"type", "data-copy", "class"},
    "span": {"class"},
    "code": {"class"},
    "th": {"class"},
    "td": {"class"},
    "ol": {"start"},
}
_TAGS = {
    *("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "br"),
    *("strong", "em", "s", "a", "code", "pre", "figure", "figcaption", "span", "button"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
_ENDED_BY_EMPTY_LINE = {"paragraph_open", "heading_open", "hr", "table_open", "blockquote_open"}
# One line of plain words is a paragraph as it stands. Most of what is drawn at every tick is one, and neither parsing
# nor cleaning it was half of the web process's work for a token (docs/adr/0001-relay.md).
_PLAIN = re.compile(r"\n*[^\W\d_][^\x00-\x1f\x7f-\xa0\\`*_~\[&<>]*\n*")
_LEXER_OPTIONS = {"stripnl": False, "ensurenl": False}
# Colouring costs more than everything else together; beyond this a listing stays plain.
_HIGHLIGHT_MAX_CHARS = 20_000


class _Renderer(RendererHTML):
    """markdown-it's renderer, with code as a figure that can be copied and no images from elsewhere."""

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[idx]
        return _code(token.content, token.info.strip().split(" ")[0], colour=not env.get("open"))

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return _code(tokens[idx].content, "", colour=False)

    def renderToken(  # markdown-it's name
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType
    ) -> str:
        """A table cell says its alignment by a class: styles inside a page are forbidden."""
        token = tokens[idx]
        if token.type in {"th_open", "td_open"} and (style := token.attrs.pop("style", None)):
            token.attrSet("class", str(style).removeprefix("text-align:"))
        return super().renderToken(tokens, idx, options, env)

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return escape(tokens[idx].content)


_md = MarkdownIt("commonmark", {"html": False, "linkify": False}, renderer_cls=_Renderer).enable(
    ["table", "strikethrough"]
)


def _code(text: str, language: str, *, colour: bool) -> str:
    body = escape(text)
    if colour and language and len(text) <= _HIGHLIGHT_MAX_CHARS:
        try:
            lexer = get_lexer_by_name(language, **_LEXER_OPTIONS)
        except ClassNotFound:
            pass
        else:
            body = highlight(text, lexer, HtmlFormatter(nowrap=True))
    return (
        f'<figure class="code"><figcaption><span>{escape(language or "text")}</span>'
        '<button type="button" data-copy="code">Copy</button></figcaption>'
        f"<pre><code>{body}</code></pre></figure>"
    )


# The last word on safety, whatever the renderer did. Made once: reading its options costs more than cleaning a block.
_clean = nh3.Cleaner(
    tags=_TAGS,
    attributes=_ATTRIBUTES,
    url_schemes={"http", "https", "mailto"},
    link_rel="noopener noreferrer",
).clean


class BlockRenderer:
    """The HTML of a growing text: finished blocks, once and for ever, and the open one as it stands.

    `feed` costs time in proportion to the open block and the new text, not to the text before.
    """

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._tail = ""
        self._env: EnvType = {}

    def feed(self, text: str) -> None:
        """Take further text; append to `blocks` what it finishes."""
        self._tail += text
        # A block is finished once another one has begun, or by an empty line; only whole lines can tell.
        end_of_lines = self._tail.rfind("\n") + 1
        if "\n" not in text or not end_of_lines:
            return
        lines = self._tail[:end_of_lines]
        groups = _top_level(_md.parse(lines, self._env))
        if not groups:
            return
        last = groups[-1][0]
        assert last.map is not None
        if last.type in _ENDED_BY_EMPTY_LINE and not lines[:-1].rpartition("\n")[2].strip():
            kept = ""
        else:
            groups.pop()
            kept = lines.split("\n", last.map[0])[last.map[0]]
        self.blocks += [self._render(tokens) for tokens in groups]
        self._tail = kept + self._tail[end_of_lines:]

    @property
    def open_chars(self) -> int:
        """The length of the text that isn't in finished blocks."""
        return len(self._tail)

    @property
    def open(self) -> str:
        """The HTML of the last block, which may still change."""
        if _PLAIN.fullmatch(self._tail):
            return f"<p>{self._tail.strip()}</p>\n"
        tokens = _md.parse(self._tail, self._env)
        return _clean(_md.renderer.render(tokens, _md.options, {**self._env, "open": True}))

    def finish(self) -> list[str]:
        """Nothing more will come: all blocks."""
        if self._tail.strip():
            self.blocks += [self._render(tokens) for tokens in _top_level(_md.parse(self._tail, self._env))]
        self._tail = ""
        return self.blocks

    def _render(self, tokens: list[Token]) -> str:
        return _clean(_md.renderer.render(tokens, _md.options, self._env))


def render(text: str) -> list[str]:
    """All blocks of a finished text."""
    renderer = BlockRenderer()
    renderer.feed(text)
    return renderer.finish()


def _top_level(tokens: list[Token]) -> list[list[Token]]:
    """The tokens of each top-level block."""
    groups: list[list[Token]] = []
    depth = 0
    for token in tokens:
        if depth == 0:
            groups.append([])
        groups[-1].append(token)
        depth += token.nesting
    return groups
