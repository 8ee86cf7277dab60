"""Result rows, and what is made of them: tables beside the paper's numbers, and figures.

Figures load matplotlib and have to be imported by their modules: :mod:`~metamae.report.curves`,
:mod:`~metamae.report.figure`, :mod:`~metamae.report.reconstructions`.
"""

from metamae.report.comparison import average_over_sets, pair_results, summarise_results
from metamae.report.published import look_up
from metamae.report.rows import Key, Result, find_results, read_results, write_results
from metamae.report.tables import Section, make_report, summarise
from metamae.report.wording import LABELS, mean_and_spread

__all__ = [
    "LABELS",
    "Key",
    "Result",
    "Section",
    "average_over_sets",
    "find_results",
    "look_up",
    "make_report",
    "mean_and_spread",
    "pair_results",
    "read_results",
    "summarise",
    "summarise_results",
    "write_results",
]
