"""What a run's images, classes and grades are called, in titles, labels, tables and texts for readers.

Contract: the paper's cohort and simulated patients are liver ultrasounds graded by fat; a folder of the user's own
images is what its settings ``cohort.subject``, ``cohort.class_names`` and ``cohort.grade_name`` say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nafld_utils.artifacts import Run

_SAID = {"gan": "GAN", "upper / lower half": "brightness ratio, upper to lower half of the image"}
_OF_THE_PAPER = ("healthy", "fatty")  # the classes where the settings say nothing


@dataclass(frozen=True)
class Words:
    """Words of one run.

    Attributes
    ----------
    subject : str
        The images, in the plural, e.g. "liver ultrasounds".
    classes : (str, str)
        Names of label 0 and label 1.
    positive : str
        What a score speaks for: label 1, e.g. "a fatty liver".
    grade : str
        What the grade is, short, e.g. "fat".
    grade_column : str
        The same with its unit, for a table, e.g. "fat (%)".
    grade_axis : str
        The same in full, for an axis.
    grade_text : str
        A pattern that a grade is put into, for captions, e.g. "fat {:.0f} %".
    foreign : bool
        Whether the cohort is the user's own.
    note : str
        Sentences for the head of every report of a foreign cohort; empty for others.
    """

    subject: str
    classes: tuple[str, str]
    positive: str
    grade: str
    grade_column: str
    grade_axis: str
    grade_text: str
    foreign: bool
    note: str


def named(text: str) -> str:
    """A text with the words of readers for stored names, e.g. ``GAN`` for ``gan``; keys and paths stay as they are."""
    for name, words in _SAID.items():
        text = re.sub(rf"(?<![\w./]){name}(?![\w./])", words, text)
    return text


def verdict(run: Run, text: str) -> str:
    """A stage's answer as it is printed.

    Parameters
    ----------
    run : Run
    text : str
        A stage's answer.

    Returns
    -------
    str
        Of the smoke profile, whose numbers mean nothing, that no verdict is given.
    """
    return "No verdict: this is the smoke profile, whose numbers mean nothing." if run.is_smoke else text


def words_for(run: Run) -> Words:
    """The words of a run; whether its cohort is foreign is known once notebook 01 has loaded it."""
    s = run.settings.cohort
    if not run.is_foreign:
        subject = s.subject or "liver ultrasounds"
        axis = s.grade_name or "hepatocytes with fatty infiltration (%)"
        positive = "a fatty liver" if s.class_names == _OF_THE_PAPER else s.class_names[1]
        name, column = s.grade_name or "fat", s.grade_name or "fat (%)"
        return Words(subject, s.class_names, positive, name, column, axis, "fat {:.0f} %", False, "")
    subject = s.subject or "images"
    negative, positive = s.class_names
    grade = s.grade_name or "grade"
    note = (
        f"OTHER COHORT than the paper's: {subject} of a folder, class 0 is {negative}, class 1 is {positive}, the one"
        " to detect. No number of the paper's is comparable."
    )
    if run.has_numbered_labels and s.class_names == _OF_THE_PAPER:
        note += (
            f" The table names no classes: its label 0 is read as {negative} and 1 as {positive}; where they mean"
            """ something else give SET="cohort.class_names=['name of 0', 'name of 1']"."""
        )
    first_stages = run.settings.autoencoder
    if "shipped" in (first_stages.semantic.source, first_stages.class_.source):
        note += (
            " The shipped autoencoder has seen simulated images of another organ alone and draws their texture; for"
            ' images worth looking at give SET="autoencoder.semantic.source=train autoencoder.class.source=train".'
        )
    return Words(subject, s.class_names, positive, grade, grade, grade, f"{grade} {{:g}}", True, note)
