"""Everything that is wrong with a cohort, collected row by row and said at once.

Contract: rows are counted as a spreadsheet counts, the header is row 1; text of the user stays text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nafld_utils import artifacts

if TYPE_CHECKING:
    import pandas as pd

WHOLE_LIST = "cohort_problems.txt"  # in the run's folder of artifacts
SHOWN = 200  # problems in a message (choice)


class Problem(NamedTuple):
    """One thing that is wrong; `row` as a spreadsheet counts, None for the table as a whole."""

    row: int | None
    text: str


class Problems(list[Problem]):
    """What is wrong so far."""

    def add(self, row: int | None, text: str) -> None:
        """Note one more thing; None: of the table as a whole."""
        self.append(Problem(row, text))

    def each(self, rows: pd.DataFrame, text: str, **words: Any) -> None:
        """Note the same of every row; ``{column}`` in `text` is what the row has there, other names are `words`."""
        for row in rows.to_dict("records"):
            found = {str(name): shown(value) or "nothing" for name, value in row.items()}
            self.add(int(row["row"]), text.format(**found, **words))


class CohortError(ValueError):
    """Everything that is wrong with a cohort; the message has one line per problem, of many the first `SHOWN`.

    `source` is the table, or the folder or file where there is none; `n_rows` those of the table; `whole` is what a
    problem without a row is about.
    """

    def __init__(
        self, source: Path, problems: Iterable[Problem], n_rows: int | None = None, whole: str = "table"
    ) -> None:
        self.source, self.n_rows = source, n_rows
        self.problems = sorted(problems, key=lambda item: (item.row is not None, item.row or 0))
        rows = "" if n_rows is None else f" in {n_rows} rows"
        self.lines = [f"{source}: {len(self.problems)} problem{'s' * (len(self.problems) != 1)}{rows}"]
        for problem in self.problems:
            self.lines.append(f"  {whole if problem.row is None else f'row {problem.row}'}: {problem.text}")
        super().__init__(self._text("; correct these to see them"))

    def _text(self, rest: str) -> str:
        left = len(self.problems) - SHOWN
        return "\n".join([*self.lines[: SHOWN + 1], *[f"  and {left} more{rest}"] * (left > 0)])

    def written(self, path: Path) -> CohortError:
        """Write the whole list to a text file, where a message cannot show it, and name that file in the message."""
        if len(self.problems) > SHOWN:
            with contextlib.suppress(OSError):  # a full or read-only disk: the first ones are told all the same
                artifacts.save_text(path, "\n".join(self.lines) + "\n")
                self.args = (self._text(f", all of them in {path}"),)
        return self


def shown(text: object, limit: int = 80) -> str:
    """Text of the user for a message: control characters written out, cut to `limit` characters."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return plain if len(plain) <= limit else f"{plain[: limit - 3]}..."
