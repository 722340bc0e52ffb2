"""Markdown, block by block and safe."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.markdown import BlockRenderer, render


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


PIECES = st.sampled_from(
    [
        "# ",
        "text",
        "\n",
        "\n\n",
        "- ",
        "1. ",
        "> ",
        "```",
        "```py\n",
        "    ",
        "|a|b|\n",
        "|-|-|\n",
        "*",
        "`",
        "---",
        "[x](y)",
        "[r]: http://z\n",
        "[r]",
        "=",
        "<b>",
        "\\",
        "~~",
        "~~~",
        "\t",
        "  \n",
        "* * *",
        "![i](u)",
        "&amp;",
    ]
)


@given(st.lists(PIECES, max_size=30).map("".join), st.data())
def test_blocks_do_not_depend_on_how_the_text_was_cut(text, data):
    renderer = BlockRenderer()
    rest = text
    finished: list[str] = []
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        renderer.feed(rest[:size])
        rest = rest[size:]
        assert renderer.blocks[: len(finished)] == finished, "a finished block changed"
        finished = list(renderer.blocks)
        assert isinstance(renderer.open, str)

    # References may be defined behind the block that uses them; only then the two ways may differ.
    if "[r]" not in text:
        assert renderer.finish() == render(text)


@given(st.text(max_size=40).map("a".__add__) | st.lists(PIECES, max_size=8).map("".join))
def test_an_open_block_looks_as_if_it_were_finished(text):
    renderer = BlockRenderer()
    for character in text:
        renderer.feed(character)
    before, shown = list(renderer.blocks), renderer.open
    if "<figure" not in shown:
        assert "".join(before) + shown == "".join(renderer.finish())


@given(st.text(max_size=200))
def test_any_text_renders(text):
    assert "<script" not in "".join(render(text)).lower()


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](data:text/html;base64,PHNjcmlwdD4=)",
        "![x](https://elsewhere.example/pixel.png)",
        '```"><script>alert(1)</script>\ncode\n```',
        "[x](https://a.example 'title\" onmouseover=\"alert(1)')",
        "<style>body{display:none}</style>",
        '<a href="x" style="position:fixed">x</a>',
    ],
)
def test_nothing_active_gets_through(attack):
    tags = Tags()
    tags.feed("".join(render(attack)))

    for tag, attributes in tags.found:
        assert tag not in {"script", "img", "style", "iframe", "object", "form", "input"}
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert attributes.get("href", "https:").startswith(("https:", "http:", "mailto:"))


def test_code_is_coloured_and_can_be_copied():
    (block,) = render("```python\nprint('<hi>')\n```")

    assert '<span class="nb">print</span>' in block
    assert "data-copy" in block
    assert "&lt;hi&gt;" in block


def test_a_finished_block_is_not_parsed_again():
    renderer = BlockRenderer()
    renderer.feed("paragraph\n\n" * 2000)
    before = renderer.blocks[0]
    renderer.feed("more")

    assert len(renderer.blocks) == 2000
    assert renderer.blocks[0] is before
    assert renderer.open == "<p>more</p>\n"


def test_table_cells_say_their_alignment_by_a_class():
    (table,) = render("| a | b |\n|--:|:-:|\n| 1 | 2 |")

    assert '<td class="right">1</td>' in table
    assert '<th class="center">b</th>' in table
    assert "style" not in table
