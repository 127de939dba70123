"""Does the page of `voken serve` scroll smoothly over a large collection?

    python benchmarks/page.py --pictures 50000

Draws small JPEGs in several proportions, makes a collection that lists each of them many times under ids of its own,
serves it, and scrolls through it in Chromium: slowly, fast, by jumps, and along the whole timeline. Reports the long
tasks (PerformanceObserver: tasks of the page's thread over 50 ms of wall time), the processor time of the page's thread
per frame (which other programs do not change), the times between frames, how many elements the page holds, and how
long it takes after a jump until all pictures on the screen are there.

The collection has random vectors, so nothing is searched. Chromium is taken from VOKEN_CHROMIUM or PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from playwright.sync_api import CDPSession, Page, sync_playwright

from voken import Collection
from voken.collection.store import Entry, FileFacts, Store
from voken.config import ReadOutWeights, SearchConfig, TokenizerConfig
from voken.errors import ConfigError
from voken.image_tokenizer.model import ImageTokenizer
from voken.model.calibration import Calibration
from voken.serve.app import create_app
from voken.serve.settings import ServeSettings

FILES = 400
SIZES = ((480, 320), (320, 480), (480, 270), (400, 400), (640, 240))
FIRST, LAST = 1_262_304_000, 1_730_000_000  # 2010 to 2024
MOST_SECONDS = 60
DIM, LEVELS, ENTRIES = 16, 3, 32
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")

OBSERVE = """() => {
  window.tasks = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.tasks.push([entry.startTime, entry.duration]);
  }).observe({ type: "longtask", buffered: true });
  window.frames = [];
  const frame = (now) => { window.frames.push(now); requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
}"""


class NoModel:
    """A model that only names itself: the page lists pictures, and nothing is searched."""

    search = SearchConfig(beams=4)
    weights = ReadOutWeights(0.0, 0.0)
    calibration: Calibration | None = None
    codebooks = None
    prior_captions: tuple[str, ...] = ()
    fingerprint = "0f"

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        self.tokenizer = tokenizer
        self.generator: Any = None

    def query_vectors(self, texts: Sequence[str], state: Any = None) -> np.ndarray:
        """It has no vectors of texts, so no queries are suggested."""
        raise ConfigError("This model has no texts.")


def make_collection(folder: Path, pictures: int) -> tuple[Path, NoModel]:
    """Draw the files, and list each many times."""
    random = np.random.default_rng(0)
    root = folder / "pictures"
    root.mkdir()
    for number in range(FILES):
        colours = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        drawn = colours.resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)
        drawn.save(root / f"{number:03}.jpg", quality=85)
    model = NoModel(ImageTokenizer(DIM, TokenizerConfig(codebook_size=ENTRIES, levels=LEVELS, layers=(), code_dim=DIM)))
    store = Store.create(folder / "c", root=root, fingerprint=model.fingerprint, tokenizer=model.tokenizer, vectors=DIM)
    dates = np.sort(random.integers(FIRST, LAST, pictures))[::-1]
    vectors = random.normal(size=(pictures, DIM)).astype(np.float16)
    vokens = random.integers(0, ENTRIES, (pictures, LEVELS)).astype(np.int32)
    entries = []
    for number in range(pictures):
        path = f"{number % FILES:03}.jpg"
        # each stands for a file of its own, whose proportions must be read
        facts = FileFacts(1, 0, int(dates[number]), number.to_bytes(16, "little"))
        name = f"{number % 40:02}/{number:06}.jpg"
        entries.append(Entry(name, path, vokens[number], vectors[number], facts, ""))
    store.commit(entries)
    store.compact()
    return folder / "c", model


# scrolls by so many pixels before each frame
SCROLL = """async ([frames, pixels]) => {
  for (let frame = 0; frame < frames; frame += 1) {
    await new Promise((next) => requestAnimationFrame(next));
    scrollBy(0, pixels);
  }
}"""
# moves through the whole collection, as the timeline does when it is dragged
SWEEP = """async (frames) => {
  for (let frame = 0; frame <= frames; frame += 1) {
    await new Promise((next) => requestAnimationFrame(next));
    scrollTo(0, frame / frames * document.body.scrollHeight);
  }
}"""


def measure(page: Page, session: CDPSession, name: str, act: Callable[[], Any]) -> dict[str, Any]:
    """Do something, and report what the page's thread did meanwhile: wall time, and its own time on the processor."""
    page.evaluate("window.tasks.length = 0, window.frames.length = 0")
    before = _thread_seconds(session)
    browser = page.context.browser
    assert browser is not None
    browser.start_tracing(page=page, categories=["toplevel", "__metadata"])
    act()
    page.wait_for_timeout(500)
    on_processor = _task_milliseconds(browser.stop_tracing())
    tasks, frames, elements = page.evaluate("[window.tasks, window.frames, document.querySelectorAll('*').length]")
    used = _thread_seconds(session) - before
    long = [duration for _, duration in tasks]
    gaps = np.diff(frames) if len(frames) > 2 else np.zeros(1)
    return {
        "what": name,
        "frames": len(frames),
        "processor ms per frame": round(1000 * used / max(1, len(frames)), 1),
        "long tasks": len(long),
        "longest ms": round(max(long, default=0)),
        "over 50 ms of processor": sum(task > 50 for task in on_processor),
        "longest ms of processor": round(max(on_processor, default=0)),
        "frame p50 ms": round(float(np.quantile(gaps, 0.5)), 1),
        "frame p95 ms": round(float(np.quantile(gaps, 0.95)), 1),
        "frame max ms": round(float(gaps.max())),
        "elements": elements,
    }


def _task_milliseconds(trace: bytes) -> list[float]:
    """The processor time of each task of the pages' main threads, from a trace."""
    events = json.loads(trace)["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"].get("name") == "CrRendererMain"
    }
    return [event["tdur"] / 1000 for event in events if "tdur" in event and (event["pid"], event["tid"]) in threads]


def _thread_seconds(session: CDPSession) -> float:
    """Processor time of the page's thread, which other programs do not change."""
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return float(metrics["TaskDuration"])


def until_pictures(page: Page) -> float:
    """Seconds until all pictures on the screen are loaded."""
    start = time.perf_counter()
    loaded = """() => {
          const tiles = [...document.querySelectorAll("#grid li")].filter((item) => {
            const box = item.getBoundingClientRect();
            return box.bottom > 100 && box.top < innerHeight;
          });
          return tiles.length > 5 && tiles.every((item) => item.classList.contains("loaded"));
        }"""
    while not page.evaluate(loaded):  # the page's policy forbids wait_for_function, which evaluates a text
        if time.perf_counter() - start > MOST_SECONDS:
            raise SystemExit("The pictures on the screen were not loaded within a minute.")
        page.wait_for_timeout(50)
    return time.perf_counter() - start


def drive(page: Page, address: str) -> dict[str, Any]:
    """Scroll in several ways."""
    page.goto(address)
    first = until_pictures(page)
    page.evaluate(OBSERVE)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    waits = []

    def jump() -> None:
        for share in (0.3, 0.9):
            page.evaluate("(share) => scrollTo(0, share * document.body.scrollHeight)", share)
            waits.append(until_pictures(page))

    ways: dict[str, Callable[[], Any]] = {
        "60 px per frame": lambda: page.evaluate(SCROLL, [150, 60]),
        "400 px per frame": lambda: page.evaluate(SCROLL, [100, 400]),
        "jumps": jump,
        "the whole timeline": lambda: page.evaluate(SWEEP, 100),
    }
    rows = [measure(page, session, name, act) for name, act in ways.items()]
    return {"first pictures s": round(first, 1), "after a jump s": [round(wait, 1) for wait in waits], "rows": rows}


def main() -> None:
    """Make, serve, scroll, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=50_000)
    options = parser.parse_args()
    chromium = os.environ.get("VOKEN_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("There is no Chromium. Install it, or name it in VOKEN_CHROMIUM.")
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        folder, model = make_collection(Path(temporary), options.pictures)
        made = time.perf_counter() - start
        with Collection.open(folder, model=model) as collection:
            start = time.perf_counter()
            _ = collection.gallery().months
            listed = time.perf_counter() - start
            server_socket = socket.create_server(("127.0.0.1", 0))
            app = create_app(collection, ServeSettings(thumbnail_folder=Path(temporary) / "thumbnails"))
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [server_socket]})
            thread.start()
            try:
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
                    page = browser.new_page(viewport={"width": 1280, "height": 800})
                    report = drive(page, f"http://127.0.0.1:{server_socket.getsockname()[1]}/")
                    browser.close()
            finally:
                server.should_exit = True
                thread.join(20)
    print(
        json.dumps(
            {"pictures": options.pictures, "made s": round(made, 1), "order s": round(listed, 3), **report}, indent=1
        )
    )


if __name__ == "__main__":
    main()
