"""The pages in a real browser: they are readable, by everybody, without JavaScript."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import requests
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import visibility_of_element_located
from selenium.webdriver.support.ui import WebDriverWait

from bot.serve.app import create_app
from tests.serving import serving
from tests.web import BASE, PATCH, Furnished, furnish, key

MISSING = not (shutil.which("chromium") and shutil.which("chromedriver"))
pytestmark = pytest.mark.skipif(
    MISSING, reason="no browser here: on Debian, apt install chromium chromium-driver"
)
PAGES = {
    "home": "/",
    "search": "/?q=lora&state=published&verdict=publish",
    "patch": f"/patch/{PATCH}",
    "base": f"/base/{BASE}",
    "bases": "/bases",
    "ports": "/ports?state=published",
    "port": f"/port/{key(1)}",
    "status": "/status",
    "api": "/api",
    "missing": "/nowhere",
}
LOOK = """
const shown = e => e.getClientRects().length > 0;
const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = e => {
  for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
const faint = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !shown(e)) continue;
  const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(e.outerHTML.slice(0, 120));
}
const all = s => [...document.querySelectorAll(s)];
return {
  faint,
  ground: getComputedStyle(document.body).backgroundColor,
  lang: document.documentElement.lang,
  landmarks: all('header, nav[aria-label], main, footer').map(e => e.tagName),
  headings: all('h1, h2, h3, h4, h5, h6').map(e => Number(e.tagName[1])),
  ids: all('[id]').map(e => e.id),
  unlabelled: all('input, select').filter(e => !e.labels.length).map(e => e.outerHTML),
  nameless: all('a, button').filter(e => !e.textContent.trim()).map(e => e.outerHTML),
  images: all('img').map(e => [e.alt, e.naturalWidth]),
  captions: all('table').map(e => e.caption && e.caption.textContent.trim()),
  scopes: all('th').map(e => e.scope),
  coloured: all('.state').map(e => e.textContent.trim().split(/\\s+/).length),
  scripts: all('script, [style], [onclick]').length,
  foreign: all('[src], link[href]').map(e => e.src || e.href)
    .filter(u => !u.startsWith(location.origin) && !u.startsWith('data:')),
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  title: document.title,
};
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = Furnished(tmp_path_factory.mktemp("web"))
    furnish(place)
    with serving(create_app(place.context, None)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, service) as opened:
        yield opened


def dress(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def look(browser: webdriver.Chrome) -> dict[str, Any]:
    found: dict[str, Any] = browser.execute_script(LOOK)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_everybody_can_read_it(browser: webdriver.Chrome, site: str, name: str) -> None:
    browser.get(site + PAGES[name])
    grounds = {}
    for width, scheme in ((1200, "light"), (1200, "dark"), (360, "light")):
        dress(browser, width, scheme)
        found = look(browser)
        grounds[scheme] = found["ground"]
        assert found["faint"] == [] and found["wide"] <= 0
    assert grounds["light"] != grounds["dark"]
    assert found["lang"] == "en" and found["title"].endswith("· PortLLM")
    assert found["landmarks"] == ["HEADER", "NAV", "MAIN", "FOOTER"]
    levels = found["headings"]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(set(found["ids"])) == len(found["ids"])
    assert found["unlabelled"] == found["nameless"] == found["foreign"] == []
    assert all(alt and width for alt, width in found["images"])
    assert all(found["captions"]) and all(found["scopes"])
    assert all(words > 1 for words in found["coloured"])  # a sign and a word
    assert found["scripts"] == 0
    said = [line for line in browser.get_log("browser") if "/nowhere" not in line["message"]]
    assert said == []  # nothing was blocked by our own policy, and nothing is missing


def test_a_chart_and_a_card_are_seen(browser: webdriver.Chrome, site: str) -> None:
    browser.get(site + PAGES["patch"])
    images = look(browser)["images"]
    assert images and images[0][1] > 400
    text = browser.find_element(By.TAG_NAME, "main").text
    assert "portllm subscribe me/tickets-lora" in text and "84.0" in text
    assert 'revision="9000' in text


def test_it_is_found_by_keyboard_and_without_scripts(browser: webdriver.Chrome, site: str) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    dress(browser, 1200, "light")
    browser.get(site)
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text == "Skip to the content" and skip.rect["x"] >= 0
    for query, link, title in (("tickets", PATCH, PATCH), (None, f"{BASE}@main", BASE)):
        if query:
            field = browser.find_element(By.ID, "q")
            field.send_keys(query, Keys.ENTER)
            WebDriverWait(browser, 20).until(lambda b: "q=tickets" in b.current_url)
        target: WebElement = browser.find_element(By.PARTIAL_LINK_TEXT, link)
        address = target.get_attribute("href")
        target.click()
        WebDriverWait(browser, 20).until(lambda b, to=address: b.current_url == to)
        heading = (By.XPATH, f"//h1[contains(., '{title}')]")
        assert WebDriverWait(browser, 20).until(visibility_of_element_located(heading))
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_policy_lets_no_script_run(site: str) -> None:
    policy = requests.get(site).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in json.dumps(policy)
