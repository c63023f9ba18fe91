"""The report's page in a real browser: nothing is requested, filters work, all can be seen and read aloud."""

import importlib.util
import json
import os
import shutil
import time

import pytest
from made_up_study import all_cells, make_config, write_study
from test_items import NASTY

from jaxift.artifacts import RunDirectory
from jaxift.stages.analyze import analyze
from jaxift.stages.report import report

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
MISSING = [
    name
    for name, there in (
        ("chromium", BROWSER), ("chromedriver", DRIVER), ("selenium", importlib.util.find_spec("selenium")),
        ("axe-core-python", importlib.util.find_spec("axe_core_python")),
    )
    if not there
]  # fmt: skip
WANTED = os.environ.get("JAXIFT_BROWSER") == "1"
pytestmark = pytest.mark.skipif(
    bool(MISSING) and not WANTED,
    reason=f"{', '.join(MISSING)} not installed (jaxift[browser], Debian's chromium-driver)",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A run with all experiments, in which the first questions hold whatever a question can hold."""
    arms = ("HAR", "INC", "SELF", "INC+context", "SELF@0.25", "SELF@0.75")
    config = make_config(build={"arms": arms})
    run = RunDirectory.create(str(tmp_path_factory.mktemp("run")))
    write_study(run, config, all_cells(config))
    rows = run.read_rows("probe/medicine/homo.parquet")
    for row, text in zip(rows, NASTY, strict=False):
        row["question"], row["options"] = text, [f"{text} {number}" for number in range(len(row["options"]))]
    run.write_rows("probe/medicine/homo.parquet", rows)
    analyze(config, run, all_cells(config))
    report(config, run, all_cells(config))
    return run


@pytest.fixture(scope="module")
def chrome():
    assert not MISSING, MISSING
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def opened(chrome, study, width=1280, scheme="light"):
    """The page, at a width and in a colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    for kind in ("browser", "performance"):
        chrome.get_log(kind)
    chrome.get(f"file://{study.root / 'report.html'}")
    return chrome


def choose(chrome, **values):
    """Sets the filters, as a reader would."""
    for name, value in values.items():
        script = (
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(e.tagName === 'INPUT' ? 'input' : 'change'))"
        )
        chrome.execute_script(script, name, value)
    time.sleep(0.3)  # typing is waited for


def count(chrome):
    return int(chrome.execute_script("return document.getElementById('count').textContent").split()[0].replace(",", ""))


def test_nothing_is_requested_and_nothing_goes_wrong(chrome, study):
    opened(chrome, study)
    assert chrome.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith(("file://", "data:")) for url in asked)
    assert sum(url.startswith("file://") for url in asked) == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_tables_and_figures_are_visible(width, chrome, study):
    opened(chrome, study, width)
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
    shown = chrome.execute_script(
        "return [...document.querySelectorAll('figure svg, section > .scroll')].map(e => e.getBoundingClientRect())"
        ".map(r => [r.left, r.right, r.height])"
    )
    assert len(shown) >= 6 * 3 + 8
    assert all(left >= 0 and right <= width and height > 60 for left, right, height in shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_accessibility_checks_find_nothing_serious(width, scheme, chrome, study):
    from axe_core_python.selenium import Axe

    opened(chrome, study, width, scheme)
    found = Axe().run(chrome)["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"][:3]]) for each in serious] == []


def test_filters_find_what_the_files_say(chrome, study):
    opened(chrome, study)
    base = {row["id"]: row for row in study.read_rows("probe/history/id.parquet")}
    tuned = {row["id"]: row for row in study.read_rows("cells/history-INC-s1/scores/id.parquet")}
    pairs = [(base[name], tuned[name]) for name in base]
    choose(chrome, domain="history", set="id", arm="INC", seed="1")
    assert count(chrome) == len(pairs)
    expected = {
        "lost": sum(a["correct"] and not b["correct"] for a, b in pairs),
        "gained": sum(b["correct"] and not a["correct"] for a, b in pairs),
        "changed": sum(a["pred"] != b["pred"] for a, b in pairs),
        "kept": sum(a["pred"] == b["pred"] for a, b in pairs),
    }
    for flip, number in expected.items():
        choose(chrome, flip=flip)
        assert count(chrome) == number, flip
    choose(chrome, flip="lost", knows="right, sure")
    assert count(chrome) == sum(a["correct"] and not b["correct"] and a["pred_prob"] > 0.5 for a, b in pairs)
    choose(chrome, flip="", knows="", words="history-id-69")
    assert count(chrome) == 1


def test_pages_turn_by_keyboard(chrome, study):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(chrome, study)
    titles = "return [...document.querySelectorAll('#questions h3')].map(e => e.textContent)"
    first = chrome.execute_script(titles)
    assert len(first) == 10
    chrome.find_element(By.ID, "next").send_keys(Keys.ENTER)
    second = chrome.execute_script(titles)
    assert not set(first) & set(second)
    assert chrome.execute_script("return document.activeElement.id") == "count"
    chrome.find_element(By.ID, "back").send_keys(Keys.SPACE)
    assert chrome.execute_script(titles) == first


def test_whatever_a_question_holds_is_shown_as_text(chrome, study):
    opened(chrome, study)
    choose(chrome, domain="medicine", set="homo")
    titles = chrome.execute_script("return [...document.querySelectorAll('#questions h3')].map(e => e.textContent)")
    assert titles[: len(NASTY)] == list(NASTY)
    inside = "return document.querySelectorAll('#questions script, #questions img, h1 script').length"
    assert chrome.execute_script(inside) == 0
    assert "<script>alert(1)</script>" in chrome.execute_script("return document.querySelector('.facts').textContent")
    way = "return getComputedStyle(document.querySelectorAll('#questions h3')[2]).direction"
    assert chrome.execute_script(way) == "rtl"


def test_without_scripts_all_but_the_questions_is_there(chrome, study):
    chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(chrome, study)
        from selenium.webdriver.common.by import By

        assert len(chrome.find_elements(By.CSS_SELECTOR, "figure svg")) == 18
        assert not chrome.find_element(By.ID, "browser").is_displayed()
    finally:
        chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_it_prints_to_paper(chrome, study):
    opened(chrome, study)
    printed = chrome.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert len(printed) > 20_000
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = "return getComputedStyle(document.getElementById('ask')).display"
    assert chrome.execute_script(hidden) == "none"
    folded = "return [...document.querySelectorAll('details table')].every(e => e.checkVisibility())"
    assert chrome.execute_script(folded)
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
