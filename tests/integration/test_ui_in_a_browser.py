"""`autotune ui` in a real browser: form, live search, history, compare and export; two tabs; hostile text; no mouse.

Needs Chromium and its driver (Debian: chromium, chromium-driver) and the extras `browser` and `ui`; skipped where they are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.accessibility import serious_faults
from tests.integration.serving import Served, served, until

pytest.importorskip("selenium.webdriver", reason="needs the extra `browser`")
pytest.importorskip("starlette", reason="needs the extra `ui`")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MARKUP = "<img src=x onerror=document.title=1>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("runs")) as found:
        for gpus in (8, 16):
            job = found.ended(found.search({"hardware": "hgx-h200", "gpus": gpus, "trials": 0}))
            assert job["state"] == "done", job["message"]
        yield found


def opened(browser: Any, server: Served, width: int = 1280, dark: bool = False) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    mode = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", mode)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(server.link)
    WebDriverWait(browser, 20).until(lambda b: b.execute_script("return document.documentElement.dataset.ready"))


def field(browser: Any, path: str) -> Any:
    return browser.find_element("name", path)


def value(browser: Any, path: str) -> str:
    return str(browser.execute_script("return document.getElementsByName(arguments[0])[0]?.value", path))


def shown(browser: Any, selector: str) -> str:
    """Text of the first element, read in one step: rows are drawn anew while one looks."""
    return str(browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def text(browser: Any, name: str) -> str:
    return str(browser.find_element("id", name).text)


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_opens_at_every_width_without_an_error(browser: Any, server: Served, width: int, dark: bool) -> None:
    opened(browser, server, width, dark)
    browser.find_element("id", "all-fields").click()
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert len(browser.find_elements("css selector", "#runs > li")) >= 2


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, server: Served, dark: bool) -> None:
    opened(browser, server, dark=dark)
    browser.find_element("id", "all-fields").click()
    assert serious_faults(browser) == []
    browser.find_element("xpath", "//button[text()='Export']").click()
    assert serious_faults(browser) == []


def test_nothing_is_asked_of_another_machine(browser: Any, server: Served) -> None:
    opened(browser, server)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert len(asked) > 5
    assert all(url.startswith((server.link, "data:", "chrome:")) for url in asked), asked


def test_every_field_of_the_problem_is_on_the_page(browser: Any, server: Served) -> None:
    opened(browser, server)
    browser.find_element("id", "all-fields").click()
    for name, schema in server.json("form")["schema"]["properties"].items():
        inner = [f"root[{name}][{key}]" for key in schema["properties"]] if schema["type"] == "object" else [f"root[{name}]"]
        for path in inner:
            plain = browser.find_elements("name", path)
            lists = browser.find_elements("css selector", f"[data-schemapath='{path.replace('][', '.').replace('[', '.')[:-1]}']")
            assert plain or lists, path
            assert all(element.is_displayed() for element in plain), path


def test_a_search_by_keyboard_is_watched_and_listed(browser: Any, server: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, server)
    before = len(browser.find_elements("css selector", "#runs > li"))
    field(browser, "root[hardware]").send_keys("hgx-b200")
    field(browser, "root[gpus]").send_keys("8", Keys.ENTER)
    until(lambda: "Open the report" in text(browser, "jobs"))
    assert text(browser, "fault") == ""
    assert "best so far: DP8 EP8" in text(browser, "jobs")
    until(lambda: len(browser.find_elements("css selector", "#runs > li")) == before + 1)
    assert "hgx-b200, deepseek-v3, decode" in shown(browser, "#runs > li")
    assert browser.get_log("browser") == []


def test_a_run_fills_the_form_again(browser: Any, server: Served) -> None:
    opened(browser, server)
    row = next(r for r in browser.find_elements("css selector", "#runs > li") if "hgx-h200_deepseek-v3_decode_2" in r.text)
    row.find_element("xpath", ".//button[text()='Ask again']").click()
    until(lambda: value(browser, "root[hardware]") == "hgx-h200")
    assert value(browser, "root[gpus]") == "16"
    assert value(browser, "root[workload][isl_tokens]") == "2000"
    browser.find_element("id", "clear").click()
    assert value(browser, "root[gpus]") == ""


def test_two_runs_open_side_by_side_and_a_report_draws(browser: Any, server: Served) -> None:
    opened(browser, server)
    first = browser.current_window_handle
    for box in browser.find_elements("css selector", "#runs input")[:2]:
        box.click()
    browser.find_element("id", "compare").click()
    until(lambda: len(browser.window_handles) == 2)
    browser.switch_to.window(browser.window_handles[-1])
    until(lambda: browser.title == "Runs compared")
    assert len(browser.find_elements("css selector", "thead th")) >= 3
    report = f"{server.link}runs/{server.json('runs')['runs'][0]['run']}"
    browser.get(report)
    until(lambda: browser.execute_script("return Number(document.documentElement.dataset.drawn)") > 3)
    assert browser.get_log("browser") == []
    browser.close()
    browser.switch_to.window(first)


def test_an_archive_is_downloaded(browser: Any, server: Served, tmp_path: Path) -> None:
    opened(browser, server)
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.find_element("xpath", "//button[text()='Export']").click()
    browser.find_element("id", "download").click()
    until(lambda: any(path.suffix == ".zip" for path in tmp_path.iterdir()))
    browser.find_element("css selector", "#format option[value='dynamo']").click()
    browser.find_element("id", "rank").send_keys("99")
    browser.find_element("id", "download").click()
    until(lambda: "has plans 1.." in text(browser, "export-fault"))


def test_a_layout_is_asked_for_in_place(browser: Any, server: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, server)
    browser.find_element("xpath", "//li[contains(@data-run, 'hgx-h200_deepseek-v3_decode')]//button[text()='Why not']").click()
    browser.find_element("id", "why").send_keys("tp8", Keys.ENTER)
    until(lambda: "TP8" in text(browser, "why-answer"))
    assert serious_faults(browser) == []
    browser.find_element("id", "why").send_keys("<b>")
    browser.find_element("css selector", "#why-form .main").click()
    until(lambda: text(browser, "why-fault") != "")
    assert text(browser, "why-answer") == ""


def test_two_tabs_show_the_same_search_and_either_cancels_it(browser: Any, server: Served) -> None:
    opened(browser, server)
    first = browser.current_window_handle
    key = server.search({"hardware": "hgx-h200", "gpus": 8, "trials": 10_000})
    selector = f"[data-job='{key}']"
    until(lambda: "trial" in shown(browser, selector))
    browser.switch_to.new_window("tab")
    opened(browser, server)
    browser.execute_script(f'document.querySelector("{selector} button").click()')
    until(lambda: server.job(key)["state"] == "cancelled")
    browser.close()
    browser.switch_to.window(first)
    until(lambda: "nothing was written" in shown(browser, selector))


def test_hostile_text_is_shown_as_text(browser: Any, server: Served) -> None:
    opened(browser, server)
    for path in ("root[hardware]", "root[model]", "root[engine]"):
        field(browser, path).send_keys(MARKUP)
    browser.find_element("id", "go").click()
    until(lambda: MARKUP in text(browser, "jobs") + text(browser, "fault"))
    field(browser, "root[gpus]").send_keys(MARKUP)
    browser.find_element("id", "go").click()
    until(lambda: "gpus: " in text(browser, "fault"))
    assert browser.title == "autotune"
    assert browser.execute_script("return document.images.length") == 0
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert all("searches" in message and "400" in message for message in refused), refused  # no markup was ever loaded


def test_a_stopped_server_is_said(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path) as found:
        opened(browser, found)
        assert "No run folders yet" in browser.find_element("tag name", "main").text
    until(lambda: "it was stopped" in text(browser, "fault"))
