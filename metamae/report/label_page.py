"""A comparison as text: tables for the terminal and Markdown, and the HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metamae.evaluation.drawing import ALL, Stage
from metamae.files import write_text
from metamae.report.html import Block, Chapter, Grid, Paragraph, Picture, Preformatted, write_page
from metamae.report.label_curves import Curves, Decision, interval
from metamae.report.label_sentence import Verdict, judge, show_value, write_sentence
from metamae.report.tables import Section
from metamae.report.wording import describe_metric, number

RULE = (
    "Decided on validation cuts of the training rows: each draw holds a quarter of them out (whole "
    "groups, where rows have groups), takes its labels from the rest, and is judged on what was "
    "held out. The best candidate without pretraining and the best with it are those with the "
    "largest mean advantage over raw inputs with a linear model; pretraining is recommended where "
    "the 95 % interval of their paired difference (Student's, overlap of cuts and seeds counted in)"
    " is above zero. Test rows were looked at once, after that."
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that is told of a comparison.

    Attributes:
        name: Name of the data.
        curves: What was measured.
        few: The decision for few labels.
        every: The decision for all labels.
        what: Candidate to what it is, in a line.
        facts: Of the data and the runs, by name.
        remarks: What was guessed or limited.
        cautions: Why the answer may be worth little; said beside it.
    """

    name: str
    curves: Curves
    few: Decision
    every: Decision
    what: Mapping[str, str]
    facts: Mapping[str, str]
    remarks: Sequence[str] = ()
    cautions: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        """The answer."""
        return write_sentence(self.curves, self.few, self.every)

    @property
    def answer(self) -> str:
        """The sentence, and what to mind of it."""
        return " ".join([self.sentence, *(f"Caution: {line}." for line in self.cautions)])

    @property
    def verdicts(self) -> list[Verdict]:
        """What the decisions were on the test rows."""
        decisions = (self.few,) if self.few.number == self.every.number else (self.few, self.every)
        return [judge(self.curves, decision) for decision in decisions]

    @property
    def sections(self) -> list[Section]:
        """Its tables."""
        return [
            self._table("test"),
            self._decisions(),
            self._table("validation"),
            Section(
                title="What is compared",
                header=("candidate", "what it is"),
                lines=[(title, self.what[name]) for name, title in self.curves.titles.items()],
            ),
            Section(
                title="Where this is from",
                header=("what", "is"),
                lines=list(self.facts.items()),
                notes=list(self.remarks),
            ),
        ]

    @property
    def brief(self) -> list[Section]:
        """What a terminal shows: means on test rows, which fit its width, and the decisions."""
        return [self._table("test", intervals=False), self._decisions()]

    def _table(self, stage: Stage, *, intervals: bool = True) -> Section:
        curves = self.curves
        note = "In brackets, 95 % intervals over draws of labels and seeds of pretraining."
        if not intervals:
            note = "Means over draws of labels and seeds of pretraining; intervals are in the page."
        where = "test rows" if stage == "test" else "validation cuts"
        unit = "labels a class" if curves.by_class else "labels"
        heads = [f"all ({curves.all_labels:.0f})" if n == ALL else str(n) for n in curves.numbers]
        if stage == "test" and curves.commonest is not None:
            note += f" The commonest class alone: {number(curves.commonest, curves.metric)}."
        return Section(
            title=f"{describe_metric(curves.metric)} on {where}, by {unit}",
            header=("candidate", *heads),
            lines=[
                (title, *(self._cell(stage, name, n, intervals) for n in curves.numbers))
                for name, title in curves.titles.items()
            ],
            notes=[note],
        )

    def _cell(self, stage: Stage, name: str, labels: int, intervals: bool) -> str:
        values, metric = self.curves.values[stage, name][labels], self.curves.metric
        value, low, high = interval(values)
        if values.size == 1 or not intervals:
            return number(value, metric)
        return f"{number(value, metric)} [{number(low, metric)}, {number(high, metric)}]"

    def _decisions(self) -> Section:
        curves = self.curves
        titles, metric = curves.titles, curves.metric

        def shown(value: float, low: float, high: float) -> str:
            text, ends = show_value(value, metric, sign=True), (low, high)
            most = 2.0 if metric == "spearman" else 1.0  # few draws make Student's interval wider
            if any(abs(end) > 1e6 for end in ends):
                return text
            ends = (max(low, -most), min(high, most))
            return f"{text} [{', '.join(number(end, metric, sign=True) for end in ends)}]"

        verdicts = self.verdicts
        lines = {
            "recommended": [titles[v.decision.recommended] for v in verdicts],
            "rather than": [titles[v.decision.rival] for v in verdicts],
            "gain of pretraining, validation": [shown(*v.decision.difference) for v in verdicts],
            "gain of what is recommended, test": [shown(*v.difference) for v in verdicts],
            "on the test rows that was": [v.word for v in verdicts],
            "best on the test rows": [titles[v.best] for v in verdicts],
            "better than recommended by": [show_value(v.regret, metric) for v in verdicts],
        }
        return Section(
            title="What was recommended, and whether that was right",
            header=("", *(curves.unit(v.decision.number) for v in verdicts)),
            lines=[(name, *cells) for name, cells in lines.items()],
            notes=[RULE],
        )


def write_markdown(comparison: Comparison, path: Path, picture: str) -> None:
    """Write the comparison as Markdown, beside its picture."""
    head = f"# {comparison.name}: does pretraining save labels?\n\n{comparison.answer}\n"
    image = f"\n![Accuracy against numbers of labels]({picture})\n\n"
    sections = "\n".join(section.markdown() for section in comparison.sections)
    write_text(path, head + image + sections)


def write_html(comparison: Comparison, path: Path, picture: Path, configuration: str) -> None:
    """Write the comparison as one HTML file."""
    curves = comparison.curves
    alt = (
        f"{describe_metric(curves.metric)} on test rows against numbers of labels, for "
        f"{', '.join(curves.titles.values())}; the numbers are in the table below"
    )
    chapters = [
        Chapter(
            "Accuracy against labels" if curves.metric != "spearman" else "Metric against labels",
            [
                Picture(
                    path=picture,
                    alt=alt,
                    caption="Means over draws of labels and seeds; bands are 95 % intervals. Read "
                    "across: the horizontal distance of two curves is the labels that one saves.",
                )
            ],
        ),
        *(chapter_of(section, _marked(section, comparison)) for section in comparison.sections),
        Chapter("Configuration of pretraining", [Preformatted(configuration)]),
    ]
    title = f"{comparison.name}: does pretraining save labels?"
    write_page(path, title, chapters, lead=comparison.answer)


def chapter_of(section: Section, marked: Sequence[int] = ()) -> Chapter:
    """A section of a report as a chapter of a page."""
    blocks: list[Block] = [Grid(header=section.header, lines=section.lines, marked=marked)]
    blocks += [Paragraph(note, "note") for note in section.notes]
    return Chapter(section.title, blocks)


def _marked(section: Section, comparison: Comparison) -> list[int]:
    """Lines of what was recommended."""
    chosen = {comparison.curves.titles[d.recommended] for d in (comparison.few, comparison.every)}
    return [n for n, line in enumerate(section.lines) if line and line[0] in chosen]
