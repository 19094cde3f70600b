"""What stage 08 says: the verdict by its key word, what a panel could show, and the panel that it would take."""

import pandas as pd
import pytest

from nafld_utils.turing import figures, verdict

FOUND = {"d_prime": -0.07, "low": -0.8, "high": 0.65, "p": 0.3, "verdict": "not shown", "note": ""}


def test_the_verdict_says_what_was_to_be_shown_and_whether_it_was():
    # the normal distribution below 0.125 is 0.5497
    assert verdict.equivalence(FOUND, 0.25) == (
        "Skill d' (0: cannot tell; 0.25: 55 % right without inclination) is -0.07 (90 % over raters and images: -0.80"
        " to 0.65). It is NOT shown to lie within 0.25 of 0 (two one-sided tests, p = 0.3)."
    )
    assert "It is shown to lie within 1 of 0" in verdict.equivalence(FOUND | {"verdict": "shown"}, 1.0)
    nothing = FOUND | {"verdict": "cannot be said", "note": "3 answers of the rarer kind"}
    assert verdict.equivalence(nothing, 0.25).endswith("of 0 cannot be said: 3 answers of the rarer kind.")


@pytest.mark.parametrize(
    ("panel", "chance", "says"),
    [
        ("this one", 0.0, "A panel of 5 raters with 18 images each cannot show it, even if nobody can tell."),
        ("this one", 0.42, "5 raters with 18 images each shows it with a chance of 42 % if nobody can tell."),
        ("the paper's, at most", 0.42, "as the paper had, of 5 raters with 18 images each shows it with a chance of"),
    ],
)  # fmt: skip
def test_what_a_panel_could_show(panel, chance, says):
    row = pd.Series({"panel": panel, "n_raters": 5, "n_images": 18, "chance": chance})
    assert says in verdict.chance(row)


def plans(**bases):
    """Plans of 30 and 100 raters: by basis the SD of raters and the images each must see, None where none is enough."""
    rows = [
        {"basis": basis.replace("_", " ").replace("papers", "paper's").replace(" upper", ", upper limit"),
         "sd_rater": sd, "n_raters": n, "n_images": images, "n_answers": images and n * images}
        for basis, (sd, *found) in bases.items() for n, images in zip((30, 100), found, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"n_images": "Int64", "n_answers": "Int64"})


PAPER = {"the_papers_raters": (0.2, 48, 14), "the_papers_raters_upper": (0.6, None, 22)}


def test_the_plan_is_that_of_the_upper_limit_and_says_where_raters_do_not_differ():
    table = plans(these_raters=(0.1, 46, 16), these_raters_upper=(0.3, 60, 20), **PAPER)
    first, second = verdict.plan(table, 0.8)
    assert "about 30 raters with 60 images each; for raters who differ as much as these may" in first
    assert second == (
        "For raters like the paper's: about 100 raters with 14 images each; at the upper limit of their differences:"
        " about 100 raters with 22 images each."
    )
    alike = plans(these_raters=(0.0, 46, 16), these_raters_upper=(0.0, 46, 16), **PAPER)
    assert "at least so many, since these few raters show no difference in skill (SD 0)" in verdict.plan(alike, 0.8)[0]
    (only,) = verdict.plan(plans(**PAPER), 0.8)
    assert only.startswith(
        "To show it with a chance of 80 %, if nobody can tell, half of the images real: for raters like"
    )
    none = plans(these_raters=(0.1, 46, 16), these_raters_upper=(2.0, None, None), **PAPER)
    assert "no panel of up to 100 raters is enough" in verdict.plan(none, 0.8)[0]


def test_lines_of_equal_plans_are_one_with_a_name_that_says_so():
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2)
    alike = plans(these_raters=(0.0, 46, 16), these_raters_upper=(0.0, 46, 16), **PAPER)
    apart = plans(these_raters=(0.1, 46, 16), these_raters_upper=(2.0, None, None), **PAPER)
    labels = [
        figures.planned(table, ax).get_legend_handles_labels()[1]
        for table, ax in zip((alike, apart), axes, strict=True)
    ]
    assert labels[0] == ["these raters, upper limit too", "the paper's raters", "the paper's raters, upper limit"]
    assert labels[1][:2] == ["these raters", "these raters, upper limit: no number is enough"]
    assert [line.get_markerfacecolor() for line in axes[1].lines][1::2] == ["white", "white"]
    plt.close(fig)
