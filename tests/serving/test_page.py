"""The page in headless Chromium: every task, with the keyboard, in both color schemes, on a small screen.

Needs a Chromium on the path and the Python package playwright. Screenshots are kept in the test's directory, or in the
directory that SERVE_SCREENSHOTS names.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.serving.served import options, running

pytestmark = pytest.mark.system

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# For each model and task: what is typed, and what the answer must show.
TASKS = {
    "classifier/predict": ({"text": "ban kost"}, [r"pos\s*\d+\.\d %", r"neg\s*\d+\.\d %", r"other\s*\d+\.\d %"]),
    "ranker/rerank": (
        {"query": "ban", "documents": "kost mur\nban ban"},
        [r"kost mur\s*0\.\d{3}", r"ban ban\s*0\.\d{3}"],
    ),
    "nli/zero-shot": ({"text": "ban", "labels": "mur, kost"}, [r"mur\s*\d+\.\d %", r"kost\s*\d+\.\d %"]),
    "tagger/ner": ({"text": "ban 🎈 kost"}, [r"PER"]),
    "reader/qa": ({"question": "ban", "context": "kost mur ban"}, [r"\d+\.\d %"]),
    "masked/fill-mask": ({"text": "ban [MASK] kost [MASK]"}, [r"\[MASK\] 1", r"\[MASK\] 2", r"\d+\.\d %"]),
    "encoder/embed": ({"text": "ban kost\nban mur"}, [r"ban mur\s*-?[01]\.\d{3}"]),
    "encoder/tokenize": ({"text": "ban"}, [r"\[CLS\]", r"\[SEP\]"]),
}


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    if BROWSER is None:
        pytest.skip("there is no chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(served):
    return f"http://127.0.0.1:{served[0].port}/"


@pytest.fixture
def screenshots(tmp_path) -> Path:
    folder = Path(os.environ.get("SERVE_SCREENSHOTS", tmp_path))
    folder.mkdir(exist_ok=True)
    return folder


def opened(browser, address, **settings):
    """The page, which fails its test with an error of a script, or a request to another host."""
    page = browser.new_page(**settings)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if request.url.startswith(address) else problems.append(request.url))
    page.goto(address)
    page.wait_for_selector("#fields [name]", timeout=10_000)
    return page, problems


def choose(page, path):
    model, task = path.split("/")
    page.select_option("#model", label=model)
    page.select_option("#task", value=task)


@pytest.mark.parametrize("path", TASKS)
def test_every_task_shows_its_answer(chromium, address, screenshots, path):
    typed, shown = TASKS[path]
    page, problems = opened(chromium, address, viewport={"width": 760, "height": 700})
    choose(page, path)
    for name, text in typed.items():
        page.fill(f"#fields [name={name}]", text)
    page.click("#send")
    page.locator("#status", has_text=" ms").wait_for(timeout=20_000)
    result = page.inner_text("#result")
    for pattern in shown:
        assert re.search(pattern, result), result
    assert re.search(r"\d+ ms, of which the model \d+\.\d ms; \d+ tokens", page.inner_text("#status"))
    page.screenshot(path=screenshots / f"{path.replace('/', '-')}.png")
    assert problems == []
    page.close()


def test_the_keyboard_is_enough(chromium, address):
    page, problems = opened(chromium, address)
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert reached == ["model", "task", "text", "pair"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("ban kost")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#result .bar")
    assert problems == []
    page.close()


def test_a_small_dark_screen(chromium, address, screenshots):
    page, _ = opened(chromium, address, viewport={"width": 400, "height": 700}, color_scheme="dark")
    choose(page, "classifier/predict")
    for text, shown in (("x" * 200, "#result .error"), ("ban kost", "#result .bar")):
        page.fill("#fields [name=text]", text)
        page.click("#send")
        page.wait_for_selector(shown)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, "nothing is wider than the screen"
    background = page.evaluate("getComputedStyle(document.querySelector('textarea')).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background)[:3])) < 100, background
    page.screenshot(path=screenshots / "dark-400.png")
    page.close()


def test_errors_and_hostile_texts_are_shown_as_text(chromium, address):
    page, _ = opened(chromium, address)
    choose(page, "masked/fill-mask")
    page.fill("#fields [name=text]", "<b>x</b>")
    page.click("#send")
    page.wait_for_selector("#result .error")
    assert "has no [MASK]" in page.inner_text("#result")
    assert page.query_selector("#result b") is None
    page.close()


def test_the_page_asks_for_a_token(chromium, models, monkeypatch):
    monkeypatch.setenv("DEBERTA_JAX_SERVE_TOKEN", "secret")
    with running(options(models["classifier"]), "secret") as (_, server):
        page = chromium.new_page()
        page.goto(server.address)
        page.wait_for_selector("#token", timeout=10_000)
        page.fill("#token", "secret")
        page.keyboard.press("Tab")
        page.wait_for_selector("#fields [name=text]")
        page.fill("#fields [name=text]", "ban")
        page.click("#send")
        page.wait_for_selector("#result .bar")
        page.close()
