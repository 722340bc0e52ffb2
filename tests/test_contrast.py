"""Every text colour is readable on every ground it stands on, in both themes: computed, not guessed."""

import math
import re

import pytest

from llamaproj import env

_TOKEN = re.compile(r"--([\w-]+): light-dark\(oklch\(([\d. ]+)\), oklch\(([\d. ]+)\)\);")
_GROUNDS = ("bg", "surface", "raised", "accent-soft")
_TEXTS = ("ink", "ink-2", "ink-3", "accent", "accent-strong", "ok", "busy", "warn", "bad", "off")


def tokens(*files: str) -> dict[str, tuple[str, str]]:
    css = "".join((env.BASE_DIR / "static" / "css" / name).read_text() for name in files)
    return {name: (light, dark) for name, light, dark in _TOKEN.findall(css)}


def luminance(oklch: str) -> float:
    """Relative luminance (WCAG 2) of `L C h`, by way of linear sRGB as CSS Color 4 defines it."""
    lightness, chroma, hue = map(float, oklch.split())
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    rgb = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (min(1.0, max(0.0, channel)) for channel in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_formula_knows_black_on_white():
    assert contrast("0 0 0", "1 0 0") == pytest.approx(21, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_four_and_a_half_times_the_contrast_of_its_ground(theme):
    found = tokens("tokens.css", "code.css")
    code = [name for name in found if name.startswith("code-")]
    assert code
    pairs = [(text, ground) for text in (*_TEXTS, *code) for ground in _GROUNDS]
    pairs += [("on-accent", "accent"), ("on-accent", "accent-strong"), ("on-bad", "bad")]
    pairs += [(state, f"{state}-soft") for state in ("ok", "busy", "warn", "bad")]
    pairs += [("ink", f"{state}-soft") for state in ("ok", "busy", "warn", "bad")]

    weak = {pair: contrast(found[pair[0]][theme], found[pair[1]][theme]) for pair in pairs}

    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_edges_of_controls_have_three_times_the_contrast_of_their_ground(theme):
    found = tokens("tokens.css")

    for ground in ("bg", "surface"):
        assert contrast(found["line-strong"][theme], found[ground][theme]) >= 3
