"""Figure of the locked test: AUC here and on the other cohort, and whether probabilities are right there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nafld_utils import views
from nafld_utils.sweep import figures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nafld_utils.artifacts import Run
    from nafld_utils.sweep.elsewhere.scored_units import Elsewhere

_HERE, _THERE = "#777777", "#009E73"


def draw_elsewhere(run: Run, found: Elsewhere | None) -> Figure | None:
    """The locked test's figure; None, and so nothing is drawn, without another cohort."""
    import matplotlib.pyplot as plt

    if found is None:
        return None
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1.5, 1))
    here_and_there(found.table, left).set_title("Single classifiers, by patient")
    figures.reliability(found.reliability, right, views.words_for(run).positive).set_title("Calibration elsewhere")
    fig.suptitle(f"On another cohort{' of simulated patients' if found.facts['simulated'] else ''}", fontsize=11)
    views.mark_simulated(fig, run)
    plt.close(fig)  # shown where it is returned
    return fig


def here_and_there(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC by patient of the same classifiers here and elsewhere, each with its interval, of `measures.compared`."""
    sides = (("here", "here_low", "here_high", "n_here", "o", _HERE), ("auc", "low", "high", "n", "D", _THERE))
    for shift, (name, low, high, n, marker, color) in zip((-0.14, 0.14), sides, strict=True):
        whose = f"{'held-out patients' if name == 'here' else 'the other cohort'} ({table[n].max()})"
        for y, item in enumerate(table.to_dict("records")):
            ax.plot([item[low], item[high]], [y + shift] * 2, color=color, lw=1.4)
            ax.plot([item[name]], [y + shift], marker, color=color, ms=6, label=whose if y == 0 else None)
    ax.axvline(0.5, color="#999999", lw=1, ls="--", zorder=1)
    views.name_rows(ax, table["words"], "ROC AUC by patient; bars are 95 % over patients")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.15), ncols=2)
    return ax
