"""Progress: silent, a few lines in a log, or a bar on a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from metamae.progress import Reporter


def console(**settings: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=120, **settings), stream  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("total", "done", "expected"),
    [
        (8, 0, [2, 4, 6, 8]),
        (100, 0, [25, 50, 75, 100]),
        (10, 0, [3, 5, 8, 10]),
        (3, 0, [1, 2, 3]),
        (1, 0, [1]),
        (8, 5, [6, 8]),
        (8, 8, []),
    ],
)
def test_a_log_gets_a_line_every_quarter(total: int, done: int, expected: list[int]) -> None:
    """Counting what was done before a resume."""
    out, stream = console()
    with Reporter(out).stage("sensors: pretrain", total=total, done=done) as stage:
        for step in range(done, total):
            stage.advance(loss=1 / (step + 1))
    lines = stream.getvalue().splitlines()
    for line, step in zip(lines, expected, strict=True):
        assert re.search(rf"^sensors: pretrain +{step}/{total} loss {1 / step:.4f} ", line)
        assert re.search(r"\d+\.\d steps/s \d+ s left$", line)
        assert "\x1b" not in line


def test_the_unit_is_shown() -> None:
    out, stream = console()
    with Reporter(out).stage("probe", total=1, unit="epochs") as stage:
        stage.advance()
    assert " epochs/s " in stream.getvalue()


def test_a_terminal_gets_a_bar_that_ends_where_it_should() -> None:
    out, stream = console(force_terminal=True)
    with Reporter(out).stage("sensors: pretrain mae", total=4, done=1) as stage:
        for _ in range(3):
            stage.advance(loss=0.25)
    last = stream.getvalue().replace("\r", "\n").split("\n")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", "\n".join(last))
    assert "sensors: pretrain mae" in text
    assert "4/4" in text
    assert "loss 0.2500" in text
    assert "steps/s" in text


def test_a_bar_lets_errors_through_and_frees_the_terminal() -> None:
    out, stream = console(force_terminal=True)
    reporter = Reporter(out)

    def interrupted() -> None:
        with reporter.stage("first", total=4) as stage:
            stage.advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with reporter.stage("second", total=1) as stage:
        stage.advance()
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is shown again
    assert "second" in stream.getvalue()


def test_no_console_no_output(capfd: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(None)
    reporter.say("hello")
    with reporter.stage("title", total=2) as stage:
        stage.advance(loss=1.0)
    assert capfd.readouterr() == ("", "")


def test_a_line_can_be_said() -> None:
    out, stream = console()
    Reporter(out).say("runs/sensors-pocket-1 on a processor")
    assert stream.getvalue() == "runs/sensors-pocket-1 on a processor\n"


@pytest.mark.parametrize("text", ["runs/[red]x", "runs/a[/b]"])
def test_brackets_are_text_and_no_markup(text: str) -> None:
    """A folder may be called so."""
    out, stream = console()
    reporter = Reporter(out)
    reporter.say(text)
    with reporter.stage(text, total=1) as stage:
        stage.advance()
    assert stream.getvalue().count(text) == 2


def test_a_line_of_a_log_is_one_line() -> None:
    """At the 80 columns that a pipe or file is taken to have."""
    stream = io.StringIO()
    reporter = Reporter(Console(file=stream, width=80))
    title = "multispectral_spatial metamae #10: pretrain"
    with reporter.stage(title, total=1000, done=998) as stage:
        stage.advance(loss=123.456)
        stage.advance(loss=123.456)
    assert len(stream.getvalue().splitlines()) == 1
