"""Colours, dashes and markers of learners, labels at the ends of lines, and the files of a figure."""

from __future__ import annotations

import itertools
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from colorspacious import cspace_convert, deltaE
from matplotlib.figure import Figure

from ftml_bench import report
from ftml_bench.report import figures, labels
from ftml_bench.results.looks import COLORS, GREY, LEARNERS, MOST, ON_DARK, VARIANTS, looks
from ftml_bench.runs import definition as definitions

PAPER, DARK_PAGE = "#FFFFFF", "#15181C"
VISIONS = (None, "deuteranomaly", "protanomaly", "tritanomaly")


def board(**rows):
    """The benchmarks of a definition with these rows: name -> strategy."""
    content = {"benchmark": "Sinusoids", "steps": 1, "optimizer": {"name": "Adam"}}
    content["strategies"] = {name.replace("_", " "): {"strategy": strategy} for name, strategy in rows.items()}
    return definitions.from_dict({"name": "some", "seeds": [0], "benchmarks": {"waves": content}}, "some").benchmarks


def seen(color, vision):
    """A colour, sRGB from 0 to 1, as an eye of that kind sees it (Machado et al. 2009, the whole of it)."""
    rgb = np.array(mpl.colors.to_rgb(color))
    space = "sRGB1" if vision is None else {"name": "sRGB1+CVD", "cvd_type": vision, "severity": 100}
    return np.clip(cspace_convert(rgb, space, "sRGB1"), 0, 1)


def contrast(first, second):
    """Of WCAG 2."""

    def luminance(color):
        rgb = np.array(mpl.colors.to_rgb(color))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    lighter, darker = sorted([luminance(first), luminance(second)], reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("colors", [COLORS, ON_DARK])
def test_any_eye_tells_the_colours_apart(colors, vision):
    nearest = min(
        deltaE(seen(a, vision), seen(b, vision), input_space="sRGB1") for a, b in itertools.combinations(colors, 2)
    )
    assert nearest > 10  # of CAM02-UCS, in which 1 is just seen side by side


def test_ours_stand_out_from_the_page():
    ours = list(LEARNERS.values())
    assert min(contrast(COLORS[i], PAPER) for i in ours) > 3
    assert min(contrast(color, PAPER) for color in COLORS) > 2.2
    assert min(contrast(color, DARK_PAGE) for color in ON_DARK) > 4.5  # names of rows are written in them


def test_a_learner_of_ours_looks_the_same_in_every_leaderboard():
    found = {}
    for name in definitions.available():
        for row, look in looks(definitions.load(name).benchmarks).items():
            if not look.grey:
                found.setdefault(row, set()).add(look)
    ours = {row for row in found if row in VARIANTS or row in LEARNERS}
    assert {row for row in ours if len(found[row]) > 1} == set()
    for row in VARIANTS:
        (look,) = found[row]
        learner = next(learner for learner in LEARNERS if row.startswith(learner))
        assert look.color == COLORS[LEARNERS[learner]]
        assert look.dash
        assert {kind.dash for kind in found[learner]} == {()}


@pytest.mark.parametrize("name", definitions.available())
def test_no_two_rows_look_alike_but_those_in_grey(name):
    kinds = [look for look in looks(definitions.load(name).benchmarks).values() if not look.grey]
    assert len(set(kinds)) == len(kinds) <= MOST


def test_rows_beyond_eight_are_grey_and_ours_are_not_among_them():
    foreign = {f"Own{i}": f"my:Own{i}" for i in range(9)}
    found = looks(board(**foreign, FTML="FTML", FTML_last_layer="FTML"))
    assert [name for name, look in found.items() if look.grey] == [f"Own{i}" for i in range(4, 9)]
    many = {f"FTML_{letter}": "FTML" for letter in "abcdefghij"}
    found = looks(board(**many))
    assert len({look for look in found.values() if not look.grey}) == MOST
    assert {look.color for look in list(found.values())[MOST:]} == {GREY}
    only_foreign = looks(board(**{f"Own{i}": f"my:Own{i}" for i in range(8)}))
    assert {look.color for look in only_foreign.values()} == set(COLORS)


def test_a_variant_without_its_learner_keeps_its_dash():
    found = looks(board(**{"FTML_last_layer": "FTML", "FTML_b": "FTML", "FTML": "FTML"}))
    assert [bool(look.dash) for look in found.values()] == [True, True, False]
    assert len(set(found.values())) == 3


def test_users_can_load_the_style():
    with plt.style.context("ftml_bench.report.ftml"):
        cycle = plt.rcParams["axes.prop_cycle"].by_key()
        assert tuple(cycle["color"]) == COLORS
        assert (plt.rcParams["pdf.fonttype"], plt.rcParams["svg.fonttype"]) == (42, "path")


def test_labels_keep_their_distance_and_stay_as_near_as_can_be():
    wanted = np.array([0.5, 0.2, 0.5, 0.52])
    places = labels.spread(wanted, 0.1)
    assert np.diff(np.sort(places)).min() == pytest.approx(0.1)
    assert places[1] == pytest.approx(0.2)
    # Three that want 0.5, 0.5 and 0.52 lie around the mean of the three.
    assert sorted(places)[1:] == pytest.approx([0.5067 - 0.1, 0.5067, 0.5067 + 0.1], abs=1e-4)
    assert labels.spread(np.full(3, 1.0), 0.2) == pytest.approx([0.6, 0.8, 1.0])
    assert labels.spread(np.full(5, 0.5), 0.9) == pytest.approx([0, 0.25, 0.5, 0.75, 1])  # no room: evenly


def test_names_stand_where_lines_end_on_any_scale():
    figure, (panel,) = figures.panels(1)
    lines = {str(y): panel.plot([1, 2], [1, y])[0] for y in (10, 1000)}
    panel.set(yscale="log", ylim=(1, 10_000))
    labels.at_ends(panel, lines)
    assert {text.get_text(): pytest.approx(text.xyann[1], abs=1e-6) for text in panel.texts} == {
        "10": 0.25,
        "1000": 0.75,
    }
    assert isinstance(figure, Figure)


def test_a_figure_has_its_letters_with_it(tmp_path):
    with figures.styled():
        figure, (panel,) = figures.panels(1)
        panel.set_title("datapoints to γ")
        svg, png, pdf = figures.save(figure, tmp_path / "some")
    assert png.stat().st_size > 1000
    assert "<text" not in svg.read_text()  # outlines
    content = pdf.read_bytes()
    assert b"/FontFile2" in content  # TrueType, embedded
    assert not re.search(rb"/Subtype /Type3", content)
    assert b"CreationDate" not in content


def test_the_same_records_give_the_same_bytes(root):
    names = (
        "leaderboard.md",
        "leaderboard.csv",
        "seeds.csv",
        "report.html",
        *(f"figures/digits.{kind}" for kind in ("png", "svg", "pdf")),
    )
    report.write(root)
    first = {name: (root / name).read_bytes() for name in names}
    report.write(root)
    assert {name: (root / name).read_bytes() for name in names} == first
