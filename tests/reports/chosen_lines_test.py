"""Which seven methods a picture names."""

import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from mvp_jax.methods import registry
from mvp_jax.reports import chosen_lines, plots

WORDS = ("reference", "baseline", "control", "random", "variant", "proposed")


def test_the_rule_on_a_case_worked_out_by_hand():
    accuracies = {
        "mvp": 0.70,
        "dense": 0.90,
        "mvp_weighted": 0.72,
        "mvp_anchored": 0.71,
        "ifp": 0.60,
        "ifp_10x": 0.65,
        "oneshot_fisher": 0.50,
        "copy_farthest": 0.40,
        "copy_nearest": 0.69,
        "vote_universal": 0.68,
        "random_units": 0.30,
    }
    want = ["mvp", "dense", "ifp_10x", "ifp", "copy_nearest", "vote_universal", "random_units"]
    assert chosen_lines.choose(accuracies, "mvp", registry.roles()) == want
    # Without a method at random and a second baseline, the next most accurate of the others take the places.
    fewer = {m: a for m, a in accuracies.items() if m not in ("random_units", "ifp", "oneshot_fisher")}
    want = ["mvp", "dense", "ifp_10x", "copy_nearest", "vote_universal", "mvp_weighted", "mvp_anchored"]
    assert chosen_lines.choose(fewer, "mvp", registry.roles()) == want


@hypothesis.given(
    found=st.dictionaries(st.text("abc", min_size=1, max_size=3), st.tuples(st.floats(0, 1), st.sampled_from(WORDS))),
    ours=st.text("abc", min_size=1, max_size=2),
)
def test_at_most_seven_are_named_ours_and_the_reference_among_them(found, ours):
    accuracies, roles = ({m: v[k] for m, v in found.items()} for k in (0, 1))
    chosen = chosen_lines.choose(accuracies, ours, roles)
    assert len(chosen) == len(set(chosen)) == min(7, len(accuracies))
    assert set(chosen) <= set(accuracies)
    assert (ours in chosen) == (ours in accuracies)
    assert any(roles[m] == "reference" for m in chosen) or "reference" not in {roles[m] for m in roles if m != ours} | {
        roles.get(ours)
    }
    styles = chosen_lines.styles(list(accuracies), chosen, ours, roles)
    assert set(styles) == set(accuracies)
    named = [style for style in styles.values() if style.named]
    assert len(named) == len(chosen)
    for a, b in itertools.combinations(named, 2):
        assert a.colour != b.colour
        assert a.marker != b.marker
    assert [m for m, style in styles.items() if style.ours] == [
        m for m in chosen if m == ours and roles[m] != "reference"
    ]


def test_a_caller_may_choose_up_to_six_others():
    accuracies = dict.fromkeys("abcdefgh", 0.5)
    assert chosen_lines.given(accuracies, "h", highlight=["b", "h", "a"]) == ["h", "b", "a"]
    with pytest.raises(ValueError, match=r"no rows of \['imp'\] to highlight; there are \['a', "):
        chosen_lines.given(accuracies, "h", highlight=["imp"])
    with pytest.raises(ValueError, match=r"8 methods to name, .*; at most 7 lines"):
        chosen_lines.given(accuracies, "h", highlight=list("abcdefg"))


def contrast(colour):
    """The contrast of a colour with white, as the Web Content Accessibility Guidelines define it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def test_names_beside_lines_can_be_read_on_white():
    for colour in (*plots.COLOURS, plots.GREY):
        assert contrast(plots.ink(colour)) >= 4.19, colour
