"""The order of group means: which rows count, what is misplaced, and the exit status of the command."""

import pytest

from mvp_jax.reports import group_order
from mvp_jax.storage import records


def rows(**last):
    """Two targets of each method: their test accuracies at the last step are the mean ± 0.1."""
    found = []
    for method, mean in last.items():
        for target, shift in (("a", -0.1), ("b", 0.1)):
            row = {"target": target, "seed": 0, "method": method, "ratio": 0.875}
            found += [
                row | {"steps": 0, "split": "test", "accuracy": 1 - mean},
                row | {"steps": 50, "split": "valid", "accuracy": 1 - mean},
                row | {"steps": 50, "split": "test", "accuracy": mean + shift},
            ]
    return found


def test_means_are_of_the_test_split_at_the_end():
    means = group_order.last_means(rows(ifp=0.5, mvp=0.7))
    assert means == pytest.approx({"mvp": 0.7, "ifp": 0.5})
    assert list(means) == ["mvp", "ifp"]


@pytest.mark.parametrize(
    ("accuracies", "status", "said"),
    [
        ({"mvp": 0.7, "mvp_select": 0.75, "ifp": 0.6, "dense": 0.9}, 0, ["mvp, mvp_select: above all others"]),
        ({"mvp": 0.7, "ifp": 0.6}, 0, ["  70.0 %  mvp", "  60.0 %  ifp", "mvp: above all others"]),
        ({"mvp": 0.7, "mvp_select": 0.5, "ifp": 0.6}, 1, ["mvp_select (50.0 %) is not above ifp (60.0 %)"]),
        ({"mvp": 0.6, "random_units": 0.6}, 1, ["mvp (60.0 %) is not above random_units (60.0 %)"]),
    ],
)
def test_the_command(tmp_path, capsys, accuracies, status, said):
    records.write_csv(rows(**accuracies), tmp_path / "results.csv")
    assert group_order.main([str(tmp_path / "results.csv")]) == status
    out = capsys.readouterr().out
    for line in said:
        assert line in out
    assert "dense" not in out


def test_groups_can_be_given(tmp_path, capsys):
    records.write_csv(rows(dense=0.9, mvp=0.7), tmp_path / "results.csv")
    assert group_order.main([str(tmp_path / "results.csv"), "--above=dense", "--below=mvp"]) == 0
    assert "dense: above all others" in capsys.readouterr().out


def test_nothing_to_check_is_refused():
    with pytest.raises(ValueError, match=r"no results of \['mvp', 'mvp_select'\], only of \['ifp'\]; run some of them"):
        group_order.misplaced({"ifp": 0.5})
