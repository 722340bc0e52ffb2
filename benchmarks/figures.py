"""What the gateways' benchmark measured, beside its targets: one row a figure, medians of the repeats."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

DIRECT, PIPE, PORTAL, LITELLM = "direct", "pipe", "portal", "LiteLLM"
SUBJECTS = (DIRECT, PIPE, PORTAL, LITELLM)


class Figures:
    """Measured values by figure and subject."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = {}
        self.faults: list[str] = []

    def note(self, subject: str, **values: float) -> None:
        """One measurement of each of `values`."""
        for figure, value in values.items():
            self._values.setdefault((figure, subject), []).append(value)

    def value(self, figure: str, subject: str) -> float | None:
        """The median; None where it wasn't measured."""
        found = self._values.get((figure, subject))
        return median(found) if found else None

    def added(self, figure: str, subject: str) -> float | None:
        """How much more than direct."""
        value, direct = self.value(figure, subject), self.value(figure, DIRECT)
        return None if value is None or direct is None else value - direct

    def share(self, figure: str) -> float | None:
        """The portal's part of LiteLLM's; of what is added, where direct has it, too."""
        of = self.added if self.value(figure, DIRECT) is not None else self.value
        mine, theirs = of(figure, PORTAL), of(figure, LITELLM)
        return None if mine is None or not theirs else mine / theirs


@dataclass(frozen=True)
class Row:
    """A figure's name, unit and digits, and what the portal's value should be at most, and its part of LiteLLM's."""

    figure: str
    title: str
    unit: str = "ms"
    digits: int = 2
    most: float | None = None
    most_added: float | None = None
    most_share: float | None = None

    def text(self, figures: Figures) -> str:
        """One line of the table."""
        cells = [f"{self.title:<46}{self.unit:>10}"]
        cells += [_cell(figures.value(self.figure, subject), self.digits, 11) for subject in SUBJECTS]
        cells.append(_cell(figures.added(self.figure, PORTAL), self.digits, 10))
        share = figures.share(self.figure)
        cells.append(
            f"{'–':>11}" if share is None else f"{'1/' + format(1 / share, '.1f') if share > 0 else '0':>11}"
        )
        return (
            "".join(cells)
            + "  "
            + "; ".join(f"{aim} {'met' if met else 'MISSED'}" for aim, met in self.aims(figures))
        )

    def aims(self, figures: Figures) -> list[tuple[str, bool]]:
        """Each target in words, and whether it is met."""
        judged: list[tuple[float | None, float | None, Callable[[float], str]]] = [
            (figures.value(self.figure, PORTAL), self.most, lambda most: f"≤ {most:g}"),
            (figures.added(self.figure, PORTAL), self.most_added, lambda most: f"≤ direct + {most:g}"),
            (figures.share(self.figure), self.most_share, lambda most: f"≤ 1/{1 / most:.0f} of LiteLLM"),
        ]
        return [
            (words(most), value <= most)
            for value, most, words in judged
            if value is not None and most is not None
        ]


def _cell(value: float | None, digits: int, width: int) -> str:
    return f"{'–':>{width}}" if value is None else f"{value:{width},.{digits}f}"


ROWS = (
    Row("first_1_p50", "first token, 1 stream, p50", most_added=0.8, most_share=1 / 15),
    Row("first_1_p99", "first token, 1 stream, p99"),
    Row("first_32_p50", "first token, 32 streams of 20/s, p50"),
    Row("first_32_p99", "first token, 32 streams of 20/s, p99"),
    Row("rate", "streamed as fast as it goes, 32 streams", "chunks/s", 0),
    Row("cpu_32", "CPU, 32 streams of 25/s, 250 tokens each", "s/100,000", most_share=1 / 9),
    Row("services_32", "… Valkey and PostgreSQL beside it", "s/100,000"),
    Row("delay_32_p50", "delay of a token, 32 streams, p50"),
    Row("delay_32_p99", "delay of a token, 32 streams, p99"),
    Row("cpu_256", "CPU, 256 streams of 50/s", "s/100,000", most=7.0),
    Row("services_256", "… Valkey and PostgreSQL beside it", "s/100,000"),
    Row("delay_256_p50", "delay of a token, 256 streams, p50", most_added=0.3),
    Row("delay_256_p99", "delay of a token, 256 streams, p99", most_added=3.0),
    Row("cpu_1000", "CPU, 1,000 streams of 20/s", "s/100,000"),
    Row("delay_1000_p50", "delay of a token, 1,000 streams, p50"),
    Row("delay_1000_p99", "delay of a token, 1,000 streams, p99", most=10.0),
    Row("failed_1000", "streams that failed there", "streams", 0, most=0),
    Row("memory", "memory of an open stream", "kB", 1),
    Row("stall", "memory of a client that stops reading", "MB", 2, most=1.0),
    Row("gone_p50", "a vanished client is noticed upstream, p50", digits=1),
    Row("gone_most", "a vanished client is noticed upstream, most", digits=1, most=50.0),
)


def table(figures: Figures) -> str:
    """All figures, the targets beside them."""
    head = f"{'':<46}{'':>10}" + "".join(f"{subject:>11}" for subject in SUBJECTS)
    measured = [row for row in ROWS if figures.value(row.figure, PORTAL) is not None]
    lines = [f"{head}{'added':>10}{'portal is':>11}  target", *(row.text(figures) for row in measured)]
    missed = [row.title for row in ROWS for _, met in row.aims(figures) if not met]
    lines += ["", f"Missed: {', '.join(missed)}." if missed else "Every target that was measured is met."]
    return "\n".join([*lines, *figures.faults])
