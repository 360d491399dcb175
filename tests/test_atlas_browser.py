"""The page of an atlas in headless Chromium, without a network."""

from __future__ import annotations

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright
from small_atlas import make_atlas, make_stamps

from pipeline.similarity.atlas import QUANTITIES
from pipeline.similarity.atlas_page import page as make_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)"
)
BARE = 4
"""Galaxies without a stamp."""
READY = "() => window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
PLACE = """(objid) => {
    const found = Bokeh.documents[0];
    const plot = found.get_model_by_name("map"), data = found.get_model_by_name("galaxies").data;
    const view = Bokeh.index.find_one(plot), at = data.objID.indexOf(objid);
    const box = view.canvas_view.el.getBoundingClientRect();
    return [box.x + view.frame.x_scale.compute(data.x[at]),
            box.y + view.frame.y_scale.compute(data.y[at])];
}"""
"""Where a galaxy is on the screen."""
VISIBLE = """() => Bokeh.documents[0].get_model_by_name("map").right.map(
    (one) => [one.type, one.title, one.visible])"""


@pytest.fixture(scope="module")
def table():
    return make_atlas()


@pytest.fixture(scope="module")
def stamps(table):
    return make_stamps(table.iloc[BARE:])


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def seen(chromium, table, stamps, tmp_path):
    """The page, open; `asked` are the addresses it loads, `wrong` what the browser complains of."""
    path = tmp_path / "atlas.html"
    path.write_text(make_page(table, stamps, "Atlas", "of made-up galaxies"))
    context = chromium.new_context(viewport={"width": 1100, "height": 900}, offline=True)
    page = context.new_page()
    page.asked, page.wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on(
        "console", lambda told: told.type in ("error", "warning") and page.wrong.append(told.text)
    )
    page.goto(path.as_uri())
    page.wait_for_function(READY)
    yield page
    assert page.wrong == []
    assert [one for one in page.asked if not one.startswith("data:")] == [path.as_uri()]
    context.close()


def point_at(page, objid: int) -> tuple[float, float]:
    """Move the mouse onto a galaxy, and onto nothing before that."""
    page.mouse.move(2, 2)
    page.evaluate(DRAWN)
    x, y = page.evaluate(PLACE, str(objid))
    page.mouse.move(x - 3, y - 2)
    page.mouse.move(x, y, steps=3)
    return x, y


def test_the_stamp_and_what_is_known_appear_under_the_mouse(seen, table, stamps):
    assert seen.locator("img").count() == 0
    for row in (BARE, 17, len(table) - 1):
        galaxy = table.iloc[row]
        point_at(seen, galaxy["objID"])
        image = seen.locator("img")
        expect(image).to_have_count(1)
        expect(image).to_be_visible()
        expect(image).to_have_attribute("src", f"data:image/jpeg;base64,{stamps[galaxy['objID']]}")
        assert image.evaluate("one => one.decode().then(() => one.naturalWidth)") == 21
    seen.mouse.move(2, 2)
    expect(seen.locator("img")).to_have_count(0)


def test_the_words_tell_place_redshift_type_and_split(seen, table):
    for row, words in (
        (18, ["151.80000 +1.30000", "z = 0.180, r = 16.8", "early type", "test"]),
        (20, ["152.00000 +1.50000", "photo-z = 0.20, r = 17.0", "type unknown", "test"]),
    ):
        point_at(seen, table["objID"][row])
        card = seen.locator("img + div")
        expect(card).to_contain_text(str(table["objID"][row]))
        assert card.inner_text().split("\n")[1:] == words


def test_the_colour_can_be_switched(seen, table):
    assert [one[2] for one in seen.evaluate(VISIBLE)] == [True, False, False]
    for at, quantity in enumerate(QUANTITIES, start=1):
        seen.get_by_role("button", name=quantity.title).click()
        seen.wait_for_function(READY)
        shown = seen.evaluate(VISIBLE)
        assert [one[2] for one in shown] == [at == other for other in range(3)]
        assert shown[at][1].startswith(quantity.title)
        point_at(seen, table["objID"][17])
        expect(seen.locator("img")).to_have_count(1)


def test_stamps_of_chosen_galaxies_stay_below_the_map(seen, table, stamps):
    seen.mouse.click(*point_at(seen, table["objID"][9]))
    seen.mouse.move(2, 2)
    expect(seen.get_by_text("1 chosen")).to_be_visible()
    expect(seen.locator("figure img")).to_have_attribute(
        "src", f"data:image/jpeg;base64,{stamps[table['objID'][9]]}"
    )
    expect(seen.locator("figcaption")).to_contain_text(str(table["objID"][9]))


def test_galaxies_without_a_stamp_are_points_and_no_more(seen, table, stamps):
    drawn = seen.evaluate("() => Bokeh.documents[0].get_model_by_name('galaxies').data.objID")
    assert sorted(drawn) == sorted(map(str, stamps.index))
