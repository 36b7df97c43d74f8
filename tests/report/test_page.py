"""The page in a headless browser: it needs nothing beside it, sorts, switches, is used by keyboard, fits its paper."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import pytest
import yaml

from ftml_bench import report
from ftml_bench.report import dark
from ftml_bench.report import page as pages
from ftml_bench.report.tables import Table
from ftml_bench.results.looks import COLORS, ON_DARK
from ftml_bench.runs import definition as definitions
from ftml_bench.runs import record
from tests.report import browser as browsers
from tests.report.browser import opened, picture, share
from tests.report.made import FROM_SCRATCH, FTML, write_run

RESULTS = Path(__file__).parents[2] / "leaderboards/results"
# SHA-256 of dist/uPlot.iife.min.js in uplot 1.6.32 of npm.
UPLOT = "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
BLUE, BLACK = COLORS[0], COLORS[3]
EVIL = """</script><script>alert(1)</script><img src=x onerror=alert(2)> "' onfocus=alert(3) x=' **bold** ]]> -->"""
CONTENT = {
    "name": "small",
    "description": EVIL,
    "seeds": [0, 1, 2],
    "benchmarks": {
        "digits": {
            "benchmark": "RainbowDigits",
            "steps": 5,
            "optimizer": {"name": "Adam"},
            "strategies": {
                "FTML": {"note": EVIL},
                "Scratch x10": {"strategy": "FromScratch", "step_factor": 10},
                "FromScratch": {},
            },
        }
    },
}

browser = pytest.fixture(scope="module")(browsers.start)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two seeds of FTML, three of FromScratch; a cell that failed for a reason nobody should trust."""
    root = tmp_path_factory.mktemp("page") / "small"
    root.mkdir()
    (root / "leaderboard.yaml").write_text(yaml.safe_dump(CONTENT, sort_keys=False))
    own = definitions.from_dict(CONTENT, "small").hash
    for row, seeds in {"FTML": FTML, "FromScratch": FROM_SCRATCH}.items():
        for seed, rounds in enumerate(seeds):
            write_run(root / f"digits/{row}/seed-{seed}", rounds, definition=own)
    record.mark_failed(root / "digits/FTML/seed-2", own, EVIL, "Traceback\n")
    report.write(root)
    return root


@pytest.fixture(scope="module")
def file(root):
    return root / "report.html"


@pytest.fixture
def page(browser, file):
    with opened(browser, file) as page:
        yield page


def first_column(table):
    return table.locator("tbody th").all_inner_texts()


def readout(page):
    return page.locator(".readout").inner_text()


def test_what_definitions_and_failures_say_is_shown_and_not_obeyed(page, file):
    assert page.locator("p.lead").inner_text() == EVIL
    assert EVIL in page.locator(".warning").first.inner_text()
    assert page.evaluate("document.scripts.length") == 3
    assert "<script>alert" not in file.read_text()
    assert 'src="x"' not in page.content()


def test_it_may_ask_for_nothing_and_runs_no_script_but_its_own(browser, file):
    context = browser.new_context()
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("meta[http-equiv]").get_attribute("content").startswith("default-src 'none'; img-src data:;")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    assert page.evaluate("fetch('https://example.org').then(() => 'fetched', () => 'refused')") == "refused"
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<a id=a onclick=\"document.title=1\">x</a>')")
    page.locator("#a").click()
    assert page.title() == "small"
    assert asked == []
    context.close()


def test_tables_sort_by_a_number_by_a_text_and_not_at_all(page):
    table = page.locator("table").first
    head = table.get_by_role("columnheader", name="datapoints to γ")
    before = first_column(table)
    assert before == ["FTML *", "Scratch x10 *", "FromScratch"]
    orders = []
    for _ in range(3):
        head.get_by_role("button").focus()
        page.keyboard.press("Enter")
        orders.append((head.get_attribute("aria-sort"), first_column(table)))
    assert orders == [
        ("ascending", ["FTML *", "FromScratch", "Scratch x10 *"]),  # 12.5, 18.3, and none comes last
        ("descending", ["FromScratch", "FTML *", "Scratch x10 *"]),
        ("none", before),
    ]
    table.get_by_role("button", name="strategy").click()
    assert first_column(table) == ["FromScratch", "FTML *", "Scratch x10 *"]
    assert table.locator("td.best").count() > 0


def test_rows_are_switched_off_and_stand_alone(page):
    plot = page.locator(".plot.main")
    both = picture(plot)
    assert both.shape[0] > 300
    assert both.shape[1] > 400
    assert share(both, BLUE) > 0.002
    assert share(both, BLACK) > 0.002
    page.get_by_role("button", name="FTML", exact=True).click()
    assert page.get_by_role("button", name="FTML", exact=True).get_attribute("aria-pressed") == "false"
    assert share(picture(plot), BLUE) == 0
    page.get_by_role("button", name="only FTML").press("Enter")
    alone = picture(plot)
    assert share(alone, BLUE) > 0.002
    assert share(alone, BLACK) == 0
    assert plot.get_attribute("aria-label").startswith("datapoints to γ, over round: FTML. ")
    page.get_by_role("button", name="all", exact=True).click()
    assert share(picture(plot), BLACK) > 0.002


def test_arrow_keys_read_every_value(page):
    """By hand: FTML's seeds need 20, 20, 10, 10 and 10, 20, 20, 10; the mean of rounds 2 to 4 is 40 / 3 and 50 / 3."""
    page.locator(".plot.main").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert readout(page) == "datapoints to γ at round 4: FTML 15 ± 1.7 · FromScratch 18.89 ± 1.1"
    page.locator(".plot.survival").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    # Of rounds 3 and 4 of FTML's two seeds three are learned with 10; of FromScratch's six one is.
    assert "at datapoints 10: FTML 0.25 · FromScratch 0.8333" in readout(page)


def test_curves_over_datapoints_and_over_gradient_evaluations(page):
    plot, caption = page.locator(".plot.main"), page.locator(".charts figcaption").first
    assert "Faint: mean of each round over 2 to 3 seeds" in caption.inner_text()
    page.get_by_label("datapoints", exact=True).check()
    page.get_by_label("Curve").select_option(label="error over datapoints, last third of the rounds")
    plot.focus()
    page.keyboard.press("ArrowRight")
    # Rounds 3 and 4 with 10 datapoints: FTML's accuracies are 0.8, 0.9 and 0.5, 0.8, FromScratch's 0.5 but for one 0.8.
    assert "at datapoints 10: FTML 0.25 ± 0.1 · FromScratch 0.45 ± 0.05" in readout(page)
    assert "Strong: mean over 2 to 3 seeds." in caption.inner_text()
    page.get_by_label("gradient evaluations").check()
    assert plot.get_attribute("aria-label").startswith("datapoints to γ, over gradient evaluations: ")
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert "at gradient evaluations 310000: " in readout(page)  # 10 steps of 31,000 in a round
    page.get_by_label("every seed").check()
    assert "Thin: every seed" in caption.inner_text()


def test_data_are_taken_from_inside_the_page(page, root):
    with page.expect_download() as waiting:
        page.get_by_role("link", name="small-data.zip").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        held = {name: archive.read(name).decode() for name in archive.namelist()}
    assert held["leaderboard.csv"] == (root / "leaderboard.csv").read_text()
    assert held["seeds.csv"] == (root / "seeds.csv").read_text()
    assert definitions.from_dict(yaml.safe_load(held["leaderboard.yaml"]), "held").hash
    rows = list(csv.DictReader(io.StringIO(held["curves.csv"])))
    own = [row for row in rows if (row["row"], row["seed"]) == ("FTML", "1") and row["round"] == row["evaluated_round"]]
    assert [float(row["accuracy"]) for row in own] == [value for values in FTML[1] for value in values]
    assert [row["round"] for row in own] == ["1", "1", "2", "2", "3", "3", "4", "4"]


def test_a_row_says_how_it_was_made_and_its_definition_is_copied(page):
    details = page.locator("details.row-details").first
    details.locator("summary").press("Enter")
    assert "ftml-bench" in details.inner_text()
    details.get_by_role("button", name="copy").last.click()
    content = yaml.safe_load(page.evaluate("navigator.clipboard.readText()"))
    whole, alone = definitions.from_dict(CONTENT, "whole"), definitions.from_dict(content, "row.yaml")
    assert alone.seeds == whole.seeds
    assert alone.benchmarks[0].rows == whole.benchmarks[0].rows[:1]
    assert alone.benchmarks[0].steps == whole.benchmarks[0].steps


def test_everything_has_a_name_for_who_cannot_see_it(page):
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, a, select, input, [role=application], [role=region], img")]
        .filter((e) => !(e.getAttribute("aria-label") || e.alt || e.textContent.trim() || e.labels?.length))
        .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []


def test_dark_pages_have_light_lines(browser, file):
    with opened(browser, file, scheme="dark") as page:
        seen = picture(page)
        assert seen.mean() < 60
        plot = picture(page.locator(".plot.main"))
        assert share(plot, ON_DARK[3]) > 0.002
        assert share(plot, ON_DARK[0]) > 0.002


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_and_charts_have_the_same_colours(browser, file, scheme):
    page_color, blue = {"light": ("#FFFFFF", COLORS[0]), "dark": (dark.PAGE, ON_DARK[0])}[scheme]
    with opened(browser, file, scheme=scheme) as page:
        figure = picture(page.locator(".graph img").first)
        assert share(figure, page_color, within=2) > 0.6
        assert share(figure, blue, within=12) > 0.0003
        assert share(picture(page.locator(".plot.main")), blue, within=12) > 0.001


def test_a_telephone_scrolls_tables_and_nothing_else(browser, file):
    with opened(browser, file, width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert share(picture(page.locator(".plot.main")), BLUE) > 0.002


def printed_too_wide(page):
    """Headings of tables that go over an A4 page in landscape (277 mm of 297)."""
    page.emulate_media(media="print")
    return page.evaluate(
        """[...document.querySelectorAll("table")].filter((t) => t.getBoundingClientRect().right > innerWidth + 1)
        .map((t) => t.textContent.slice(0, 60))"""
    )


def test_paper_has_every_column_and_the_drawn_figures(browser, file):
    with opened(browser, file, width=int(277 / 25.4 * 96)) as page:
        assert not page.locator(".drawn").first.is_visible()
        assert printed_too_wide(page) == []
        assert page.locator(".drawn img").first.is_visible()
        assert not page.locator(".explorer").first.is_visible()
        pdf = page.pdf(prefer_css_page_size=True)
        assert re.search(rb"/MediaBox\s*\[\s*0 0 84[12]\.\d+ 59[45]\.\d+", pdf)


def test_without_scripts_figures_and_tables_are_there(browser, file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(".drawn img").first.is_visible()
    assert page.locator("table").first.is_visible()
    assert not page.locator(".explorer").first.is_visible()
    context.close()


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/report.html")))
def test_committed_pages_draw_and_fit(browser, name):
    file = RESULTS / name / "report.html"
    cells = len(list((RESULTS / name).rglob("record.json")))
    assert file.stat().st_size < max(2_000_000, 16_000 * cells)  # its figures, charts and data are of all of them
    with opened(browser, file, width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert share(picture(page.locator(".plot.main").first), BLUE) > 0.001
        page.set_viewport_size({"width": int(277 / 25.4 * 96), "height": 800})
        assert printed_too_wide(page) == []


# -- without a browser


def test_the_same_files_give_the_same_page_whose_charts_are_plain_json(file, root):
    text = file.read_text()
    report.write(root)
    assert file.read_text() == text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    (board,) = json.loads(data)
    assert [row["name"] for row in board["rows"]] == ["FTML", "FromScratch"]
    assert board["rounds"][0]["lines"]["FTML"]["faint"] == [15, 20, 15, 10]
    assert board["rows"][0]["spent"] == [310_000, 620_000, 930_000, 1_240_000]


def test_names_in_data_cannot_end_the_script():
    table = Table("</script>", ["strategy", "<b>"], [["<i>", "1"]], ['"&'], frozenset({(0, 1)}))
    assert pages.html(table) == (
        '<div class="scroll" role="region" aria-label="&lt;/script&gt;" tabindex="0"><table>\n'
        '<thead><tr><th scope="col">strategy</th><th scope="col">&lt;b&gt;</th></tr></thead>\n'
        "<tbody>\n"
        '<tr><th scope="row">&lt;i&gt;</th><td data-value="1" class="best"><b>1</b></td></tr>\n'
        "</tbody></table></div>\n"
        '<ul class="notes"><li>&#34;&amp;</li></ul>\n'
    )


def test_uplot_is_what_was_published_and_keeps_its_licence(file):
    site = Path(pages.__file__).parent / "site/uplot"
    script = (site / "uPlot.iife.min.js").read_text()
    assert script.startswith("/*! https://github.com/leeoniya/uPlot (v1.6.32) */")
    text = file.read_text()
    assert script in text
    assert (site / "LICENSE").read_text() in text
    assert hashlib.sha256(script.encode()).hexdigest() == UPLOT
