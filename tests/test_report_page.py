"""The report as a reader meets it: in a real browser, offline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from built_pages import build
from gpu_matrix import config_of, edit_json, failed, metrics_of, write, write_matrix, write_parity
from shardmark.cells import cell_of
from shardmark.report.contents import FIGURES

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install it, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix with a bit of everything that can be wrong."""
    root = tmp_path_factory.mktemp("project")
    config = config_of()
    write_matrix(config, root)
    write(failed(cell_of(config, "w", "dp", 2, 0), "oom", "OutOfMemoryError: <b>2 GiB</b>"), root)
    good = metrics_of(cell_of(config, "w", "fsdp", 1, 1))
    shared = [device.model_copy(update={"foreign_processes": 2}) for device in good.devices]
    faulty = good.model_copy(update={"devices": shared})
    write(faulty, root)
    old = write(metrics_of(cell_of(config, "w", "fsdp2", 1, 2), code_sha256="0"), root)
    assert old.exists()
    edit_json(write(metrics_of(cell_of(config, "w", "ddp", 1, 2)), root), cell_sha256="0")
    shutil.rmtree(root / cell_of(config, "w", "deepspeed_zero3", 2, 2).folder)
    write_parity(config, "fairscale_fsdp", 2, root, status="failed", reason="fp32: loss deviates")
    return build(config, root)


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The page, opened; fails the test on any console error or request to elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    page = context.new_page()
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    yield page
    context.close()
    assert errors == []
    assert [url[:80] for url in requests if not url.startswith(("data:", report.as_uri()))] == []


def column(page: Page, table: str, index: int) -> list[str]:
    return page.locator(f"{table} tbody tr td:nth-child({index})").all_text_contents()


def test_the_first_screen_tells_the_reservations(page: Page) -> None:
    said = page.locator(".reservations").inner_text()
    for words in (
        "2 of 48 cells without a result that counts",
        "1 cell of earlier code",
        "1 cell that did not end well",
        "1 cell excluded for a device fault (shared GPU); see Failures.",
        "Not shown to be the same training somewhere: FairScale FSDP",
    ):
        assert words in said
    assert page.locator(".reservations").bounding_box()["y"] < 400  # type: ignore[index]


def test_every_figure_is_decoded_and_has_a_caption(page: Page) -> None:
    images = page.locator("figure img")
    assert images.count() == len(FIGURES)
    assert page.locator("text=Not drawn, for want").count() == 0
    for index in range(images.count()):
        assert images.nth(index).evaluate("image => image.complete && image.naturalWidth > 300")
        caption = page.locator("figcaption").nth(index).inner_text()
        assert "Baseline: DDP; n = 2 to 3 runs of each; weak scaling" in caption


def test_tables_sort_by_number_and_back_with_empty_values_last(page: Page) -> None:
    table = "#comparison ~ .scroll >> nth=1 >> table"
    heads = page.locator(f"{table} th").all_inner_texts()
    place = next(i for i, head in enumerate(heads) if head.startswith("Throughput (images/s)"))
    before = column(page, table, 1)
    button = page.locator(f"{table} th").nth(place).locator("button")

    def speeds() -> list[float]:
        texts = column(page, table, place + 1)
        return [float(text.split()[0].replace(",", "")) for text in texts if text != "–"]

    button.click()
    assert speeds() == sorted(speeds())
    button.click()
    assert speeds() == sorted(speeds(), reverse=True)
    assert sorted(column(page, table, 1)) == sorted(before)
    assert page.locator(f"{table} th").nth(place).get_attribute("aria-sort") == "descending"


def test_the_raw_table_filters_by_words(page: Page) -> None:
    rows = page.locator("#data ~ .scroll tbody tr")
    assert rows.count() == 48
    page.locator(".filter input").fill("fsdp2 device fault")
    assert rows.locator("visible=true").count() == 0
    page.locator(".filter input").fill("fairscale 2")
    assert 0 < rows.locator("visible=true").count() <= 6
    page.locator(".filter input").fill("")
    assert rows.locator("visible=true").count() == 48


def test_failures_are_told_with_their_reason_and_nothing_is_interpreted(page: Page) -> None:
    text = page.locator("table.words").first.inner_text()
    assert "<b>2 GiB</b>" in text, "a message is text, not markup"
    assert "cell_sha256 is not the checksum" in text
    assert "2 processes that are not the cell's" in text
    grid = page.locator(".grid table").inner_text()
    for sign in ["M", "◐", "○", "R", "·"]:
        assert sign in grid


def test_what_is_exploratory_is_folded_and_what_is_tested_is_not(page: Page) -> None:
    folded = page.locator("#tests ~ details.lastwords")
    assert folded.count() == 2, "one a GPU count"
    table = folded.first.locator("table")
    assert not table.is_visible()
    assert page.locator("#tests ~ div.lastwords table").first.is_visible()
    folded.first.locator("summary").click()
    assert table.is_visible()
    assert "Memory peak" in table.inner_text()
    assert "Throughput" not in table.inner_text()


def test_the_first_screen_says_what_is_best_and_how_sure_it_is(page: Page) -> None:
    best = page.locator(".decisions")
    assert best.bounding_box()["y"] < 700  # type: ignore[index]
    said = best.inner_text()
    for words in (
        "DataParallel, ",
        "not told apart yet from any of the ",
        "next: DDP, −",
        "with 20.0 GiB, 0.04 J per image",
        "more seeds may",
    ):
        assert words in said


def test_a_narrow_window_reads_the_verdict_down_and_not_across(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    table = page.locator(".decisions table")
    assert table.evaluate("table => table.scrollWidth <= table.parentElement.clientWidth")
    box, heading = (page.locator(f".decisions td >> nth={i}").bounding_box() for i in (2, 3))
    assert box is not None
    assert heading is not None
    assert heading["y"] >= box["y"] + box["height"]
    before = page.locator(".decisions td >> nth=2").evaluate(
        "cell => getComputedStyle(cell, '::before').content"
    )
    assert before == '"Highest throughput"'


def test_a_caption_is_read_whole_on_a_narrow_window(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for caption in page.locator("caption span").all():
        box = caption.bounding_box()
        assert box is None or box["x"] + box["width"] <= 390, "a folded one has no box"


def test_a_figure_on_a_narrow_window_keeps_its_size_and_scrolls(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    image = page.locator("figure img").first
    assert image.bounding_box()["width"] >= 600  # type: ignore[index]
    assert image.evaluate("image => image.parentElement.clientWidth") < 390


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_one_seed_is_said_first(tmp_path: Path) -> None:
    config = config_of(seeds=[0], strategies=["ddp", "fsdp2"], gpus=[1])
    write_matrix(config, tmp_path)
    text = build(config, tmp_path).read_text()
    assert "One run per cell: nothing here tells a difference from chance." in text
    why = "Throughput against GPU count: scaling needs two GPU counts with a result"
    assert f"<li>{why}</li>" in text
    assert text.count("<img") == len(FIGURES) - 2


def test_a_report_of_nothing_measured_still_builds(tmp_path: Path) -> None:
    config = config_of(seeds=[0], strategies=["ddp"], gpus=[1])
    write(failed(cell_of(config, "w", "ddp", 1, 0), "failed", "RuntimeError: no"), tmp_path)
    text = build(config, tmp_path).read_text()
    assert "RuntimeError: no" in text
    assert "<img" not in text


def test_one_gpu_is_said_to_tell_nothing_of_several(tmp_path: Path) -> None:
    config = config_of(gpus=[1], strategies=["ddp", "dp"])
    write_matrix(config, tmp_path)
    assert "this says nothing of several" in build(config, tmp_path).read_text()
    wider = config_of(gpus=[1, 2], strategies=["ddp", "dp"])
    write_matrix(wider, tmp_path)
    assert "this says nothing of several" not in build(wider, tmp_path).read_text()


def test_a_short_window_is_said_to_be_short(tmp_path: Path) -> None:
    config = config_of(gpus=[2], strategies=["ddp"])
    write_matrix(config, tmp_path)
    assert "Timed over windows" not in build(config, tmp_path).read_text()
    measure = config.measure.model_copy(update={"steady_min_s": 4.0, "steady_max_s": 4.0})
    short = config.model_copy(update={"measure": measure})
    write_matrix(short, tmp_path)
    assert "Timed over windows of 4 s; under 30 s" in build(short, tmp_path).read_text()
