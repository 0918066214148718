from __future__ import annotations

import numpy as np
import pytest

from plastibench import plotting
from plastibench.config.errors import UserError
from plastibench.nn.dormancy import BY_THRESHOLD
from plastibench.plotting.paper_figures import THRESHOLDS, variant_name
from tests.plotting.made import accuracies, results_of, rl_result, supervised_result


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(axis) -> dict[str, np.ndarray]:
    """Colour and marker of each line to its values."""
    return {
        f"{line.get_color()} {line.get_marker()}": line.get_ydata() for line in axis.lines if len(line.get_ydata()) > 1
    }


def test_figure_2_shows_partial_resets_in_the_order_of_the_paper() -> None:
    names = ["none", "reset-mlp", "reset-mlp-qkv", "reset-linear", "reset-layernorm", "reset"]
    figure = plotting.draw("fig2", results_of("rnr", *names[::-1], "redo"))
    assert legend(figure) == names
    left, right = figure.axes
    assert len(lines(left)) == 6 and right.get_ylabel() == "accuracy gain (percentage points)"
    np.testing.assert_allclose(
        lines(left)["#0072B2 s"], 100 * np.mean([accuracies(seed, "reset[]") for seed in range(4)], 0)
    )


def test_missing_methods_are_reported_in_one_line(capsys) -> None:
    plotting.draw("fig2", results_of("none", "reset", "reset-mlp"))
    said = capsys.readouterr().err
    assert (
        said == "plastibench: fig2: cl-digits, vit-nano has no runs of reset-mlp-qkv, reset-linear, reset-layernorm\n"
    )


@pytest.mark.parametrize("kind", ["fig2", "fig4", "fig5"])
def test_without_runs_the_error_names_the_command_that_creates_them(kind: str) -> None:
    with pytest.raises(
        UserError, match=f"no finished runs of the methods that {kind} needs; .*plastibench sweep {kind}$"
    ):
        plotting.draw(kind, results_of("none", "reset"))


def test_figure_4_has_a_row_per_setting_with_accuracies_and_drops(capsys) -> None:
    baselines = ("none", "reset", "redo", "shrink-perturb-keep80", "shrink-perturb-keep20")
    other = {"env": "relabel-digits", "agent": "mlp"}
    found = [
        *results_of(*baselines, "rnr", "regrama"),
        *results_of("rnr", changed={"criterion": "regrama"}),  # not drawn, since the first alternative exists
        *results_of(*baselines, **other),
        *results_of("rnr", changed={"criterion": "regrama"}, **other),
    ]
    figure = plotting.draw("fig4", found)
    assert capsys.readouterr().err == ""  # each row has one of the two alternatives
    assert legend(figure) == [*baselines, "rnr", "rnr criterion=regrama"]
    rows = np.array(figure.axes).reshape(2, 2)
    assert [axis.get_title() for axis in rows[:, 0]] == ["cl-digits, vit-nano", "relabel-digits, mlp"]
    assert [len(lines(axis)) for axis in rows.flat] == [6, 6, 6, 6]
    drop = 10 * np.mean([accuracies(seed, "reset[]")[:3] for seed in range(4)], 0)
    np.testing.assert_allclose(lines(rows[0, 1])["#0072B2 s"], drop)
    assert (
        set(lines(rows[0, 1])["#000000 o"]) == {0.0}
        and rows[0, 1].get_ylabel() == "drop in accuracy (percentage points)"
    )
    assert rows[0, 1].lines[0].get_xdata().tolist() == [2, 3, 4]


def test_figure_4_of_rl_runs_shows_drops_in_return() -> None:
    left, right = plotting.draw("fig4", [rl_result(name, seed) for name in ("none", "rnr") for seed in range(3)]).axes
    assert left.get_ylabel() == "return" and right.get_ylabel() == "drop in return"
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[1000, 1.1], [2000, 1.2]])


def test_figure_5_names_criteria_and_thresholds_and_draws_references_in_grey() -> None:
    found = results_of("none", "reset", "redo", "rnr")
    for changed in (
        {"criterion": "regrama"},
        {"criterion": "regrama", "tau": 0.5},
        {"quantile": 0.2},
        {"solver": "pinv"},
    ):
        found += results_of("rnr", changed=changed)
    figure = plotting.draw("fig5", found)
    assert legend(figure) == [
        *(
            "none",
            "reset",
            "Low Gradient Quantile (0.2)",
            "Low Gradient Quantile (0.4)",
            "ReGraMa (0.5)",
            "ReGraMa (1.0)",
        ),
    ]
    left, right = figure.axes
    colours = [line.get_color() for line in left.lines]
    assert colours[:2] == ["#777777", "#777777"]
    assert colours[2] == colours[3] != colours[4] == colours[5]  # one colour per criterion
    looks = [(line.get_marker(), line.get_linestyle()) for line in left.lines[2:]]
    assert len({marker for marker, _ in looks}) == 4 and looks[0][1] != looks[1][1]
    finals = [container[0].get_ydata()[0] for container in right.containers]
    last = [accuracies(seed, "rnr[('quantile', 0.2)]")[-1] for seed in range(4)]
    assert finals[2] == pytest.approx(100 * np.mean(last))


def test_a_variant_has_a_name_only_if_no_other_option_changed() -> None:
    assert THRESHOLDS == BY_THRESHOLD
    assert variant_name(supervised_result("rnr", changed={"criterion": "redo", "tau": 0.1})) == "ReDo (0.1)"
    assert variant_name(supervised_result("rnr", changed={"criterion": "random"})) == "random (0.4)"
    assert variant_name(supervised_result("rnr", changed={"ridge": 1.0})) == ""
    assert variant_name(supervised_result("rnr", every=100)) == "" and variant_name(supervised_result("redo")) == ""
    assert variant_name(supervised_result("rnr", schedule={"until": 9})) == ""


def test_a_setting_with_a_single_variant_is_left_out() -> None:
    found = (
        results_of("none", "rnr")
        + results_of("rnr", changed={"tau": 0.5})
        + results_of("none", "rnr", env="relabel-digits")
    )
    figure = plotting.draw("fig5", found)
    assert [axis.get_title() for axis in figure.axes] == ["cl-digits, vit-nano", "final accuracy vs. drop"]
