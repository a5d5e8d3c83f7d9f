"""The page of a run in a real browser: draws, answers, reads without a mouse, asks nothing of a network.

Needs Chromium and its driver (Debian: chromium, chromium-driver) and the extra `browser`; skipped where they are missing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from autotune.documents.problem import Problem
from autotune.exporters.folders import launches_of
from autotune.placement.placing import place
from autotune.placement.skew import planned
from autotune.placement.synthetic import synthetic_loads
from autotune.report.page.comparing import render_comparison
from autotune.report.page.folder import page_of, with_sensitivity
from autotune.report.page.page import RunPage, ShownScript, render_page
from autotune.searching.pools import run_search
from autotune.searching.services.searching import search_services
from cost_models.catalog import load_model
from tests.integration.accessibility import serious_faults

pytest.importorskip("selenium.webdriver", reason="needs the extra `browser`")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
WIDTHS = (360, 768, 1280)


@pytest.fixture(scope="module")
def page() -> RunPage:
    problem = Problem(hardware="hgx-h200", gpus=8, trials=0)
    run = run_search(problem)
    return with_sensitivity(
        page_of(problem, run.result, run.candidates, ["autotune", "search", "--hw", "hgx-h200"], launches_of(run.result.plans))
    )


def opened(browser: Any, folder: Path, html: str, width: int = 1280, dark: bool = False) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    file = folder / "report.html"
    file.write_text(html, encoding="utf-8")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(file.as_uri())
    WebDriverWait(browser, 20).until(lambda b: b.execute_script("return document.documentElement.dataset.drawn"))


def pixels(browser: Any, selector: str) -> int:
    """Painted pixels of a canvas."""
    script = """
        const canvas = document.querySelector(arguments[0] + ' canvas');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let n = 0; for (let i = 3; i < data.length; i += 4) if (data[i]) n++; return n;"""
    return int(browser.execute_script(script, selector))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_chart_draws_at_every_width_without_an_error(
    browser: Any, tmp_path: Path, page: RunPage, width: int, dark: bool
) -> None:
    opened(browser, tmp_path, render_page(page), width, dark)
    charts = browser.execute_script("return [...document.querySelectorAll('[data-chart]')].map(e => e.dataset.chart)")
    assert {"candidates", "breakdown", "timeline", "layer", "memory", "sensitivity"} <= set(charts)
    for chart in charts:
        assert pixels(browser, f"[data-chart='{chart}']") > 500, chart
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_price_of_a_service_and_the_load_of_experts_draw(browser: Any, tmp_path: Path, page: RunPage) -> None:
    problem = Problem.model_validate(
        {"hardware": "hgx-h200", "target": "serve", "gpus": 16, "load": {"rate_per_s": 2}, "gpu_hour_usd": 3}
    )
    service = search_services(problem)
    loads, model = synthetic_loads(load_model("deepseek-v3"), 1.0), load_model("deepseek-v3")
    placed = page.result.best.model_copy(update={"placement": planned(place(loads, model, 16, 16, 8), loads)})
    with_map = dataclasses.replace(page, result=page.result.model_copy(update={"plans": (placed,)}))
    priced = page_of(problem, service, None, [], launches_of(service.plans))
    for width in WIDTHS:
        for shown, chart in ((priced, "cost"), (with_map, "experts")):
            opened(browser, tmp_path, render_page(shown), width)
            assert pixels(browser, f"[data-chart='{chart}']") > 500
            assert browser.get_log("browser") == []
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert serious_faults(browser) == []


def test_nothing_is_asked_of_a_network(browser: Any, tmp_path: Path, page: RunPage) -> None:
    opened(browser, tmp_path, render_page(page))
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert all(url.startswith(("file:", "data:")) for url in asked), asked


def test_choosing_a_candidate_by_keyboard_draws_its_breakdown(browser: Any, tmp_path: Path, page: RunPage) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, tmp_path, render_page(page))
    before = browser.find_element(By.ID, "picked-title").text
    select = browser.find_element(By.ID, "pick")
    select.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    after = browser.find_element(By.ID, "picked-title").text
    assert before
    assert after != before
    assert "tokens/s/GPU" in browser.find_element(By.ID, "picked-text").text


def test_clicking_a_point_shows_that_candidate(browser: Any, tmp_path: Path, page: RunPage) -> None:
    opened(browser, tmp_path, render_page(page))
    script = """
        const chart = echarts.getInstanceByDom(document.querySelector("[data-chart='candidates']"));
        const point = chart.getOption().series[1].data[3];
        return [point[2], ...chart.convertToPixel({seriesIndex: 1}, point.slice(0, 2))];"""
    candidate, x, y = browser.execute_script(script)
    click = """
        const canvas = document.querySelector("[data-chart='candidates'] canvas"), box = canvas.getBoundingClientRect();
        const at = {bubbles: true, clientX: box.x + arguments[0], clientY: box.y + arguments[1]};
        for (const kind of ['mousemove', 'mousedown', 'mouseup', 'click']) canvas.dispatchEvent(new MouseEvent(kind, at));
        return Number(document.getElementById('picked-chart').dataset.candidate);"""
    chosen = browser.execute_script(click, x, y)
    weighed = page.candidates
    assert weighed is not None
    same = (weighed.latency_s[chosen], weighed.tokens_per_s_per_gpu[chosen])
    assert same == pytest.approx((weighed.latency_s[candidate], weighed.tokens_per_s_per_gpu[candidate]), rel=0.05)


def test_names_with_markup_run_nothing(browser: Any, tmp_path: Path, page: RunPage) -> None:
    text = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    weighed = page.candidates
    assert weighed is not None
    named = weighed.model_copy(update={"layouts": (text, *weighed.layouts[1:]), "variant": (text,) * len(weighed)})
    hostile = dataclasses.replace(page, title=text, command=[text], scripts=[ShownScript(1, text, text)], candidates=named)
    for html in (render_page(hostile), render_comparison([hostile, hostile])):
        opened(browser, tmp_path, html)
        assert browser.title != "run"
        assert browser.execute_script("return document.images.length") == 0


def test_every_control_and_region_has_a_name_and_every_table_its_headers(browser: Any, tmp_path: Path, page: RunPage) -> None:
    opened(browser, tmp_path, render_page(page))
    nameless = browser.execute_script("""
        const named = e => e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length);
        return [...document.querySelectorAll('a, button, select, summary, [role=img], [role=region]')]
          .filter(e => !named(e)).map(e => e.outerHTML.slice(0, 80));""")
    assert nameless == []
    assert (
        browser.execute_script("return [...document.querySelectorAll('table')].filter(t => !t.querySelector('th[scope]')).length")
        == 0
    )
    levels = browser.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_axe_finds_nothing_serious(browser: Any, tmp_path: Path, page: RunPage) -> None:
    for dark in (False, True):
        for html in (render_page(page), render_comparison([page, page])):
            opened(browser, tmp_path, html, dark=dark)
            assert serious_faults(browser) == []
