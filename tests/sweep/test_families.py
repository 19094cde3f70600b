"""Which comparisons are tested: one, a short declared family, and none of the others."""

import numpy as np
import pandas as pd
import pytest

from nafld_utils.sweep import families

DECLARED = {"backbone": "a", "arm": "semantic", "rate": 1.5}
# (level, backbone, arm, rate, p, Holm by hand over the family 0.03, 0.01, 0.04): 3 x 0.01, 2 x 0.03, then raised to it
ROWS = [
    ("image", "a", "traditional", 1.5, 0.04, 0.06),
    ("image", "a", "semantic", 1.5, 0.02, None),
    ("image", "a", "semantic", 0.5, 0.001, None),
    ("image", "a", "class", 1.5, 0.01, 0.03),
    ("image", "a", "class", 0.5, 0.001, None),
    ("image", "b", "class", 1.5, 0.001, None),
    ("image", "b", "semantic", 1.5, 0.001, None),
    ("image", "a", "gan", 1.5, 0.001, None),
    ("patient", "a", "semantic", 1.5, 0.03, 0.06),
    ("patient", "a", "class", 1.5, 0.001, None),
]


def compared(rows=ROWS):
    table = pd.DataFrame(rows, columns=["level", "backbone", "arm", "rate", "p_patients", "expected"])
    bounds = {"difference": 0.02, "low_patients": -0.01, "high_patients": 0.05, "n_seeds": 3, "n_patients": 55}
    return table.assign(**bounds, note="")


def test_a_declared_family_is_adjusted_and_nothing_else():
    out = families.with_roles(compared(), DECLARED, ("class", "traditional", "filtered"))
    assert out["role"].value_counts().to_dict() == {
        families.PRIMARY: 1,
        families.SECONDARY: 3,
        families.EXPLORATORY: 6,
    }
    assert out["primary"].tolist() == [False, True] + [False] * 8
    np.testing.assert_allclose(out["p_patients_holm"], out["expected"].astype(float))
    # rates, arms and networks that explore cost the family nothing
    fewer = compared([row for row in ROWS if row[-1] is not None or row[:4] == ("image", "a", "semantic", 1.5)])
    fewer = families.with_roles(fewer, DECLARED, ("class", "traditional"))
    np.testing.assert_allclose(fewer["p_patients_holm"], fewer["expected"].astype(float))


def test_the_primary_arm_is_never_secondary_and_its_patient_level_always_is():
    out = families.with_roles(compared(), DECLARED, ("semantic",))
    assert out.index[out["role"] == families.SECONDARY].tolist() == [8]
    assert out.loc[8, "p_patients_holm"] == 0.03, "one test needs no adjustment"
    with pytest.raises(ValueError, match="found 2 among 8"):
        families.with_roles(compared(), {"arm": "semantic", "rate": 1.5})


def test_a_comparison_without_a_p_leaves_the_family_to_the_others():
    table = compared()
    table.loc[8, "p_patients"] = np.nan
    out = families.with_roles(table, DECLARED, ("class", "traditional"))
    assert out["p_patients_holm"].dropna().tolist() == pytest.approx([0.04, 0.02])
    assert families.p_in_words(out.loc[8]) == "not tested"


def test_words_and_claims_name_the_family_and_mark_the_rest():
    out = families.with_roles(compared(), DECLARED, ("class", "traditional"))
    text = " ".join(families.in_words(out))
    assert text.startswith("Secondary, as declared (95 % over 55 patients and 3 training seeds, intervals unadjusted)")
    assert "semantic images with a patient counted once +0.020 [-0.010, +0.050], Holm p = 0.06" in text
    assert text.endswith("The other 6 comparisons are exploratory.")
    rows = {row["key"]: row for row in families.claims(out)}
    assert set(rows) == {f"sweep.gain.secondary.{name}" for name in ("class", "traditional", "patient_level")}
    assert rows["sweep.gain.secondary.class"]["claim"].endswith("(secondary, Holm p = 0.03)")
    assert rows["sweep.gain.secondary.patient_level"]["unit"] == "patient-level AUC"
    assert all(row["over"].endswith("unadjusted") for row in rows.values())
    alone = families.with_roles(out.loc[[1]].drop(columns=["p_patients_holm"]), DECLARED)
    assert families.in_words(alone) == []


KINDS = [
    ("image", "a", "semantic", 1.5, 0.02, None),
    ("image", "a", "semantic_first", 1.5, 0.2, None),
    ("image", "a", "simulated", 1.5, 0.2, None),
    ("image", "a", "simulated_only", 1.5, 0.2, None),
    ("image", "a", "simulated", 0.5, 0.2, None),
    ("image", "b", "simulated", 1.5, 0.2, None),
    ("patient", "a", "semantic", 1.5, 0.2, None),
]


def test_kinds_and_uses_are_those_beside_the_primary_comparison_and_the_control_is_named():
    table = families.with_roles(compared(KINDS), DECLARED)
    table.loc[table["arm"] == "simulated", ["difference", "low_patients", "high_patients"]] = [0.1, 0.05, 0.15]
    found = families.kinds(table)
    assert found[["images", "use"]].to_numpy().tolist() == [
        ["semantic", "mixed in"],
        ["semantic", "first"],
        ["simulated", "mixed in"],
        ["simulated_only", "alone"],
    ]
    best, control = families.kinds_in_words(table, simulated=True)
    assert "the largest gain is that of simulated images used mixed in: +0.100 [+0.050, +0.150]; the largest" in best
    assert control.endswith("so a gain can be seen here.")
    assert len(families.kinds_in_words(table, simulated=False)) == 1, "to real patients they are no more patients"
    table.loc[table["arm"] == "simulated", "low_patients"] = -0.01
    assert "no generator can be." in families.kinds_in_words(table, simulated=True)[1]
    rows = families.kind_claims(table, simulated=True)
    assert [row["key"] for row in rows] == [f"sweep.kind.{name}" for name in found["arm"][1:]]
    assert "positive control" in rows[1]["claim"]
