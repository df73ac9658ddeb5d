"""The pages in a real browser, opened from disk: what the viewer says and draws, what the table of cases does.

`open_page` fails a test on any message in the console and on any request that leaves the page's folder.
"""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from datxai.pages.content import CasePage, MapBeside, RunPage
from datxai.pages.report import FLAGS, write_case_data, write_case_pages, write_case_report, write_report
from datxai.pages.viewer import LEVELS
from datxai.volume import Grid, Volume

MNI = Grid.axis_aligned((14, 17, 13), (4, 4, 4), (-26, -32, -24))
PEAK, TROUGH = (3, 11, 6), (11, 5, 9)  # where relevance is highest, and where it is most negative
NUMBER = re.compile(r"[\u2212\d.e+]+")


RECORD_TEXT = """() => {
    const draw = CanvasRenderingContext2D.prototype.fillText;
    window.said = [];
    CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
        window.said.push([text, x / this.canvas.width, y / this.canvas.height]);
        draw.call(this, text, x, y);
    };
}"""
NAMELESS = """() => [...document.querySelectorAll("input, select, button, canvas[tabindex]")]
    .filter((part) => part.offsetParent && !part.ariaLabel)
    .filter((part) => ![part, ...(part.labels || [])].some((label) => label.innerText.trim()))
    .map((part) => part.outerHTML)"""
CENTRES = """links => links.map((link) => {
    const box = link.getBBox();
    return [link.getAttribute("href"), box.x + box.width / 2, box.y + box.height / 2];
})"""


def numbers(text):
    return [float(found.replace("\u2212", "-")) for found in NUMBER.findall(text) if found != "e"]


def make_volumes(grid, seed=0):
    rng = np.random.default_rng(seed)
    spect = rng.uniform(0.1, 3, grid.shape)
    relevance = 1e-3 * rng.normal(0, 1, grid.shape)
    relevance[PEAK] = 0.02
    relevance[TROUGH] = -0.01
    return {"spect": Volume(spect, grid.affine), "relevance": Volume(relevance, grid.affine)}


def make_content(**more):
    values = {"case_id": "sub-1", "predicted": 1, "p_reduced": 0.9, "volumes": make_volumes(MNI)} | more
    return CasePage(**values)


@pytest.fixture
def open_case(tmp_path, open_page):
    def open_case(content, **options):
        write_case_report(tmp_path / "case.html", content)
        page = open_page(tmp_path / "case.html", **options)
        page.wait_for_selector('.viewer[data-state="ready"]')
        return page

    return open_case


def read(page, name):
    return numbers(page.inner_text(f'[data-show="{name}"]'))


def slide(page, name, value):
    page.locator(f'[name="{name}"]').evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', {bubbles: true})); }",
        str(value),
    )


def canvas(page, plane):
    return page.locator(f'[data-plane="{plane}"] canvas[tabindex]')


def pixels(page, plane):
    """What is drawn, (height, width, RGB), as integers."""
    address = canvas(page, plane).evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))), int)[..., :3]


def redness(image):
    return image[..., 0] - image[..., 2]


def assert_readout(page, volumes, index):
    """Position and values under the crosshair are those of the arrays."""
    spect, relevance = volumes["spect"], volumes["relevance"]
    assert read(page, "position") == pytest.approx(spect.grid.index_to_mm(index), abs=0.051)
    for name, volume in volumes.items():
        (value,) = read(page, "uptake" if name == "spect" else name)
        step = float(np.abs(volume.data).max()) / LEVELS
        assert value == pytest.approx(float(volume.data[tuple(index)]), rel=6e-3, abs=step)
    assert relevance.grid.same_as(spect.grid)


def test_the_crosshair_says_place_and_values(open_case):
    content = make_content()
    page, volumes = open_case(content), content.volumes
    assert_readout(page, volumes, PEAK)  # where it begins
    here = np.array(PEAK)
    for plane, key, step in [
        ("axial", "ArrowRight", (1, 0, 0)), ("axial", "ArrowUp", (0, 1, 0)), ("axial", "PageDown", (0, 0, -1)),
        ("coronal", "ArrowDown", (0, 0, -1)), ("coronal", "PageUp", (0, 1, 0)), ("sagittal", "ArrowLeft", (0, -1, 0)),
        ("sagittal", "ArrowUp", (0, 0, 1)), ("sagittal", "PageUp", (1, 0, 0)), ("axial", "ArrowLeft", (-1, 0, 0)),
    ]:  # fmt: skip
        canvas(page, plane).press(key)
        here += step
        assert_readout(page, volumes, here)
    canvas(page, "axial").press("Home")
    assert_readout(page, volumes, PEAK)


def test_maps_beside_each_other_have_one_crosshair_and_the_same_controls(open_case):
    other = make_volumes(MNI, seed=3)["relevance"]
    beside = MapBeside(relevance=other, own_relevance=other, explanation={"target": "normal"}, measures={})
    content = make_content(explanation={"name": "mine"}, beside={"other": beside})
    page = open_case(content)
    page.wait_for_function("document.querySelectorAll('.viewer[data-state=ready]').length === 2")
    viewers, here = page.locator(".viewer"), np.array(PEAK)
    maps = (content.volumes["relevance"], other)
    for key, step in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 1), ("ArrowLeft", -1)):
        viewers.nth(1).locator('[data-plane="axial"] canvas[tabindex]').press(key)
        here[0] += step
        for number, volume in enumerate(maps):
            said = {name: numbers(viewers.nth(number).locator(f'[data-show="{name}"]').inner_text())
                    for name in ("position", "relevance")}  # fmt: skip
            assert said["position"] == pytest.approx(MNI.index_to_mm(here), abs=0.051)
            step_of_map = float(np.abs(volume.data).max()) / LEVELS
            assert said["relevance"] == pytest.approx([volume.data[tuple(here)]], rel=6e-3, abs=step_of_map)
    opacity = '[name="opacity"]'
    viewers.nth(0).locator(opacity).evaluate(
        "input => { input.value = '0.3'; input.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    assert viewers.nth(1).locator(opacity).input_value() == "0.3"


def test_the_crosshair_stays_in_the_volume(open_case):
    page = open_case(make_content())
    for _ in range(2 * MNI.shape[0]):
        canvas(page, "axial").press("ArrowLeft")
    assert read(page, "position")[0] == -26


def test_pointer_wheel_and_sliders_move_it_too(open_case):
    content = make_content()
    page, volumes = open_case(content), content.volumes
    canvas(page, "axial").scroll_into_view_if_needed()
    box = canvas(page, "axial").bounding_box()
    x, y, _ = MNI.shape
    page.mouse.click(box["x"] + (9 + 0.5) / x * box["width"], box["y"] + (y - 4 - 0.5) / y * box["height"])
    assert_readout(page, volumes, (9, 4, PEAK[2]))
    page.mouse.wheel(0, 100)
    page.wait_for_function("() => document.querySelector('[data-show=position]').textContent.includes('z = \u22128')")
    assert_readout(page, volumes, (9, 4, PEAK[2] - 2))
    slider = page.locator('[data-plane="sagittal"] input')
    slider.focus()
    slider.press("ArrowRight")
    assert_readout(page, volumes, (10, 4, PEAK[2] - 2))
    assert slider.get_attribute("aria-valuetext") == "x = 14 mm"


def test_the_overlay_shows_sign_and_place_and_obeys_its_sliders(open_case):
    page = open_case(make_content())
    height, width = pixels(page, "axial").shape[:2]
    red = redness(pixels(page, "axial"))
    row, column = np.unravel_index(red.argmax(), red.shape)
    assert red.max() > 40
    assert column / width == pytest.approx((PEAK[0] + 0.5) / MNI.shape[0], abs=0.6 / MNI.shape[0])
    assert 1 - row / height == pytest.approx((PEAK[1] + 0.5) / MNI.shape[1], abs=0.6 / MNI.shape[1])
    page.locator('[data-plane="axial"] input').press("ArrowRight")
    page.locator('[data-plane="axial"] input').press("ArrowRight")
    page.locator('[data-plane="axial"] input').press("ArrowRight")
    assert -redness(pixels(page, "axial")).min() > 40  # blue at the trough
    tinted = np.count_nonzero(np.abs(redness(pixels(page, "axial"))) > 4)
    slide(page, "threshold", 0.3)
    assert read(page, "threshold") == [pytest.approx(0.3 * 0.02)]
    assert 0 < np.count_nonzero(np.abs(redness(pixels(page, "axial"))) > 4) < 0.3 * tinted
    slide(page, "opacity", 0)
    assert not np.ptp(pixels(page, "axial"), axis=-1).any()  # grey everywhere


def test_radiological_convention_turns_pictures_letters_and_keys(open_case):
    page = open_case(make_content())
    place = {}
    for name, option in [("neurological", "0"), ("radiological", "1")]:
        page.select_option('[name="radiological"]', option)
        red = redness(pixels(page, "axial"))
        place[name] = np.unravel_index(red.argmax(), red.shape)[1] / red.shape[1]
        sagittal = redness(pixels(page, "sagittal"))
        place[f"{name}, sagittal"] = np.unravel_index(sagittal.argmax(), sagittal.shape)
    assert place["neurological"] + place["radiological"] == pytest.approx(1, abs=0.02)
    assert abs(place["neurological"] - place["radiological"]) > 0.4
    assert place["neurological, sagittal"] == place["radiological, sagittal"]
    canvas(page, "coronal").press("ArrowRight")
    assert read(page, "position")[0] == MNI.index_to_mm(PEAK)[0] - 4
    canvas(page, "axial").scroll_into_view_if_needed()
    box = canvas(page, "axial").bounding_box()
    page.mouse.click(box["x"] + 1, box["y"] + 1)
    assert read(page, "position")[:2] == [26, 32]


def test_what_the_reader_has_turned_is_remembered_on_the_next_page(tmp_path, browser):
    """By every page of a browser, and before what the run was made with; a store that is refused or spoilt is none."""
    write_case_report(tmp_path / "turned.html", make_content(radiological=True))
    write_case_report(tmp_path / "plain.html", make_content())
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    spoil = """localStorage.setItem("datxai.viewer", '{"scale": 99, "radiological": "1", "opacity": -1, "rest": {}}')"""

    def values(page, name):
        page.goto((tmp_path / name).as_uri())
        page.wait_for_selector('.viewer[data-state="ready"]')
        return [page.input_value(f'[name="{control}"]') for control in ("radiological", "scale", "opacity")]

    for script in ("", refuse, spoil):
        context = browser.new_context()
        context.add_init_script(script if script == refuse else "")
        page = context.new_page()
        assert values(page, "turned.html") == ["1", "0", "0.8"]
        if script == spoil:
            page.evaluate(script)
            assert values(page, "plain.html") == ["0", "0", "0.8"]
            page.evaluate("localStorage.setItem('datxai.viewer', 'nonsense')")
        assert values(page, "plain.html") == ["0", "0", "0.8"]
        page.select_option('[name="radiological"]', "1")
        page.select_option('[name="radiological"]', "0")
        page.select_option('[name="scale"]', "2")
        if script == refuse:
            assert values(page, "plain.html") == ["0", "0", "0.8"]
        else:
            assert values(page, "turned.html") == ["0", "2", "0.8"]
        context.close()


def test_the_scan_alone_stands_beside_the_overlay_and_obeys_the_same_pointer(open_case):
    content = make_content()
    page = open_case(content)
    alone = page.locator('[data-plane="axial"] canvas.plain')
    address = alone.evaluate("canvas => canvas.toDataURL()")
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))), int)[..., :3]
    assert not np.ptp(drawn, axis=-1).any()  # grey everywhere
    assert np.ptp(pixels(page, "axial"), axis=-1).any()
    box, (x, y, _) = alone.bounding_box(), MNI.shape
    page.mouse.click(box["x"] + (9 + 0.5) / x * box["width"], box["y"] + (y - 4 - 0.5) / y * box["height"])
    assert_readout(page, content.volumes, (9, 4, PEAK[2]))
    page.uncheck('[name="plain"]')
    assert not alone.is_visible()


def test_the_letters_follow_the_sides(open_case):
    page = open_case(make_content(sides=("I", "C")))
    page.uncheck('[name="plain"]')
    page.evaluate(RECORD_TEXT)
    for option, left in [("0", "I"), ("1", "C")]:
        page.evaluate("window.said.length = 0")
        page.select_option('[name="radiological"]', option)
        axial, coronal, sagittal = (
            {text: (x, y) for text, x, y in page.evaluate("window.said")[4 * i : 4 * i + 4]} for i in range(3)
        )
        assert axial[left][0] < 0.1 and coronal[left][0] < 0.1
        assert axial["A"][1] < 0.1 and coronal["H"][1] < 0.1 and sagittal["H"][1] < 0.1
        assert sagittal["P"][0] < 0.1 < 0.9 < sagittal["A"][0]


def test_the_outline_is_drawn_where_the_region_ends(open_case):
    outline = np.zeros(MNI.shape, bool)
    outline[2:5, 10:13, 5:8] = True
    page = open_case(make_content(outline=outline))
    slide(page, "opacity", 0)
    with_outline = pixels(page, "axial")
    page.uncheck('[name="outline"]')
    changed = np.argwhere((with_outline != pixels(page, "axial")).any(axis=-1))
    rows, columns = with_outline.shape[:2]
    low, high = changed.min(axis=0), changed.max(axis=0) + 1
    assert [low[1] / columns, high[1] / columns] == pytest.approx([2 / 14, 5 / 14], abs=0.01)
    assert [1 - high[0] / rows, 1 - low[0] / rows] == pytest.approx([10 / 17, 13 / 17], abs=0.01)


def test_the_scans_own_space_is_shown_as_it_lies(open_case):
    turn, (c, s) = np.eye(4), (np.cos(0.3), np.sin(0.3))
    turn[:2, :2] = [[c, -s], [s, c]]
    grid = Grid((14, 17, 13), turn @ np.diag([3.3, 3.3, 4.1, 1.0]) + np.array([[0, 0, 0, v] for v in (-20, 7, 11, 0)]))
    content = make_content(own_volumes=make_volumes(grid, seed=1))
    page = open_case(content)
    page.select_option('[name="space"]', label="the scan's own space")
    page.wait_for_function(
        "() => !document.querySelector('[data-show=position]').textContent.startsWith('x = \u221214')"
    )
    assert_readout(page, content.own_volumes, PEAK)
    box = canvas(page, "coronal").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(14 * 3.3 / (13 * 4.1), rel=0.02)
    canvas(page, "axial").press("ArrowUp")
    assert_readout(page, content.own_volumes, np.add(PEAK, (0, 1, 0)))


def test_a_single_slice_without_relevance_opens(open_case):
    grid = Grid.axis_aligned((14, 17, 1), (4, 4, 12), (-26, -32, 2))
    blank = Volume(np.zeros(grid.shape), grid.affine)
    page = open_case(make_content(volumes={"spect": Volume(blank.data + 1, grid.affine), "relevance": blank}))
    assert [canvas(page, plane).is_visible() for plane in ("axial", "coronal", "sagittal")] == [True, False, False]
    assert read(page, "relevance") == [0]
    assert not np.ptp(pixels(page, "axial"), axis=-1).any()


@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("colour_scheme", ["light", "dark"])
def test_the_case_page_fits_and_everything_has_a_name(open_case, width, colour_scheme):
    content = make_content(
        sbr={"putamen_left": 1.0}, quality={"verdict": "green"}, warnings=["Look at the picture."],
        ledger=[{"layer": "conv1", "relevance_in": 1.0, "relevance_out": 1.0, "absorbed": 0.1, "by_bias": 0.1}],
    )  # fmt: skip
    page = open_case(content, width=width, color_scheme=colour_scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(NAMELESS) == []
    ink, ground = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, ground)]
    assert abs(np.subtract(*brightness)) > 450
    assert (brightness[0] > brightness[1]) == (colour_scheme == "dark")


def test_one_page_shows_the_cases_in_turn(tmp_path, open_page):
    names = ["sub-1", "sub 2 & <co>", "sub-3"]
    for seed, name in enumerate(names):
        write_case_data(tmp_path / f"{name}.js", make_content(case_id=name, volumes=make_volumes(MNI, seed)))
    write_case_pages(tmp_path / "case.html", names, "../report.html")
    page = open_page(tmp_path / "case.html")

    def assert_shown(name):
        page.wait_for_function("name => document.querySelector('h1')?.innerText.endsWith(name)", arg=name)
        page.wait_for_selector('.viewer[data-state="ready"]')
        assert page.title() == name
        assert_readout(page, make_volumes(MNI, names.index(name)), PEAK)

    assert_shown("sub-1")
    slide(page, "opacity", 0.25)
    page.click("text=Next")
    assert_shown("sub 2 & <co>")
    assert page.input_value('[name="opacity"]') == "0.25"  # as the reader has set it
    page.select_option("nav select", "sub-3")
    assert_shown("sub-3")
    page.click("text=Next")
    assert_shown("sub-1")
    page.go_back()
    assert_shown("sub-3")
    for address in ("../../elsewhere", "sub-9", "%"):  # not a case: none is shown, least of all another one's
        page.evaluate("hash => { location.hash = hash; }", address)
        page.wait_for_function("() => document.querySelector('#case').innerText.includes('not in this report')")
        assert page.locator(".viewer").count() == 0
    page.click("text=Next")
    assert_shown("sub-1")


def test_a_page_that_lost_its_folder_says_so(tmp_path, browser):
    write_case_pages(tmp_path / "case.html", ["sub-1"], "../report.html")
    page = browser.new_page()
    page.goto((tmp_path / "case.html").as_uri())
    page.wait_for_selector("main")
    assert "sub-1.js is not there; keep the folder of this page together" in page.inner_text("main")
    page.close()


def make_cases(n, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        group = rng.choice(["TN", "TP", "FN", "FP"], p=[0.5, 0.4, 0.05, 0.05])
        flags = [flag for flag in FLAGS if rng.random() < 0.2 and flag != "misclassified"]
        rows.append(
            {
                "participant_id": f"sub-{number}", "set": rng.choice(["train", "test"]), "age": rng.uniform(40, 80),
                "sex": None, "label": "normal" if group in ("TN", "FP") else "reduced",
                "predicted": "normal" if group in ("TN", "FN") else "reduced", "probability": rng.random(),
                "sbr": rng.uniform(0.2, 3), "z": -number / 10,
                "relevance": None if number % 5 == 0 else rng.normal(), "consistent": True,
                "quality": "green", "similarity": rng.random(), "reason": None, "group": str(group),
                "flags": flags + ["misclassified"] * (group in ("FN", "FP")),
                "page": None if number % 5 == 0 else f"report/case.html#sub-{number}",
            }
        )  # fmt: skip
    return rows


@pytest.fixture
def open_report(tmp_path, open_page):
    def open_report(cases, **options):
        write_report(tmp_path / "report.html", RunPage(cases=cases))
        return open_page(tmp_path / "report.html", **options)

    return open_report


def shown(page):
    return page.locator("#cases tbody th").evaluate_all(
        "cells => cells.filter(c => c.offsetParent).map(c => c.innerText)"
    )


def test_filters_narrow_table_and_points(open_report):
    cases = make_cases(120)
    page = open_report(cases)
    test = [case for case in cases if case["set"] == "test"]
    assert shown(page) == [case["participant_id"] for case in test]
    page.check('[value="misclassified"]')
    wrong = [case for case in test if "misclassified" in case["flags"]]
    assert shown(page) == [case["participant_id"] for case in wrong]
    assert page.locator("#cases svg title").count() == sum(case["relevance"] is not None for case in wrong)
    page.check('[value="uncertain"]')
    both = [case for case in wrong if "uncertain" in case["flags"]]
    assert 0 < len(both) < len(wrong)
    assert shown(page) == [case["participant_id"] for case in both]
    page.uncheck('[value="uncertain"]')
    page.uncheck('[value="misclassified"]')
    page.select_option('[name="set"]', "")
    page.fill('[name="text"]', "SUB-11")
    assert shown(page) == ["sub-11", *(f"sub-{number}" for number in range(110, 120))]
    assert page.inner_text('[data-show="count"]') == "11 of 120 scans"


def test_sorting_is_by_number_up_and_down_with_unknown_last_at_1296_cases(open_report):
    cases = make_cases(1296)
    page = open_report(cases)
    page.select_option('[name="set"]', "")
    header = page.locator('[data-column="relevance"]')
    known = sorted((case for case in cases if case["relevance"] is not None), key=lambda case: case["relevance"])
    unknown = {case["participant_id"] for case in cases if case["relevance"] is None}
    for direction, expected in [("ascending", known), ("descending", known[::-1])]:
        header.locator("button").press("Enter")
        assert header.get_attribute("aria-sort") == direction
        names = shown(page)
        assert names[: len(known)] == [case["participant_id"] for case in expected]
        assert set(names[len(known) :]) == unknown
    page.click('[data-column="participant_id"] button')
    assert shown(page) == [f"sub-{number}" for number in range(1296)]  # 2 before 10
    assert header.get_attribute("aria-sort") is None


def test_points_lie_where_their_values_say_and_lead_to_their_pages(open_report):
    cases = [case for case in make_cases(60) if case["page"]]
    page = open_report(cases)
    page.select_option('[name="set"]', "")
    page.select_option('[name="across"]', label="Age, years")
    page.select_option('[name="up"]', label="SBR of the lower putamen")
    marks = page.locator("#cases svg a").evaluate_all(CENTRES)
    assert [href for href, *_ in marks] == [case["page"] for case in cases]
    for column, name, sign in [(1, "age", 1), (2, "sbr", -1)]:
        drawn, values = [mark[column] for mark in marks], [case[name] for case in cases]
        assert np.corrcoef(drawn, values)[0, 1] == pytest.approx(sign, abs=1e-6)  # a straight scale
    page.locator("#cases svg a").first.hover()
    assert cases[0]["participant_id"] in page.inner_text('[data-show="point"]')
    assert f"{cases[0]['sbr']:.2f}" in page.inner_text('[data-show="point"]')


@pytest.mark.parametrize("colour_scheme", ["light", "dark"])
def test_the_report_fits_a_narrow_window(open_report, colour_scheme):
    page = open_report(make_cases(30), width=380, color_scheme=colour_scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
