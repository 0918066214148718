from __future__ import annotations

import numpy as np
import pytest

from plastibench import plotting
from plastibench.config.errors import UserError
from plastibench.nn.dormancy import BY_THRESHOLD
from plastibench.plotting.paper_figures import THRESHOLDS, revived_by
from tests.plotting.made import accuracies, acted, classified, several


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(axis) -> dict[str, np.ndarray]:
    """Colour and line of what is drawn to its values."""
    return {
        f"{line.get_color()} {line.get_marker()}": line.get_ydata() for line in axis.lines if len(line.get_ydata()) > 1
    }


def test_figure_2_takes_the_resets_of_parts_in_the_paper_s_order() -> None:
    names = ["none", "reset-mlp", "reset-mlp-qkv", "reset-linear", "reset-layernorm", "reset"]
    figure = plotting.draw("fig2", several("rnr", *names[::-1], "redo"))
    assert legend(figure) == names
    left, right = figure.axes
    assert len(lines(left)) == 6 and right.get_ylabel() == "accuracy above none, points"
    np.testing.assert_allclose(
        lines(left)["#0072B2 s"], 100 * np.mean([accuracies(seed, "reset[]") for seed in range(4)], 0)
    )


def test_what_is_missing_is_told_in_one_line(capsys) -> None:
    plotting.draw("fig2", several("none", "reset", "reset-mlp"))
    said = capsys.readouterr().err
    assert said == "plastibench: fig2: cl-digits, vit-nano lacks reset-mlp-qkv, reset-linear, reset-layernorm\n"


@pytest.mark.parametrize("kind", ["fig2", "fig4", "fig5"])
def test_where_nothing_is_there_the_command_that_makes_it_is_told(kind: str) -> None:
    with pytest.raises(UserError, match=f"no finished run of what {kind} shows; .*plastibench sweep {kind}$"):
        plotting.draw(kind, several("none", "reset"))


def test_figure_4_has_a_row_per_contest_accuracies_left_and_drops_right(capsys) -> None:
    rivals = ("none", "reset", "redo", "shrink-perturb-keep80", "shrink-perturb-keep20")
    other = {"env": "relabel-digits", "agent": "mlp"}
    found = [
        *several(*rivals, "rnr", "regrama"),
        *several("rnr", changed={"criterion": "regrama"}),  # the first choice is there, so this is not drawn
        *several(*rivals, **other),
        *several("rnr", changed={"criterion": "regrama"}, **other),
    ]
    figure = plotting.draw("fig4", found)
    assert capsys.readouterr().err == ""  # each row has one of the two RnR
    assert legend(figure) == [*rivals, "rnr", "rnr criterion=regrama"]
    rows = np.array(figure.axes).reshape(2, 2)
    assert [axis.get_title() for axis in rows[:, 0]] == ["cl-digits, vit-nano", "relabel-digits, mlp"]
    assert [len(lines(axis)) for axis in rows.flat] == [6, 6, 6, 6]
    drop = 10 * np.mean([accuracies(seed, "reset[]")[:3] for seed in range(4)], 0)
    np.testing.assert_allclose(lines(rows[0, 1])["#0072B2 s"], drop)
    assert set(lines(rows[0, 1])["#000000 o"]) == {0.0} and rows[0, 1].get_ylabel() == "drop in accuracy, points"
    assert rows[0, 1].lines[0].get_xdata().tolist() == [2, 3, 4]


def test_figure_4_of_agents_that_act_shows_the_return_that_was_lost() -> None:
    left, right = plotting.draw("fig4", [acted(name, seed) for name in ("none", "rnr") for seed in range(3)]).axes
    assert left.get_ylabel() == "return" and right.get_ylabel() == "drop in return"
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[1000, 1.1], [2000, 1.2]])


def test_figure_5_names_scores_and_thresholds_and_draws_the_references_in_grey() -> None:
    found = several("none", "reset", "redo", "rnr")
    for changed in (
        {"criterion": "regrama"},
        {"criterion": "regrama", "tau": 0.5},
        {"quantile": 0.2},
        {"solver": "pinv"},
    ):
        found += several("rnr", changed=changed)
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
    assert colours[2] == colours[3] != colours[4] == colours[5]  # a colour for each score
    looks = [(line.get_marker(), line.get_linestyle()) for line in left.lines[2:]]
    assert len({marker for marker, _ in looks}) == 4 and looks[0][1] != looks[1][1]
    finals = [container[0].get_ydata()[0] for container in right.containers]
    last = [accuracies(seed, "rnr[('quantile', 0.2)]")[-1] for seed in range(4)]
    assert finals[2] == pytest.approx(100 * np.mean(last))


def test_a_revive_score_is_named_only_where_nothing_else_was_changed() -> None:
    assert THRESHOLDS == BY_THRESHOLD
    assert revived_by(classified("rnr", changed={"criterion": "redo", "tau": 0.1})) == "ReDo (0.1)"
    assert revived_by(classified("rnr", changed={"criterion": "random"})) == "random (0.4)"
    assert revived_by(classified("rnr", changed={"ridge": 1.0})) == ""
    assert revived_by(classified("rnr", every=100)) == "" and revived_by(classified("redo")) == ""
    assert revived_by(classified("rnr", schedule={"until": 9})) == ""


def test_a_row_of_one_score_alone_compares_nothing() -> None:
    found = several("none", "rnr") + several("rnr", changed={"tau": 0.5}) + several("none", "rnr", env="relabel-digits")
    figure = plotting.draw("fig5", found)
    assert [axis.get_title() for axis in figure.axes] == ["cl-digits, vit-nano", "final against drop"]
