"""The page of `voken serve` in a real Chromium, before the real server: what a person sees, and what it may never do.

Chromium is taken from VOKEN_CHROMIUM or PATH (Debian: apt-get install chromium). Without it these tests are skipped, as
a browser is no part of a Python environment; CI installs one.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import threading
import urllib.request
import zipfile
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, Request, expect, sync_playwright

import voken.serve
from builders.collections import make_collection
from builders.tiny_model import COLOURS, paint, tiny_model
from voken.api import Collection
from voken.config import SearchConfig
from voken.data.captions import read_dataset
from voken.serve.app import create_app
from voken.serve.settings import ServeSettings

pytestmark = pytest.mark.browser
expect.set_options(timeout=20_000)

STATIC = Path(voken.serve.__file__).parent / "static"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, USUAL, PHONE = (1280, 800), (800, 600), (390, 844)
TOKEN = "a-secret"
HOSTILE = "<img src=x onerror='window.hacked=1'>.png"
# percent of the next colour in each picture of a colour: no two are alike, and each is nearest to its own
SHADES = (0, 12, 24, 36)


# ---- what is searched ----


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Pictures of three colours, four shades each, in folders by shade, and one with a hostile name."""
    root = tmp_path_factory.mktemp("pictures")
    lines = []
    colours = list(COLOURS.items())[:3]
    for place, (colour, full) in enumerate(colours):
        for shade in SHADES:
            name = f"shade{shade}/{colour}.png"
            other = colours[(place + 1) % len(colours)][1]
            mixed = ((100 - shade) * np.array(full) + shade * np.array(other)) // 100
            paint(root / name, tuple(mixed.tolist()))
            lines.append({"file_name": name, "text": "x", "title": f"{colour} {shade}", "shade": shade})
    paint(root / HOSTILE, (255, 255, 0))
    lines.append(
        {"file_name": HOSTILE, "text": "x", "title": "<script>window.hacked=2</script>", "<b>f</b>": "<i>v</i>"}
    )
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # the picture itself decides: at this weight what the generator says is noise
    model = tiny_model(search=SearchConfig(beams=4, vector_weight=1e6))
    folder = tmp_path_factory.mktemp("collection") / "c"
    make_collection(folder, read_dataset(root), model)
    with Collection.open(folder, model=model) as opened:
        opened.add([paint(root / "shade0" / "late.png", (60, 110, 130))])
        yield opened


def cosine_with(word, path):
    """Of a picture's mean colour with the word's colour, from the file alone."""
    with Image.open(path) as image:
        mean = np.asarray(image.convert("RGB")).mean((0, 1))
    one, other = mean - 100, np.array(COLOURS[word]) - 100
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def titled(collection, title):
    """Ids of the pictures of that title."""
    return [hit.image_id for hit in collection.search("grey", 200, where=[f"title={title}"])]


@dataclass
class Site:
    base: str
    collection: Collection

    def hits(self, query, *where):
        """Ids of the collection's hits, without a server."""
        return [hit.image_id for hit in self.collection.search(query, 60, where=where)]

    def post(self, body):
        request = urllib.request.Request(
            f"{self.base}/search", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            return json.load(error)


@contextlib.contextmanager
def serving(collection, thumbnails):
    """A server over a collection."""
    listening = socket.create_server(("127.0.0.1", 0))  # takes connections before the server does
    app = create_app(collection, ServeSettings(token=TOKEN, thumbnail_folder=thumbnails))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}", collection)
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    listening.close()


@pytest.fixture(scope="module")
def site(collection, tmp_path_factory):
    with serving(collection, tmp_path_factory.mktemp("thumbnails")) as site:
        yield site


# ---- who looks at it ----


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = os.environ.get("VOKEN_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not chromium:
        pytest.skip(f"no Chromium: none of {', '.join(names)} is on PATH, and VOKEN_CHROMIUM is not set")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def tab(browser):
    """One tab for all tests that leave nothing in it: a new one costs a process."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


@dataclass
class Visit:
    """A page, and everything that it did."""

    page: Page
    site: Site
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expected: str = "(?!)"
    """What the console may say: browsers report each answer that is an error."""

    def shows(self, ids):
        """Waits until these pictures, in this order, are what is on the screen."""
        titles = [self.site.collection.metadata(name).get("title", name.rpartition("/")[2]) for name in ids]
        tiles = self.page.locator("#grid a")
        expect(tiles.locator(".words span")).to_have_text(titles)
        expect(self.page.locator("#grid")).to_have_attribute("aria-busy", "false")
        links = tiles.evaluate_all("all => all.map((link) => link.href)")
        assert [unquote(link) for link in links] == [f"{self.site.base}/pictures/{name}" for name in ids]

    def type(self, text):
        self.page.locator("#query").fill(text)

    def search(self, text):
        """Ids of the hits, which are on the screen."""
        self.type(text)
        ids = self.site.hits(text)
        self.shows(ids)
        return ids

    def open(self, place):
        self.page.locator("#grid a").nth(place).click()
        expect(self.page.locator("#viewer")).to_be_visible()
        if not self.page.locator("#why-content").is_visible():
            self.page.locator("#why summary").click()
        expect(self.page.locator("#why table, #why p").first).to_be_visible()


@contextlib.contextmanager
def visiting(browser, site, address="/", *, tab=None, size=USUAL, scheme="light", before=lambda page: None):
    """Opens the page; at its end nothing has left the server's origin, and the console is clean."""
    page = tab or browser.new_context().new_page()
    page.set_default_timeout(20_000)
    seen = Visit(page, site)
    listeners = {
        "request": lambda request: seen.requests.append(request),
        "console": lambda message: (
            seen.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
        "pageerror": lambda error: seen.complaints.append(str(error)),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    before(page)
    try:
        page.goto(site.base + address)
        expect(page.locator("#size")).to_have_text(f"{len(site.collection)} pictures")
        yield seen
    finally:
        page.unroute_all(behavior="ignoreErrors")
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
        if tab is None:
            page.context.close()
    addresses = {request.url for request in seen.requests if not request.url.startswith("blob:")}
    assert {address.startswith(f"{site.base}/") for address in addresses} == {True}
    assert [text for text in seen.complaints if not re.search(seen.expected, text)] == []


@pytest.fixture
def visit(browser, tab, site):
    """Visits the site in the common tab, or in a fresh one."""

    def opened(address="/", *, fresh=False, **options):
        return visiting(browser, site, address, tab=None if fresh else tab, **options)

    return opened


# ---- searching ----


def test_pictures_come_as_words_are_typed(visit, site):
    with visit() as seen:
        page = seen.page
        page.locator("#query").press_sequentially("red")  # no Enter
        ids = site.hits("red")
        seen.shows(ids)
        assert set(ids[:4]) == {f"shade{shade}/red.png" for shade in SHADES}
        cosines = [cosine_with("red", site.collection.picture(name).path) for name in ids]
        assert cosines == pytest.approx(sorted(cosines, reverse=True), abs=2e-3)  # vectors are kept in 16 bits
        assert "q=red" in page.url
        expect(page.locator("#summary")).to_have_text(re.compile(rf"^{len(ids)} pictures · [\d.]+ m?s$"))
        expect(page.locator("#state")).to_have_text(re.compile(rf"^{len(ids)} pictures"))
        late = page.locator("#grid img[alt='late.png']")  # nothing is known of it but its id
        late.scroll_into_view_if_needed()
        assert late.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
        box = page.locator("#grid a").first.bounding_box()  # a square picture
        assert box["width"] == pytest.approx(box["height"], rel=0.05)


@pytest.mark.parametrize("abort", ["a request can be broken off", "a request cannot be broken off"])
def test_a_late_answer_never_replaces_a_newer_one(visit, site, abort):
    held = []

    def hold(route):
        if json.loads(route.request.post_data).get("query") == "red":
            held.append(route)
        else:
            route.continue_()

    with visit() as seen:
        page = seen.page
        if "cannot" in abort:
            page.evaluate("AbortController.prototype.abort = () => {}")
        page.route("**/search", hold)
        with page.expect_request(lambda request: "red" in (request.post_data or "")):
            seen.type("red")
        seen.search("blue")
        assert len(held) == 1
        if "cannot" in abort:
            with page.expect_response(lambda response: "red" in (response.request.post_data or "")) as late:
                held[0].continue_()
            late.value.finished()
            page.evaluate("() => new Promise((done) => setTimeout(done, 50))")
        else:
            assert held[0].request.failure == "net::ERR_ABORTED"
        seen.shows(site.hits("blue"))
        assert "q=blue" in page.url


def test_what_was_found_stays_until_something_newer_comes(visit, site):
    held = []
    with visit() as seen:
        before = seen.search("red")
        seen.page.route("**/search", lambda route: held.append(route))
        with seen.page.expect_request("**/search"):
            seen.type("green")
        expect(seen.page.locator("#grid")).to_have_attribute("aria-busy", "true")
        assert seen.page.locator("#grid a").count() == len(before)
        held[0].continue_()
        seen.shows(site.hits("green"))


def test_the_address_holds_the_question(visit, site):
    with visit() as seen:
        seen.search("red")
        seen.page.locator("#query").press("Enter")
        seen.search("blue")
        seen.page.go_back()
        seen.shows(site.hits("red"))
        expect(seen.page.locator("#query")).to_have_value("red")
        seen.page.go_forward()
        seen.shows(site.hits("blue"))
    with visit("/?q=green&filter=shade%3C20") as seen:  # shared
        few = site.hits("green", "shade<20")
        assert {name.partition("/")[0] for name in few} == {"shade0", "shade12"}
        seen.shows(few)
        expect(seen.page.locator("#chips button")).to_have_text(re.compile("shade < 20"))
        assert "green" in seen.page.title()


def test_similar_pictures_and_the_way_back(visit, site):
    with visit("/?q=red") as seen:
        ids = site.hits("red")
        seen.shows(ids)
        seen.open(0)
        seen.page.locator("#similar").click()
        like = [hit.image_id for hit in site.collection.similar(ids[0], 60)]
        seen.shows(like)
        assert ids[0] not in like
        expect(seen.page.locator("#like-name")).to_have_text(re.compile("^Like red "))
        expect(seen.page.locator("#viewer")).to_be_hidden()
        seen.page.go_back()
        expect(seen.page.locator("#viewer")).to_be_visible()
        expect(seen.page.locator("#hit-id")).to_have_text(ids[0])
        seen.page.go_back()
        expect(seen.page.locator("#viewer")).to_be_hidden()
        seen.shows(ids)


# ---- the collection, without a search ----


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Pictures of five months in folders, in several proportions, one of them twice."""
    root = tmp_path_factory.mktemp("album")
    draw = np.random.default_rng(0)
    lines = []
    for place in range(150):
        month = ("2024-05", "2024-05", "2024-02", "2022-11", "2019-07")[place % 5]
        folder = ("trips/rome", "trips/oslo", "home", "")[place % 4]
        name = f"{folder}/p{place:03}.png".lstrip("/")
        size = ((60, 40), (40, 60), (90, 40), (40, 40))[place % 4]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        tiles = Image.fromarray(draw.integers(0, 256, (4, 5, 3), np.uint8))
        tiles.resize(size, Image.Resampling.NEAREST).save(root / name)
        day = 1 + place % 28
        lines.append({"file_name": name, "text": "x", "date": f"{month}-{day:02} 10:00", "stars": place % 3})
    shutil.copy(root / "p003.png", root / "copy.png")
    lines.append({"file_name": "copy.png", "text": "x", "date": lines[3]["date"]})
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path_factory.mktemp("albums") / "album.voken"
    model = tiny_model()
    make_collection(folder, read_dataset(root), model)
    with Collection.open(folder, model=model) as opened, serving(opened, tmp_path_factory.mktemp("small")) as site:
        yield site


def newest_first(site, *where):
    collection = site.collection
    gallery = collection.gallery(where)
    return [picture.image_id for picture in collection.listed(gallery, 0, len(gallery))]


def ids_in(page):
    """Ids of the tiles that are in the page, in order."""
    links = page.locator("#grid a").evaluate_all("all => all.map((link) => new URL(link.href).pathname)")
    return [unquote(link).removeprefix("/pictures/") for link in links]


def test_the_collection_opens_newest_first_by_month(browser, album):
    with visiting(browser, album, size=DESKTOP) as seen:
        page = seen.page
        expect(page.locator("#grid h2").first).to_have_text("May 2024 60")
        headings = page.locator("#grid h2").all_text_contents()
        assert headings == ["May 2024 60", "February 2024 30", "November 2022 31", "July 2019 30"]
        order = newest_first(album)
        expect(page.locator("#grid a").nth(10)).to_be_visible()
        shown = ids_in(page)
        assert len(shown) < len(order)  # the others are not in the page yet
        assert shown == [one for one in order[: len(shown) + 1] if one != "p003.png"][: len(shown)]
        # in their own proportions, in rows that fill the width
        boxes = (
            page.locator("#grid .tiles")
            .first.locator("li")
            .evaluate_all(
                "all => all.map((item) => [item.offsetLeft, item.offsetTop, item.offsetWidth, item.offsetHeight])"
            )
        )
        width = page.locator("#grid").evaluate("grid => grid.clientWidth")
        rows = {}
        for place, (left, top, wide, high) in enumerate(boxes):
            rows.setdefault(top, []).append(left + wide)
            with Image.open(album.collection.picture(shown[place]).path) as image:
                assert wide / high == pytest.approx(image.width / image.height, rel=0.06)
        assert len(rows) > 2
        assert all(max(ends) == pytest.approx(width, abs=1) for ends in list(rows.values())[:-1])
        # further down come further months, and what is far away goes
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        expect(page.locator("#grid section").last.locator("a").last).to_be_visible()
        assert ids_in(page)[-1] == order[-1]
        assert page.locator("#grid a").count() < len(order)


def test_a_picture_that_is_there_twice_is_shown_once(browser, album):
    with visiting(browser, album, "/?filter=date%3D2022-11", size=DESKTOP) as seen:
        page = seen.page
        expect(page.locator("#summary")).to_have_text("31 pictures")
        expect(page.locator("#grid a")).to_have_count(30)
        stack = page.locator("#grid li:has(.stack)")
        expect(stack).to_have_count(1)
        expect(stack.locator(".stack")).to_have_text("2 alike")
        stack.locator("a").click()
        expect(page.locator("#alike-list button")).to_have_count(2)
        ids = {page.locator("#hit-id").text_content()}
        page.locator("#alike-list button").nth(1).click()
        expect(page.locator("#hit-id")).not_to_have_text(ids.copy().pop())
        ids.add(page.locator("#hit-id").text_content())
        assert ids == {"copy.png", "p003.png"}


def test_the_timeline_leads_to_a_year(browser, album):
    with visiting(browser, album, size=(1280, 500)) as seen:
        page = seen.page
        expect(page.locator("#years button")).to_have_text(["2024", "2022", "2019"])
        page.locator("#years button", has_text="2022").click()
        heading = page.locator("#grid h2", has_text="November 2022")
        expect(heading).to_be_in_viewport()
        assert heading.bounding_box()["y"] < 200
        expect(page.locator("#grid section").nth(2).locator("a").first).to_be_visible()
    with visiting(browser, album, size=PHONE) as seen:
        page = seen.page
        page.locator("#jump").select_option(label="July 2019")
        expect(page.locator("#grid h2", has_text="July 2019")).to_be_in_viewport()


def test_folders_are_a_tree(browser, album):
    with visiting(browser, album, size=DESKTOP) as seen:
        page = seen.page
        page.locator("#folders-open").click()
        expect(page.locator("#tree .folder")).to_have_text(
            ["All pictures 151 pictures", "home 37 pictures", "trips 76 pictures"]
        )
        page.get_by_role("button", name="Folders in trips").click()
        page.get_by_role("button", name="oslo 38 pictures").click()
        expect(page.locator("#summary")).to_have_text("38 pictures")
        assert "filter=folder%3Dtrips%2Foslo" in page.url
        assert ids_in(page)[:9] == newest_first(album, "folder=trips/oslo")[:9]
        expect(page.locator("#tree [aria-current]")).to_have_text("oslo 38 pictures")
        page.get_by_role("button", name="All pictures").click()
        expect(page.locator("#grid h2").first).to_have_text("May 2024 60")
        assert "filter" not in page.url


def test_from_picture_to_picture_through_the_collection(browser, album):
    order = [one for one in newest_first(album) if one != "p003.png"]
    with visiting(browser, album, size=DESKTOP) as seen:
        page = seen.page
        expect(page.locator("#grid a").first).to_be_visible()
        page.locator("#grid a").nth(58).scroll_into_view_if_needed()
        page.locator("#grid a").nth(58).click()
        expect(page.locator("#why")).to_be_hidden()  # nothing was searched
        for place in (58, 59, 60, 61):  # the next chunk is loaded on the way
            expect(page.locator("#hit-id")).to_have_text(order[place])
            page.keyboard.press("ArrowRight")
        page.reload()
        expect(page.locator("#hit-id")).to_have_text(order[62])
        expect(page.locator("#place")).to_have_text("63 of 151")
        page.keyboard.press("Escape")
        page.goto(f"{album.base}/?show={quote('home/p002.png', safe='')}")  # shared
        expect(page.locator("#hit-id")).to_have_text("home/p002.png")
        expect(page.locator("#hit-folder")).to_have_text("home")


def test_the_viewer_says_what_is_known_and_enlarges(browser, album):
    with visiting(browser, album, size=DESKTOP) as seen:
        page = seen.page
        page.locator("#grid a").first.click()
        image_id = newest_first(album)[0]
        picture = album.collection.picture(image_id)
        with Image.open(picture.path) as image:
            size = f"{image.width} × {image.height} · {picture.path.stat().st_size} bytes · PNG"
        expect(page.locator("#hit-size")).to_have_text(size)
        expect(page.locator("#hit-date")).to_have_text(re.compile(r"^\w+, May \d+, 2024 at 10:00"))
        expect(page.locator("#hit-path")).to_contain_text(str(picture.path))
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("#copy-path").click()
        expect(page.locator("#copy-path")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == str(picture.path)
        with page.expect_download() as download:
            page.locator("#download").click()
        assert Path(download.value.path()).read_bytes() == picture.path.read_bytes()
        large = page.locator("#large")
        before = large.bounding_box()
        page.keyboard.press("+")
        assert large.bounding_box()["width"] > 1.5 * before["width"]
        expect(large).to_have_attribute("src", re.compile(r"/pictures/[^?]*$"))  # the file itself
        left = large.bounding_box()["x"]
        stage = page.locator("#stage").bounding_box()
        x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 20, y + 10)
        page.mouse.up()
        assert large.bounding_box()["x"] == pytest.approx(left + 20, abs=2)
        page.keyboard.press("0")
        assert large.bounding_box()["width"] == pytest.approx(before["width"], abs=1)


def test_pictures_are_selected_and_exported(browser, album):
    order = [one for one in newest_first(album) if one != "p003.png"]
    with visiting(browser, album, size=DESKTOP) as seen:
        page = seen.page
        tiles = page.locator("#grid li")
        expect(page.locator("#grid a").nth(8)).to_be_visible()
        tiles.nth(1).hover()
        tiles.nth(1).locator(".check").click()
        tiles.nth(4).locator("a").click(modifiers=["Shift"])  # up to here
        expect(page.locator("#selection-count")).to_have_text("4 selected")
        tiles.nth(2).locator("a").click()
        expect(page.locator("#selection-count")).to_have_text("3 selected")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("x")
        wanted = [order[1], order[3], order[4], order[5]]
        expect(page.locator("#grid .selected .check[aria-checked=true]")).to_have_count(4)
        with page.expect_download() as download:
            page.locator("#selection-zip").click()
        with zipfile.ZipFile(download.value.path()) as archive:
            assert sorted(archive.namelist()) == sorted(wanted)
        with page.expect_download() as download:
            page.locator("#selection-list").click()
        paths = Path(download.value.path()).read_text().splitlines()
        assert sorted(paths) == sorted(str(album.collection.picture(one).path) for one in wanted)
        page.keyboard.press("Escape")
        expect(page.locator("#selection")).to_be_hidden()
        page.locator("#grid a").first.click()
        expect(page.locator("#viewer")).to_be_visible()


def test_a_refused_export_says_why(browser, album):
    with visiting(browser, album) as seen:
        seen.expected = "status of 413"
        page = seen.page
        sentence = "The pictures are 2,000,000,000 bytes. Choose fewer, or take the list."
        page.route("**/export", lambda route: route.fulfill(status=413, json={"error": sentence}))
        page.locator("#select").click()
        page.locator("#grid a").first.click()
        page.locator("#selection-zip").click()
        expect(page.locator("#selection-error")).to_have_text(sentence)


def test_filters_are_completed(browser, album):
    with visiting(browser, album) as seen:
        page = seen.page
        page.locator("#filters-open").click()
        values = "list => [...list.options].map((option) => option.value)"
        page.locator("#folder").press_sequentially("ro")
        expect(page.locator("#folder-values option")).to_have_count(1)
        assert page.locator("#folder-values").evaluate(values) == ["trips/rome"]
        page.locator("#field").fill("stars")
        page.locator("#value").focus()
        expect(page.locator("#values option")).to_have_count(3)
        assert sorted(page.locator("#values").evaluate(values)) == ["0", "1", "2"]


def test_examples_are_queries(browser, album):
    suggested = album.collection
    texts = ["red thing", "blue thing"]
    with visiting(browser, album, before=lambda page: page.route(
        "**/examples", lambda route: route.fulfill(json={"examples": texts})
    )) as seen:  # fmt: skip
        page = seen.page
        expect(page.locator("#examples button")).to_have_text(texts)
        page.locator("#examples button").first.click()
        expect(page.locator("#query")).to_have_value("red thing")
        expect(page.locator("#summary")).to_have_text(re.compile("^60 pictures"))
        expect(page.locator("#suggestions")).to_be_hidden()
        assert len(suggested) == 151


def test_the_keyboard_walks_through_the_collection(browser, album):
    order = [one for one in newest_first(album) if one != "p003.png"]
    with visiting(browser, album, size=DESKTOP) as seen:
        page = seen.page
        page.locator("#grid a").first.focus()
        page.keyboard.press("End")
        expect(page.locator("#grid a:focus")).to_have_attribute("href", f"{album.base}/pictures/{order[-1]}")
        page.keyboard.press("Home")
        expect(page.locator("#grid a:focus")).to_have_attribute("href", f"{album.base}/pictures/{order[0]}")
        places = []
        for _ in range(12):  # from month to month
            before = page.locator("#grid a:focus").get_attribute("href")
            page.keyboard.press("ArrowDown")
            expect(page.locator("#grid a:focus")).not_to_have_attribute("href", before)
            expect(page.locator("#grid a:focus")).to_be_in_viewport()
            places.append(page.locator("#grid li:focus-within").get_attribute("data-place"))
        assert list(map(int, places)) == sorted({int(place) for place in places})
        assert page.locator("#grid a[tabindex='0']").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_opening_page_is_accessible(browser, album, size, scheme):
    with visiting(browser, album, size=size, scheme=scheme) as seen:
        page = seen.page
        expect(page.locator("#grid a").first).to_be_visible()
        page.locator("#folders-open").click()
        expect(page.locator("#tree .folder").first).to_be_visible()
        page.locator("#select").click()
        page.locator("#grid .check").first.click()
        violations = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        assert [(one["id"], one["nodes"]) for one in violations if one["impact"] in ("serious", "critical")] == []
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


# ---- one picture ----


def test_why_says_what_the_server_says(visit, site):
    with visit("/?q=red+green") as seen:
        page = seen.page
        seen.shows(site.hits("red green"))
        seen.open(3)
        hit = site.post({"query": "red green", "k": 60, "filters": [], "why": True})["results"][0]["hits"][3]
        why = hit["why"]
        expect(page.locator(".levels")).to_be_visible()
        exact = page.locator(".levels data, .totals data").evaluate_all(
            "all => all.map((element) => Number(element.value))"
        )
        levels = [value for level in why["levels"] for value in (level["log_prob"], level["rank"], level["pictures"])]
        totals = [why[name] for name in ("log_prob", "beam_rank", "cosine") if why[name] is not None]
        assert exact == [*levels, *totals]
        assert len(why["levels"]) == 2
        shown = page.locator(".levels .chip-voken").all_text_contents()
        assert shown == [str(level["voken"]) for level in why["levels"]] == list(map(str, hit["vokens"]))
        rows = page.locator(".levels tbody tr")
        for place, level in enumerate(why["levels"]):
            row = rows.nth(place)
            expect(row).to_contain_text(f"{level['log_prob']:.2f}".replace("-", "−"))
            expect(row).to_contain_text(f"{level['rank']}{['th', 'st', 'nd', 'rd', 'th'][level['rank']]}")
            expect(row.locator("td").last).to_have_text(str(level["pictures"]))
        # likelier vokens have longer bars
        bars = rows.locator(".likely i").evaluate_all(
            "all => all.map((element) => element.getBoundingClientRect().width)"
        )
        assert np.argsort(bars).tolist() == np.argsort([level["log_prob"] for level in why["levels"]]).tolist()
        assert page.locator("#why-content > p").count() == 2
        expect(page.locator("#why-content > p").first).to_contain_text(f"{len(site.collection)} pictures")
        assert page.locator("#hit-score").get_attribute("value") == json.dumps(hit["score"])
        expect(page.locator("#hit-id")).to_have_text(hit["id"])
        names = page.locator("#metadata dt").all_text_contents()
        assert names == list(hit["metadata"])


def test_from_one_picture_to_the_next(visit, site):
    with visit("/?q=red") as seen:
        ids = site.hits("red")
        seen.shows(ids)
        seen.open(0)
        page = seen.page
        expect(page.locator("#previous")).to_be_disabled()
        page.locator("#next").click()
        expect(page.locator("#hit-id")).to_have_text(ids[1])
        page.keyboard.press("ArrowRight")
        expect(page.locator("#hit-id")).to_have_text(ids[2])
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#hit-id")).to_have_text(ids[1])
        expect(page).to_have_url(re.compile("show=" + re.escape(quote(ids[1], safe=""))))
        page.locator("#viewer-close").click()
        expect(page.locator("#viewer")).to_be_hidden()
        expect(page.locator("#grid a").nth(1)).to_be_focused()
        expect(page).not_to_have_url(re.compile("show="))


def test_what_files_and_metadata_say_is_only_text(visit):
    with visit("/?q=red+green&filter=title~script") as seen:
        page = seen.page
        seen.shows([HOSTILE])
        assert page.locator("#grid img").get_attribute("alt") == "<script>window.hacked=2</script>"
        expect(page.locator("#grid .words")).to_contain_text("<script>window.hacked=2</script>")
        assert page.locator("#grid img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
        seen.open(0)
        expect(page.locator("#viewer-title")).to_have_text("<script>window.hacked=2</script>")
        expect(page.locator("#hit-id")).to_have_text(HOSTILE)
        expect(page.locator("#metadata")).to_contain_text("<b>f</b>")
        expect(page.locator("#metadata")).to_contain_text("<i>v</i>")
        page.locator("#similar").click()
        expect(page.locator("#like-name")).to_contain_text("<script>")
        assert page.evaluate("window.hacked") is None
        assert page.locator("main script, main b b, #metadata b, #metadata i, .facts img, .bar script").count() == 0


def test_addresses_of_other_places_are_not_followed(visit, site):
    def elsewhere(route):
        answer = route.fetch()
        content = answer.json()
        content["results"][0]["hits"][0] |= {
            "url": "javascript:window.hacked=1",
            "thumbnail": "https://example.org/a.png",
        }
        content["results"][0]["hits"][1] |= {"url": "//example.org/b", "thumbnail": "//example.org/b.png"}
        route.fulfill(response=answer, json=content)

    with visit(before=lambda page: page.route("**/search", elsewhere)) as seen:
        seen.type("red")
        expect(seen.page.locator("#grid a").first).not_to_have_attribute("href", re.compile("."))
        expect(seen.page.locator("#grid a")).to_have_count(len(site.collection))
        links = seen.page.locator("#grid a").evaluate_all("all => all.map((one) => one.getAttribute('href'))")
        assert links[:2] == [None, None]
        assert all(link.startswith(site.base) for link in links[2:])
        seen.page.locator("#grid li").first.click()
        expect(seen.page.locator("#viewer")).to_be_visible()
        expect(seen.page.locator("#original")).to_be_hidden()
        # that nothing was asked of another place is checked for every visit


# ---- filters ----


def test_filters_narrow_and_can_be_taken_away(visit, site):
    with visit() as seen:
        page = seen.page
        everything = seen.search("red")
        page.locator("#filters-open").click()
        page.locator("#folder").fill("shade12")
        page.locator("#folder").press("Enter")
        seen.shows([name for name in everything if name.startswith("shade12/")])
        expect(page.locator("#folder")).to_have_value("")
        page.locator("#field").fill("title")
        page.locator("#operator").select_option("~")
        page.locator("#value").fill("BLUE")
        page.locator("#value").press("Enter")
        seen.shows(["shade12/blue.png"])
        assert "filter=folder%3Dshade12&filter=title%7EBLUE" in page.url
        page.get_by_role("button", name="Remove filter: folder is shade12").click()
        seen.shows([name for name in everything if name.endswith("blue.png")])
        page.locator("#date-from").fill("2999-01-01")
        expect(page.locator("#notice")).to_contain_text("No picture passes these filters")
        assert "filter=date%3E%3D2999-01-01" in page.url
        page.locator("#notice-action").click()
        seen.shows(everything)
        expect(page.locator("#date-from")).to_have_value("")


def test_a_wrong_filter_is_told_beside_its_field(visit, site):
    sentence = site.post({"query": "red", "filters": ["date=banana"]})["error"]
    with visit() as seen:
        seen.expected = "status of 4(00|22)"
        page = seen.page
        before = seen.search("red")
        page.locator("#filters-open").click()
        page.locator("#field").fill("date")
        page.locator("#value").fill("banana")
        page.locator("#value").press("Enter")
        expect(page.locator("#filter-any-error")).to_have_text(sentence)
        assert page.locator("#filter-any-error").bounding_box()["y"] > page.locator("#value").bounding_box()["y"]
        expect(page.locator("#value")).to_have_attribute("aria-invalid", "true")
        expect(page.locator("#value")).to_have_attribute("aria-describedby", "filter-any-error")
        seen.shows(before)  # the last answer stays
        page.locator("#value").fill("1990")
        page.locator("#value").press("Enter")
        expect(page.locator("#filter-any-error")).to_be_hidden()
        expect(page.locator("#chips button")).to_have_text(re.compile("date is 1990"))  # in place of the wrong filter
    with visit("/?q=red&filter=date%3Dbanana") as seen:  # shared: the forms are closed
        seen.expected = "status of 4(00|22)"
        expect(seen.page.locator("#filter-error")).to_have_text(sentence)


# ---- pictures as questions ----


def test_a_picture_finds_pictures_like_it(visit, site, tmp_path):
    with visit() as seen:
        page = seen.page
        for way, colour, mean in (
            ("button", "red", [240, 20, 10]),
            ("drop", "green", [10, 240, 20]),
            ("paste", "blue", [20, 10, 240]),
        ):
            picture = paint(tmp_path / f"{way}.png", tuple(mean))
            wanted = [hit.image_id for hit in site.collection.search_picture(picture, 60)]
            assert wanted[0].endswith(f"{colour}.png")
            if way == "button":
                with page.expect_file_chooser() as chooser:
                    page.locator("#by-picture").click()
                chooser.value.set_files(picture)
            else:
                page.evaluate(
                    """([way, bytes]) => {
                      const transfer = new DataTransfer();
                      transfer.items.add(new File([new Uint8Array(bytes)], `${way}.png`, {type: "image/png"}));
                      const common = {bubbles: true, cancelable: true};
                      document.body.dispatchEvent(way === "drop"
                        ? new DragEvent("drop", {...common, dataTransfer: transfer})
                        : new ClipboardEvent("paste", {...common, clipboardData: transfer}));
                    }""",
                    [way, list(picture.read_bytes())],
                )
            expect(page.locator("#like-name")).to_have_text(f"Like {way}.png")
            seen.shows(wanted)
        pixel = "canvas => [...canvas.getContext('2d').getImageData(32, 32, 1, 1).data]"
        assert page.locator("#like-picture").evaluate(pixel) == [*mean, 255]
        seen.search("red")
        expect(page.locator("#like")).to_be_hidden()
        page.go_back()
        expect(page.locator("#like-name")).to_have_text("Like paste.png")
        seen.shows(wanted)


def test_what_the_server_cannot_do_is_not_offered(visit):
    def without(route):
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"can_encode": False, "uploads": False})

    with visit(before=lambda page: page.route("**/about", without)) as seen:
        for hidden in ("#by-picture", "#add-open"):
            expect(seen.page.locator(hidden)).to_be_hidden()
        seen.page.locator("#filters-open").click()
        expect(seen.page.locator("#filter-any")).to_be_visible()
        expect(seen.page.locator("#filter-confidence")).to_be_hidden()


def test_pictures_are_added_with_a_token_that_stays_here(visit, site, tmp_path):
    new, no_picture = paint(tmp_path / "brand-new.png", (255, 0, 255)), tmp_path / "none.png"
    no_picture.write_bytes(b"no picture")
    try:
        with visit(fresh=True) as seen:
            seen.expected = "status of 40[13]"
            page = seen.page
            before = len(site.collection)
            page.locator("#add-open").click()
            page.locator("#token").fill("wrong")
            page.locator("#files").set_input_files([new, no_picture])
            page.locator("#add-send").click()
            expect(page.locator("#add-error")).to_contain_text("token")
            assert page.evaluate("sessionStorage.length") == 0
            page.locator("#token").fill(TOKEN)
            page.locator("#add-send").click()
            expect(page.locator("#add-state")).to_have_text("1 added, 0 updated, 1 skipped.")
            expect(page.locator("#add-skipped")).to_contain_text("none.png")
            expect(page.locator("#size")).to_have_text(f"{before + 1} pictures")
            assert titled(site.collection, "brand-new.png")
            sent = [
                request
                for request in seen.requests
                if request.method == "POST" and request.url == f"{site.base}/pictures"
            ]
            assert [request.headers["authorization"] for request in sent] == ["Bearer wrong", f"Bearer {TOKEN}"]
            assert not any(TOKEN in request.url for request in seen.requests)
            assert TOKEN not in page.url
            assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [
                [TOKEN], 0, "",
            ]  # fmt: skip
    finally:
        site.collection.remove(titled(site.collection, "brand-new.png"))


# ---- when it does not go well ----


def test_nothing_matches_well(visit, site):
    """A calibrated model is stood in for: its best answer to "red" is right with 4%, to anything else with 90%."""
    thresholds = []

    def calibrated(route):
        body = json.loads(route.request.post_data)
        thresholds.append(body["threshold"])
        answer = route.fetch(post_data=json.dumps(body | {"threshold": None}))
        content = answer.json()
        result = content["results"][0]
        for place, hit in enumerate(result["hits"]):
            hit["confidence"] = (0.04 if body["query"] == "red" else 0.9) / (1 + place)
        result["hits"] = [hit for hit in result["hits"] if hit["confidence"] >= (body["threshold"] or 0)]
        result["no_match"] = not result["hits"] or result["hits"][0]["confidence"] < 0.1
        route.fulfill(response=answer, json=content)

    def before(page):
        page.route("**/search", calibrated)
        page.route("**/about", lambda route: route.fulfill(json=route.fetch().json() | {"calibrated": True}))

    with visit(before=before) as seen:
        page = seen.page
        seen.search("red")
        expect(page.locator("#notice-title")).to_have_text("Nothing matches well")
        expect(page.locator("#state")).to_have_text(re.compile("Nothing matches well"))
        page.locator("#filters-open").click()
        slider = page.locator("#confidence")
        # the scale fits what is measured: the best of these hits has 4%
        stops = int(slider.get_attribute("max"))
        slider.fill("3")
        expect(page.locator("#confidence-note")).to_contain_text(re.compile(rf"Of the {len(site.collection)} .*: 2\.$"))
        seen.shows(site.hits("red")[:2])  # 4% and 2%
        expect(page.locator("#confidence-shown")).to_have_text("≥ 2.0%")
        seen.type("blue")
        seen.shows(site.hits("blue"))  # the last has 6%
        assert int(slider.get_attribute("max")) > stops
        slider.fill("8")
        expect(page.locator("#confidence-shown")).to_have_text("≥ 40%")
        expect(page).to_have_url(re.compile("sure=0.4"))
        seen.shows(site.hits("blue")[:2])  # 90% and 45%
        expect(page.locator("#notice")).to_be_hidden()
        seen.type("red")  # what was asked to be hidden is not shown
        expect(page.locator("#notice-title")).to_have_text("No picture with 40% confidence")
        expect(page.locator("#grid li")).to_have_count(0)
        page.locator("#notice-action").click()
        seen.shows(site.hits("red"))
        seen.search("blue")
        slider.fill("8")
        seen.shows(site.hits("blue")[:2])
        seen.open(1)
        expect(page.locator("#hit-confidence")).to_have_text("45%")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Remove filter: at least 40% confidence").click()
        seen.shows(site.hits("blue"))
        assert thresholds[:2] == [None, 0.02]
        assert thresholds[-1] is None


def test_a_busy_server_is_asked_again_when_it_said(visit, site):
    busy = {"left": 2}

    def refuse(route):
        if busy["left"]:
            busy["left"] -= 1
            route.fulfill(status=503, headers={"Retry-After": "7"}, json={"error": "64 queries wait. Ask again."})
        else:
            route.continue_()

    with visit(fresh=True) as seen:  # its clock stands still
        seen.expected = "status of 503"
        page = seen.page
        page.clock.install()
        page.route("**/search", refuse)
        seen.type("red")
        page.clock.run_for(200)
        expect(page.locator("#notice")).to_contain_text("The server is busy")
        expect(page.locator("#notice-text")).to_have_text("64 queries wait. Ask again. Trying again in 7 s.")
        page.clock.run_for(6000)
        assert busy["left"] == 1
        expect(page.locator("#notice-text")).to_contain_text("Trying again in 1 s.")
        with page.expect_request("**/search"):
            page.clock.run_for(1500)
        expect(page.locator("#notice-text")).to_contain_text("Trying again in 7 s.")
        assert busy["left"] == 0
        page.locator("#notice-action").click()  # nobody has to wait
        expect(page.locator("#notice")).to_be_hidden()
        seen.shows(site.hits("red"))
        page.clock.run_for(10_000)
        searches = [request for request in seen.requests if request.url.endswith("/search")]
        assert len(searches) == 3  # and no more after that


def test_a_server_that_is_gone_and_comes_back(visit, site):
    with visit() as seen:
        seen.expected = "ERR_FAILED"
        page = seen.page
        before = seen.search("red")
        page.route("**/search", lambda route: route.abort())
        seen.type("blue")
        expect(page.locator("#notice-title")).to_have_text("The server does not answer")
        expect(page.locator("#state")).to_have_text(re.compile("does not answer"))
        seen.shows(before)
        page.unroute("**/search")
        page.locator("#notice-action").click()
        expect(page.locator("#notice")).to_be_hidden()
        seen.shows(site.hits("blue"))


# ---- for everybody ----


def test_everything_with_the_keyboard(visit, site):
    with visit() as seen:
        page = seen.page
        page.locator("#query").blur()
        page.keyboard.press("?")
        expect(page.locator("#keys")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#keys")).to_be_hidden()
        page.keyboard.press("/")
        expect(page.locator("#query")).to_be_focused()
        page.keyboard.type("red")
        page.keyboard.press("Enter")
        tiles = page.locator("#grid a")
        expect(tiles.first).to_be_focused()
        ids = site.hits("red")
        seen.shows(ids)
        columns = page.locator("#grid li").evaluate_all("all => all.findIndex((item) => item.offsetTop > 0)")
        assert columns > 2
        for key, place in (
            ("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0), ("ArrowUp", 0),
            ("ArrowLeft", 0), ("End", len(ids) - 1), ("ArrowRight", len(ids) - 1), ("Home", 0), ("ArrowRight", 1),
        ):  # fmt: skip
            page.keyboard.press(key)
            expect(tiles.nth(place)).to_be_focused()
            assert page.locator("#grid a[tabindex='0']").count() == 1
        outline = tiles.nth(1).evaluate("tile => getComputedStyle(tile).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Enter")
        expect(page.locator("#viewer")).to_be_visible()
        expect(page.locator("#hit-id")).to_have_text(ids[1])
        page.keyboard.press("Escape")
        expect(page.locator("#viewer")).to_be_hidden()
        expect(tiles.nth(1)).to_be_focused()
        page.keyboard.press("/")
        expect(page.locator("#query")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_accessible_and_in_its_place(visit, site, size, scheme):
    axe = Axe()

    def check(page, part=None):
        violations = axe.run(page, context=part, options={"resultTypes": ["violations"]}).response["violations"]
        assert [
            (violation["id"], violation["nodes"])
            for violation in violations
            if violation["impact"] in ("serious", "critical")
        ] == []
        overflow = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) <= 0

    with visit("/?q=red+green&filter=shade%3C1000", size=size, scheme=scheme) as seen:
        page = seen.page
        seen.shows(site.hits("red green", "shade<1000"))
        page.locator("#filters-open").click()
        check(page)
        in_first_row = page.locator("#grid a").evaluate_all(
            "all => all.filter((tile) => tile.offsetParent.offsetTop === 0).length"
        )
        assert in_first_row == 3 if size == PHONE else in_first_row > 3
        seen.open(1)
        expect(page.locator(".levels")).to_be_visible()
        check(page, "#viewer")  # the rest is out of reach while it is open
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", paper)[:3])) / 3
        assert brightness < 40 if scheme == "dark" else brightness > 240


def test_fingers_find_every_button_on_a_phone(visit, site):
    with visit("/?q=red&filter=shade%3C1000", size=PHONE) as seen:
        page = seen.page
        seen.shows(site.hits("red", "shade<1000"))
        small = """() => [...document.querySelectorAll("button, input, select, a, summary")]
          .filter((element) => element.checkVisibility())
          .map((element) => [element.id || element.className, element.getBoundingClientRect()])
          .filter(([, box]) => box.width && (box.width < 43.9 || box.height < 43.9))
          .map(([name, box]) => `${name} ${box.width}×${box.height}`)"""
        page.locator("#filters-open").click()
        assert page.evaluate(small) == []
        seen.open(0)
        assert page.evaluate(small) == []
        page.locator("#similar").click()
        expect(page.locator("#like")).to_be_visible()
        assert page.evaluate(small) == []
        page.locator("#add-open").click()
        assert page.evaluate(small) == []
        page.keyboard.press("Escape")
        page.set_viewport_size({"width": 320, "height": 568})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        seen.open(0)
        close, title = page.locator("#viewer-close").bounding_box(), page.locator("#viewer-title").bounding_box()
        assert close["x"] + close["width"] <= 320
        assert title["y"] >= page.locator("#large").bounding_box()["height"]  # not under the picture


def test_the_server_trusts_nothing_but_itself(site):
    with urllib.request.urlopen(site.base) as response:
        header = response.headers["Content-Security-Policy"]
    policy = dict(part.strip().partition(" ")[::2] for part in header.split(";"))
    assert policy["default-src"] == "'self'"
    assert "unsafe" not in " ".join(policy.values())


# ---- without a browser ----


class Markup(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.scripts = [], [], ""
        self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.inside in ("script", "style"):
            self.scripts += data.strip()

    def handle_endtag(self, tag):
        self.inside = None


def test_the_page_needs_no_other_place_and_no_exception_from_the_policy():
    read = Markup((STATIC / "index.html").read_text(encoding="utf-8"))
    assert read.scripts == ""
    assert "style" not in [tag for tag, _ in read.tags]
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {value for _, attributes in read.tags for value in (attributes.get("for"), attributes.get("aria-controls"))}
    assert named - {None} <= set(ids)
    files = sorted(STATIC.iterdir())
    assert {"index.html", "app.js", "style.css", "icon.svg"} <= {path.name for path in files}
    forbidden = r"https?:|url\(|@import|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\("
    for path in files:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(forbidden, text), path.name
    for path in STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for imported in re.findall(r'from "([^"]+)"', text):
            assert (STATIC / imported).is_file(), (path.name, imported)
        for wanted in re.findall(r'byId\("([\w-]+)"\)', text):
            assert wanted in ids or wanted in {"hit-id"}, (path.name, wanted)
