"""The report's page in a real browser: what is drawn, how it is used, and that the console has nothing to say."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from experiments import WORDS, add_decoding, make_experiment, prepared_set
from headless import Browser, find

from asrkit.analysis.report import ReportConfig, report, write_report
from asrkit.files import write_text

SECOND = "second_" + "wav2vec_s_finetune_" * 4
"""As long as names of experiments become, without a place to break."""
UTTERANCES = 3_000
HOSTILE = "</script><img/src=x/onerror=alert(1)>"
CHOOSE = "(() => {{ const e = {}; e.value = '{}'; e.dispatchEvent(new Event('{}', {{bubbles: true}})); }})()"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find()
    if executable is None:
        pytest.skip("no Chromium or Chrome in PATH (Debian: apt-get install chromium)")
    try:
        started = Browser(executable, tmp_path_factory.mktemp("profile"))
    except (OSError, RuntimeError, TimeoutError) as error:
        pytest.skip(f"{executable} does not start: {error}")
    with started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments, one set of 3,000 utterances, of which a few have audio."""
    folder = tmp_path_factory.mktemp("report")
    generator = random.Random(1)
    references, hypotheses = {}, {}
    for number in range(UTTERANCES):
        words = generator.choices(WORDS, k=12)
        heard = list(words)
        if number % 2:
            heard[number % 12] = HOSTILE
        if number in (11, 13):
            del heard[:3]
        references[f"{number % 40}-1-{number}"], hypotheses[f"{number % 40}-1-{number}"] = (
            " ".join(words),
            " ".join(heard),
        )
    few = {f"{n % 40}-1-{n}": references[f"{n % 40}-1-{n}"] for n in (11, 13)}
    prepared_set(folder / "data" / "test", few)
    first = make_experiment(folder / "first", folder / "data")
    second = make_experiment(folder / SECOND, folder / "data", seed=2)
    add_decoding(first, "test", references, hypotheses)
    add_decoding(second, "test", references, references | {"0-1-0": "X"}, seed=2)
    for experiment, values in ((first, [1, 0.5]), (second, [0.9, 0.7])):
        pair = {"name": experiment.name, "layers": [0, 1], "pwcca": values}
        write_text(experiment / "similarity.json", json.dumps({"pairs": [pair]}))
    write_report([first, second], folder / "report.html", ReportConfig(device="cpu"))
    return folder / "report.html"


@pytest.fixture
def opened(browser: Browser, page: Path) -> Iterator[Browser]:
    browser.resize(1400, 1000)
    browser.prefer("light")
    browser("sessionStorage.clear()") if browser("location.protocol") == "file:" else None
    browser.console.clear()
    browser.requests.clear()
    browser.open(page.as_uri())
    yield browser
    assert browser.console == []
    assert {url for url in browser.requests if not url.startswith("data:")} == {page.as_uri()}


def count(browser: Browser, selector: str) -> int:
    return int(browser(f"document.querySelectorAll({selector!r}).length"))


def test_curves_tables_audio_and_pictures_are_there(opened: Browser) -> None:
    assert count(opened, "#curves .chart[data-figure]") == 4
    for figure, lines in (("ctc", 4), ("wer", 2), ("learning_rate", 2)):
        drawn = f"[...document.querySelectorAll('[data-figure={figure}] .curve:not(.keys *)')]"
        assert opened(f"{drawn}.filter(path => path.getAttribute('d').length > 20).length") == lines
    assert count(opened, "#results .dots .dot") == 2
    assert count(opened, "#results .dots .range") == 2
    rows = "[...document.querySelectorAll('#results table')].map(table => table.tBodies[0].rows.length)"
    assert opened(rows) == [2, 1], "each result, and their mean over two seeds"
    assert opened("document.querySelector('#errors tbody').textContent").startswith("substitutions")
    assert count(opened, "#similarity figure") == 1, "pairs of the same layers share a chart"
    drawn = "[...document.querySelectorAll('#similarity g .curve')].map(path => path.getAttribute('d').length > 10)"
    opened.until(f"{drawn}.join() === 'true,true'")
    assert count(opened, "#similarity g .mark") == 4
    assert opened("document.querySelector('#similarity tbody').textContent") == f"first1.0000.500{SECOND}0.9000.700"
    assert count(opened, "#utterance-rows .detail audio") == 1
    assert count(opened, "#utterance-rows .detail svg.posterior path") > 5
    assert opened("document.querySelector('.detail img').decode().then(() => true)")
    opened.until("document.querySelector('audio').readyState >= 1")
    assert opened("Math.abs(document.querySelector('audio').duration - 0.7) < 0.15")
    assert opened("document.querySelector('audio').play().then(() => true)")
    words = "[...document.querySelectorAll('.detail .aligned .w.d .ref')].map(node => node.textContent)"
    assert len(opened(words)) == 3


@pytest.mark.slow
def test_opens_in_under_two_seconds(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    assert 0 < browser.thread_seconds() < 2


def test_renders_lazily_and_finds(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    assert count(browser, "#utterance-rows > tr:not(.detail)") <= 120
    assert "1,501 of 3,000" not in browser("document.getElementById('utterance-count').textContent")
    search = "document.querySelector('#utterances input[type=search]')"
    browser("document.querySelector('#utterances input[type=checkbox]').click()")
    assert browser("document.getElementById('utterance-count').textContent").startswith("3,000 of 3,000")
    browser(CHOOSE.format(search, "19-1-2979", "input"))
    assert browser("document.getElementById('utterance-count').textContent").startswith("1 of 3,000")
    browser(CHOOSE.format(search, "", "input"))
    browser("document.querySelector('[data-column=id] button').click()")
    assert browser("document.querySelector('[data-column=id]').getAttribute('aria-sort')") == "ascending"
    assert browser("document.querySelector('#utterance-rows .open').textContent").startswith("0-1-0")
    browser("document.getElementById('more').scrollIntoView()")
    browser.until("document.querySelectorAll('#utterance-rows > tr').length > 60")


def test_hostile_text_is_shown_as_text(opened: Browser) -> None:
    assert count(opened, "img[src=x]") == 0
    assert opened("document.getElementById('errors').textContent.includes('onerror=alert(1)')")


def test_zoom_by_mouse_and_keys(opened: Browser) -> None:
    opened("document.querySelector('[data-figure=ctc]').scrollIntoView({block: 'center'})")
    left, top, width, height = opened(
        "(() => { const r = document.querySelector('[data-figure=ctc] > svg').getBoundingClientRect();"
        " return [r.left, r.top, r.width, r.height]; })()"
    )
    path = "document.querySelector('[data-figure=wer] .curve').getAttribute('d')"
    before = opened(path)
    opened.drag((left + width * 0.4, top + height / 2), (left + width * 0.8, top + height / 2))
    assert opened(path) != before
    assert opened("document.querySelector('[data-figure=ctc] .tip').hidden") is False
    opened("document.querySelector('[data-figure=ctc] > svg').focus()")
    opened.press("0")
    assert opened(path) == before
    opened.press("ArrowRight")
    assert "step" in opened("document.getElementById('announce').textContent")
    opened.press("+")
    assert opened(path) != before
    opened.press("Escape")
    assert opened(path) == before
    opened("document.querySelector('.legend button').click()")
    assert count(opened, "[data-figure=wer] .curve:not(.keys *)") == 1


def test_the_keyboard_reaches_everything_and_focus_is_seen(opened: Browser) -> None:
    seen = []
    for _ in range(12):
        opened.press("Tab")
        seen.append(opened("document.activeElement.id || document.activeElement.getAttribute('href')"))
        assert opened("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert seen[:2] == ["#results", "#utterances"]
    assert "theme" in seen
    assert count(opened, "button:not([type=button])") == 0
    unnamed = (
        "[...document.querySelectorAll('button, select, input, audio, [role=img], [role=region], nav')].filter(node =>"
    )
    unnamed += " !node.labels?.length && !node.getAttribute('aria-label') && !node.textContent.trim()).length"
    assert opened(unnamed) == 0
    tables = "[...document.querySelectorAll('table')]"
    assert opened(f"{tables}.every(t => t.querySelector('caption') && t.querySelector('th[scope=col]'))")


CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = text => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
  const behind = node => { for (; node; node = node.parentElement) { const c = rgba(getComputedStyle(node).backgroundColor);
    if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const poor = [];
  for (const node of document.querySelectorAll('body *')) {
    if (!node.checkVisibility() || node.closest('svg, .hidden, .skip, :disabled, audio')) continue;
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push(`${node.tagName}.${node.className} ${ratio.toFixed(2)} ${node.textContent.slice(0, 20)}`);
  }
  return [...new Set(poor)];
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(opened: Browser, scheme: str) -> None:
    opened.prefer(scheme)
    paper = opened("getComputedStyle(document.body).backgroundColor")
    assert opened(CONTRAST) == []
    opened("document.getElementById('theme').click()")
    assert opened("getComputedStyle(document.body).backgroundColor") != paper
    assert opened(CONTRAST) == []


@pytest.mark.parametrize("width", [320, 390, 800, 1400])
def test_nothing_is_wider_than_the_window(opened: Browser, page: Path, width: int) -> None:
    opened.resize(width, 844)
    opened.open(page.as_uri())
    assert opened("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_a_watched_page_follows_its_file_unless_paused(browser: Browser, page: Path, tmp_path: Path) -> None:
    folders = [page.parent / "first"]
    output = tmp_path / "live.html"
    config = ReportConfig(title="before", utterances=0)
    write_text(output, report(folders, config, refresh=0.2))
    browser.open(output.as_uri())
    write_text(output, report(folders, ReportConfig(title="after", utterances=0), refresh=0.2))
    # Found and clicked in one go: the page may load itself again between two questions.
    browser.until(
        "document.readyState === 'complete' && document.querySelector('h1')?.textContent === 'after'"
        " && document.getElementById('pause') && (document.getElementById('pause').click(), window.stays = 1)"
    )
    browser("new Promise(done => setTimeout(done, 600))")
    assert browser("window.stays") == 1
