"""The page that raters open: what it holds and does not hold, and whole sittings in a browser."""

import base64
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from page_checks import addresses, serious

from nafld_utils import turing
from nafld_utils.turing import page, results_files

N = 50
TEXTS = turing.load_texts("en")


def smooth_and_rough(n_real=20, size=64, seed=0):
    """A set whose synthetic images are smoother than the real ones, so that compression would tell them apart."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (n_real, size, size), dtype=np.uint8)
    ramp = np.linspace(40, 90, size)[None, :, None] + rng.integers(0, 3, (N - n_real, 1, 1))
    smooth = np.broadcast_to(ramp, (N - n_real, size, size)) + rng.integers(0, 2, (N - n_real, size, size))
    items = pd.DataFrame({"kind": n_real * ["real"] + (N - n_real) * ["semantic"], "label": np.arange(N) % 2})
    items["is_real"] = (items["kind"] == "real").astype(int)
    return turing.sitting.put_in_order(items, np.concatenate([rough, smooth.astype(np.uint8)]), seed)


@pytest.fixture(scope="module")
def sitting():
    items, images = smooth_and_rough()
    page = turing.page.build(images, items, TEXTS, simulated=True)
    return SimpleNamespace(items=items, images=images, page=page, id=turing.page.set_id(images, items))


def data_of(page):
    return json.loads(turing.page._DATA.search(page)[1])


# ---------------------------------------------------------------- what the file holds


def test_the_file_tells_nothing_that_the_pictures_do_not(sitting):
    cues = page.separation(sitting.page, sitting.images, sitting.items).set_index("cue")
    assert cues.loc["bytes of the embedded picture", "auc"] == 0.5
    assert (cues.loc[cues["of"] == "file", "auc"] - 0.5).abs().max() < 0.25  # 3 SD of chance
    # the check would see what it looks for: these pictures differ in kind
    assert cues.loc["sharpness (SD of the Laplacian)", "auc"] == 1
    assert cues.loc["bytes when compressed", "auc"] == 1
    over_sets = []
    for seed in range(12):
        items, images = smooth_and_rough(size=8, seed=seed)
        cues = page.separation(page.build(images, items, TEXTS), images, items)
        over_sets.append(cues.loc[cues["of"] == "file", "auc"].to_numpy())
    np.testing.assert_allclose(np.mean(over_sets, axis=0), 0.5, atol=0.08)


def test_pictures_are_lossless_of_one_length_and_without_metadata(sitting):
    from PIL import Image

    entries = data_of(sitting.page)["items"]
    assert [set(entry) for entry in entries] == N * [{"id", "src"}]
    assert [entry["id"] for entry in entries] == sitting.items["image_id"].tolist()
    raw = [base64.b64decode(entry["src"].removeprefix("data:image/png;base64,")) for entry in entries]
    assert len({len(content) for content in raw}) == 1
    for content, image in zip(raw, sitting.images, strict=True):
        assert set(re.findall(rb"IHDR|IDAT|IEND|tEXt|zTXt|iTXt|tIME|eXIf|pHYs|gAMA", content)) >= {b"IHDR", b"IEND"}
        opened = Image.open(io.BytesIO(content))
        assert opened.info == {}
        np.testing.assert_array_equal(np.asarray(opened), image)


def test_the_key_is_not_in_the_page(sitting):
    marked = sitting.items.assign(kind="KINDOFIMAGE", source_id="SOURCEOFIMAGE", patient_id=987654)
    assert page.build(sitting.images, marked, TEXTS, simulated=True) == sitting.page
    allowed = {"schema", "version", "set_id", "rater_pattern", "levels", "practice", "items", "texts"}
    assert set(data_of(sitting.page)) == allowed
    flipped = sitting.items.assign(is_real=1 - sitting.items["is_real"])
    assert page.build(sitting.images, flipped, TEXTS, simulated=True) == sitting.page


def test_fifty_images_of_256_pixels_stay_below_12_megabytes():
    images = np.random.default_rng(0).integers(0, 256, (N, 256, 256), dtype=np.uint8)
    items = pd.DataFrame({"image_id": [f"t{i:08x}" for i in range(N)]})
    assert 4e6 < len(page.build(images, items, TEXTS).encode()) < 12e6


def test_the_file_stands_alone(sitting):
    found = addresses(sitting.page)
    assert found.loaded == ["data:,"]
    assert found.linked == []
    assert not re.search(r"@import|url\(|https?:|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", sitting.page)
    assert "default-src &#39;none&#39;" in sitting.page


def test_texts_from_outside_are_escaped(sitting):
    evil = "</script><script>alert(1)</script>"
    texts = TEXTS | {"next": evil, "welcome_alone": evil}
    page = turing.page.build(sitting.images[:2], sitting.items[:2], texts, contact=evil)
    assert "<script>alert" not in page
    assert addresses(page).scripts == 2
    assert data_of(page)["texts"]["next"] == evil


def test_every_text_is_in_the_texts_and_every_one_of_them_is_used(sitting):
    sources = "".join(path.read_text(encoding="utf-8") for path in page.template_files("en")[:3])
    used = set(re.findall(r"texts\.(\w+)", sources)) | {"real", "synthetic", "done_contact", "done_sender"}
    assert used == set(TEXTS)
    template = page.template_files("en")[0].read_text(encoding="utf-8")
    visible = re.sub(r"<[^>]*>|\{\{.*?\}\}|\{%.*?%\}", "", template, flags=re.DOTALL)
    assert visible.split() == [], "words in the template"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "next"}, "found no 'next'"),
        (lambda t: t | {"nxet": "x"}, "found an unknown 'nxet'"),
        (lambda t: t | {"item_heading": "Bild {i}"}, r"in 'item_heading' as in English, found \['\{i\}'\]"),
        (lambda t: t | {"how_items": "one"}, "how_items"),
    ],
)
def test_a_faulty_translation_is_refused(spoil, says):
    with pytest.raises(ValueError, match=says):
        page.check_texts(spoil(TEXTS), TEXTS, "turing_texts.xx.json")


def test_what_is_no_image_or_no_page_is_refused():
    with pytest.raises(ValueError, match=r"expected \(S, S\) uint8, found \(2, 2\) float64"):
        page.encode_png(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="expected a page of the Turing test"):
        page.page_items("<html></html>")


def test_the_set_is_named_by_its_pictures_and_their_order(sitting):
    other = sitting.images.copy()
    other[3, 2, 1] ^= 1
    assert page.set_id(other, sitting.items) != sitting.id
    assert page.set_id(sitting.images[::-1], sitting.items[::-1]) != sitting.id
    pattern = page.practice_pattern(64)
    assert np.unique(pattern[60]).tolist() == [round(i * 255 / 11) for i in range(12)], "twelve grey steps"


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def opened(browser, sitting, tmp_path):
    """The page from disk in a window of its own; afterwards no request has left it and nothing was complained of."""
    file = tmp_path / "turing_test.html"
    file.write_text(sitting.page, encoding="utf-8")
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(10_000)
    requests, messages = [], []
    context.on("request", lambda request: requests.append(request.url))
    context.on("console", lambda message: messages.append(message.text))
    context.on("weberror", lambda error: messages.append(str(error.error)))
    page = context.new_page()
    page.goto(file.as_uri())
    yield page
    context.close()
    assert not messages
    assert {url for url in requests if not url.startswith(("data:", "blob:null"))} == {file.as_uri()}


def enter(page, code="R-01"):
    page.get_by_label(TEXTS["code_label"]).fill(code)
    page.get_by_label(TEXTS["consent_label"]).check()
    page.get_by_role("button", name=TEXTS["begin"]).click()


def heading(page):
    return page.locator("section:not([hidden]) h1").inner_text()


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def finish(page):
    """Answer whatever is left by keyboard."""
    for _ in range(page.evaluate("Number(progress.max) - Number(progress.value)")):
        press(page, "r", "Enter")
    assert heading(page) == TEXTS["finish_heading"]


def results_of(page):
    with page.expect_download() as waiting:
        page.get_by_role("button", name=TEXTS["download"]).click()
    return waiting.value.suggested_filename, waiting.value.path().read_bytes()


def test_a_whole_sitting_by_keyboard_with_a_reload_in_the_middle(opened, sitting):
    page, truth = opened, sitting.items["is_real"].tolist()
    press(page, "Tab")
    page.keyboard.type("R-01")
    press(page, "Tab", "Space", "Tab", "Enter")
    assert heading(page) == TEXTS["how_heading"]
    press(page, "Enter")
    assert heading(page) == TEXTS["practice_heading"]
    press(page, "Enter")
    assert page.get_by_role("status").first.inner_text() == TEXTS["answer_first"]
    press(page, "s", "Enter")
    for i in range(25):
        assert heading(page) == f"Image {i + 1} of {N}"
        press(page, "r" if truth[i] else "s", "8" if i % 2 else "0", "Enter")
    page.reload()
    assert "25 of 50" in page.locator("#resume-what").inner_text()
    press(page, "Tab", "Enter")
    assert heading(page) == f"Image 26 of {N}"
    for i in range(25, N):
        press(page, "r" if truth[i] else "s", "Enter")
    assert heading(page) == TEXTS["finish_heading"]
    press(page, "Enter")
    name, content = results_of(page)
    assert name == f"turing_{sitting.id}_R-01.json"
    assert page.get_by_label(TEXTS["results_label"]).input_value().encode() == content

    ratings, report = results_files.collect({name: content}, sitting.items, sitting.id)
    assert report["status"].tolist() == ["counted"]
    keyed = results_files.attach_key(ratings, sitting.items)
    assert (keyed["said_real"] == keyed["is_real"]).all()
    assert keyed["confidence"].tolist()[:2] == [100, 80]
    assert keyed["confidence"].isna().sum() == 25
    assert keyed["seconds"].gt(0).all()
    table = turing.summarize(keyed)
    assert table["mean"].eq(1).all()
    assert table["note"].eq("one rater: no interval over raters").all()


def test_back_goes_one_image_and_once(opened, sitting):
    page = opened
    enter(page)
    press(page, "Enter", "r", "Enter", "b")
    assert heading(page) == f"Image 1 of {N}", "no way back before the first image"
    press(page, "r", "Enter", "r", "Enter", "b")
    assert heading(page) == f"Image 2 of {N}"
    assert page.get_by_role("radio", name="Real").is_checked()
    assert page.get_by_role("button", name=TEXTS["back"]).count() == 0
    press(page, "b")
    assert heading(page) == f"Image 2 of {N}"
    press(page, "s", "Enter", "b")
    assert heading(page) == f"Image 3 of {N}", "the way back is used up"
    finish(page)
    press(page, "b")
    assert heading(page) == f"Image {N} of {N}"
    press(page, "s", "Enter", "Enter")
    answers = json.loads(results_of(page)[1])["answers"]
    assert [answers[i]["answer"] for i in (0, 1, 2, N - 1)] == ["real", "synthetic", "real", "synthetic"]
    assert [answers[i]["visits"] for i in (0, 1, 2, N - 1)] == [1, 2, 2, 2]
    page.reload()
    page.get_by_role("button", name=TEXTS["resume"]).click()
    assert heading(page) == TEXTS["done_heading"], "a finished sitting cannot be changed"


def test_code_and_consent_are_asked_for_and_told_apart(opened):
    page = opened
    page.get_by_role("button", name=TEXTS["begin"]).click()
    assert page.locator("#code-wrong").inner_text() == TEXTS["code_wrong"]
    assert page.locator("#consent-wrong").inner_text() == TEXTS["consent_wrong"]
    assert page.evaluate("document.activeElement.id") == "code"
    page.get_by_label(TEXTS["consent_label"]).check()
    page.get_by_label(TEXTS["code_label"]).fill("<b>me</b>")
    page.get_by_role("button", name=TEXTS["begin"]).click()
    assert page.locator("#code-wrong").inner_text() == TEXTS["code_wrong"]
    assert heading(page) == TEXTS["welcome_heading"]


def test_by_mouse_with_single_keys_switched_off(opened):
    page = opened
    enter(page)
    page.get_by_label(TEXTS["keys_on"]).uncheck()
    page.get_by_role("button", name=TEXTS["how_next"]).click()
    press(page, "r")
    assert not page.get_by_role("radio", name="Real").is_checked()
    page.get_by_role("radio", name="Synthetic").check()
    page.get_by_role("radio", name="90 %").check()
    page.get_by_role("button", name=TEXTS["practice_next"]).click()
    assert page.get_by_role("img", name=f"Image 1 of {N}").is_visible()
    assert not page.get_by_role("radio", name="Synthetic").is_checked(), "practice leaves nothing behind"
    assert page.get_by_role("radio", name=TEXTS["confidence_none"]).is_checked()
    assert page.get_by_role("progressbar", name=TEXTS["progress_label"]).is_visible()
    assert page.evaluate("document.activeElement.id") == "item-h", "a screen reader hears which image it is"


def test_a_second_window_takes_over_and_the_first_says_so(opened):
    page = opened
    enter(page)
    press(page, "Enter", "r", "Enter", "r", "Enter")
    other = page.context.new_page()
    other.goto(page.url)
    other.get_by_role("button", name=TEXTS["resume"]).click()
    assert heading(other) == f"Image 2 of {N}"
    page.wait_for_selector("#elsewhere:not([hidden])")
    press(page, "s", "Enter")
    assert heading(page) == TEXTS["elsewhere_heading"]
    finish(other)
    press(other, "Enter")
    assert heading(other) == TEXTS["done_heading"]


def test_without_storage_the_page_warns_and_works(browser, sitting, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(sitting.page, encoding="utf-8")
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied') } })")
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("#no-storage").inner_text() == TEXTS["no_storage"]
    enter(page)
    press(page, "Enter", "r", "Enter")
    finish(page)
    press(page, "Enter")
    content = results_of(page)[1]
    assert len(results_files.collect({"a.json": content}, sitting.items, sitting.id)[0]) == N
    context.close()


@pytest.mark.parametrize(("width", "height"), [(320, 568), (390, 740), (1280, 800)])
def test_every_screen_fits_its_window_and_can_be_read(opened, width, height):
    page = opened
    page.set_viewport_size({"width": width, "height": height})
    sizes = []

    def look():
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert TEXTS["rehearsal"] in page.inner_text("main"), "simulated patients are named on every screen"
        small = page.evaluate(
            "[...document.querySelectorAll('section:not([hidden]) button, section:not([hidden]) .option')]"
            ".filter(part => part.offsetHeight && (part.offsetHeight < 44 || part.offsetWidth < 44)).length"
        )
        assert small == 0, "too small for a finger"
        assert serious(page) == []
        sizes.append(page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)"))

    look()
    enter(page)
    look()
    press(page, "Enter")
    look()
    press(page, "r", "Enter")
    look()
    box = page.get_by_role("img").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert box["width"] >= 240
    assert min(sizes) >= 16
