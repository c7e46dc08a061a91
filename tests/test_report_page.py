"""The report as a reader meets it: in a real browser, offline."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from built_pages import build, draw_figures, write_page
from gpu_matrix import (
    ROOT,
    config_of,
    edit_json,
    failed,
    metrics_of,
    write,
    write_matrix,
    write_parity,
)
from shardmark.cells import cell_of
from shardmark.report.contents import FIGURES
from shardmark.report.page import SHIPPED, own_files, same_model

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


def first_screen_words(page: Page) -> int:
    """Words that a reader meets before the table."""
    text = page.locator("header").inner_text() + " " + page.locator("#answer").inner_text()
    return len(text.split(page.locator("table.overview caption").first.inner_text())[0].split())


def test_the_first_screen_is_the_identity_the_answer_the_picture_the_table(page: Page) -> None:
    tops = [
        page.locator(one).first.bounding_box()["y"]  # type: ignore[index]
        for one in (".identity", ".answer", "figure img", "table.overview", ".caveats")
    ]
    assert tops == sorted(tops)
    assert tops[3] < 700, "the table begins on the first screen"
    assert first_screen_words(page) <= 150
    identity = page.locator(".identity").inner_text()
    for words in (
        "resnet50 on cifar10, bf16",
        "1 and 2 GPUs (Test GPU)",
        "3 seeds",
        "commit 00000",
        "parity gate passed by 7 of 8",
    ):
        assert words in identity
    assert 0 < page.locator(".caveats li").count() <= 3


def test_the_answer_has_a_badge_and_names_what_failed(page: Page) -> None:
    said = page.locator(".answer").inner_text()
    assert page.locator(".badge").inner_text() in ("likely", "open")
    assert "on 2 GPUs. Per GPU: batch 512, " in said
    assert "If memory is tight: DeepSpeed ZeRO-2 (" in said
    meanings = page.locator(".badges").inner_text()
    assert f"{page.locator('.badge').inner_text()}: " in meanings


def test_caveats_are_lines_and_all_stand_under_failures(page: Page) -> None:
    said = page.locator("#failures ~ ul").first.inner_text()
    for words in (
        "Not proven to train the same model at every GPU count: FairScale FSDP.",
        "1 of 48 planned runs: no result yet.",
        "1 run left a result that does not count.",
        "1 run did not end well",
        "runs excluded for a device fault (shared GPU)",
        "1 run was made by earlier code",
    ):
        assert words in said
    assert "Could not be checked: (" not in said
    first = page.locator(".caveats li")
    assert all(text.rpartition(".")[0] in said for text in first.all_inner_texts())
    assert first.locator("a").first.get_attribute("href") == "#parity"


def test_what_the_gate_has_not_checked_is_told_from_what_failed() -> None:
    verdicts = [("ddp", "passed"), ("fsdp", "missing"), ("fsdp2", "failed"), ("fsdp2", "missing")]
    parity = pd.DataFrame(verdicts, columns=["strategy", "verdict"]).assign(reason="")
    said = same_model(parity)
    assert said == "1 of 3 train the same model; not proven for FSDP2; not yet checked: FSDP1"
    whole = parity[parity.strategy == "ddp"]
    small = whole.assign(reason="only a small version was compared")
    assert same_model(small) == f"{same_model(whole)} (a small version of it)"


def test_the_command_and_the_tables_can_be_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.locator("[data-command]").click()
    assert page.evaluate("copied") == "snakemake --profile profiles/local"
    first = page.locator(".table:has(.overview)").first
    first.get_by_text("Copy as CSV").click()
    rows = list(csv.reader(io.StringIO(page.evaluate("copied"))))
    assert rows[0][:3] == ["Strategy", "Images/s per GPU", "vs DDP"]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert all(float(row[1]) > 1000 for row in rows[1:] if row[1] != "–")
    first.get_by_text("Copy as Markdown").click()
    assert page.evaluate("copied").splitlines()[1].startswith("| --- | --- |")


def test_tabs_choose_the_gpu_count_also_by_keyboard(page: Page) -> None:
    tabs = page.get_by_role("tablist", name="GPU counts").get_by_role("tab")
    assert tabs.all_inner_texts() == ["2 GPUs", "1 GPU"]
    shown = page.locator("table.overview:visible")
    assert "w on 2 GPUs, medians" in shown.locator("caption").inner_text()
    before = shown.locator("td").first.inner_text()
    tabs.first.focus()
    page.keyboard.press("ArrowRight")
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    assert shown.count() == 1
    assert shown.locator("td").first.inner_text() != before


def test_the_price_follows_what_is_typed(page: Page) -> None:
    table = page.locator("table.overview:visible")
    heads = table.locator("th[scope=col]").all_inner_texts()
    cost = table.locator(f"tbody tr:first-child td:nth-child({heads.index('Cost ($)') + 1})")
    before = float(cost.inner_text())
    page.locator("[data-of=price]").fill("5")
    assert float(cost.inner_text()) == pytest.approx(2 * before, rel=0.01)
    page.locator("[data-of=items]").fill("500")
    assert float(cost.inner_text()) == pytest.approx(before, rel=0.01)


def test_the_switch_includes_excluded_runs(page: Page) -> None:
    page.get_by_role("tab", name="1 GPU").click()
    name = page.get_by_role("rowheader", name="FSDP1", exact=True)
    row = page.locator("table.overview:visible tr").filter(has=name)
    assert row.locator("td").last.inner_text() == "2 of 3 (1 pair)"
    page.locator(".excluded").check()
    assert row.locator("td").last.inner_text() == "3 (2 pairs)"


def test_a_strategy_without_a_run_that_counts_comes_last_with_the_reason(page: Page) -> None:
    last = page.locator("table.overview:visible tbody tr").last.inner_text()
    assert last.startswith("FairScale FSDP")
    assert "excluded: parity failed" in last


def test_memory_is_shown_against_the_capacity(page: Page) -> None:
    bars = page.locator("#w-capacity")
    assert "FSDP2\n17.0 GiB" in bars.inner_text()
    assert "80 GiB: capacity" in bars.inner_text()
    width = bars.locator("li", has_text="FSDP2").locator("i").bounding_box()
    whole = bars.locator(".track").first.bounding_box()
    assert width
    assert whole
    assert width["width"] / whole["width"] == pytest.approx(17 / 80, rel=0.03)


def test_every_figure_and_table_has_a_link_to_itself(page: Page) -> None:
    for one in page.locator("main figure, main .table").all():
        inside_answer = one.evaluate("one => one.matches('#answer figure')")
        own = one.locator(f'a.anchor[href="#{one.get_attribute("id")}"]')
        assert own.count() == 1 or inside_answer


def test_a_link_to_another_gpu_count_chooses_its_tab(page: Page) -> None:
    table = page.locator("#w-1-GPU")
    assert not table.is_visible()
    page.evaluate("location.hash = 'w-1-GPU'")
    table.wait_for(state="visible")
    assert page.get_by_role("tab", name="1 GPU").get_attribute("aria-selected") == "true"


def test_every_figure_is_decoded_and_says_its_result(page: Page) -> None:
    images = page.locator("figure img")
    assert images.count() == len(FIGURES)
    for index in range(images.count()):
        image = images.nth(index)
        if image.is_visible():
            box = image.bounding_box()
            assert box
            assert box["height"] > 50, "it has its room before it is decoded"
        # Without this, a figure further below is decoded only when a reader comes near it.
        image.evaluate("image => { image.loading = 'eager'; return image.decode(); }")
        assert image.evaluate("image => image.naturalWidth > 300")
        assert len((image.get_attribute("alt") or "").split()) > 3
    caption = page.locator("#w-memory figcaption")
    said = caption.locator("b").inner_text()
    assert said.startswith("Memory peak on 2 GPUs: lowest with DeepSpeed")
    details = caption.locator("details p")
    assert not details.is_visible()
    caption.locator("summary").click()
    assert "Baseline: DDP; n = 2 to 3 runs of each; weak scaling" in details.inner_text()


def test_tables_sort_by_number_and_back_with_empty_values_last(page: Page) -> None:
    table = page.locator("table.overview:visible")
    heads = table.locator("th[scope=col]").all_inner_texts()
    place = next(i for i, head in enumerate(heads) if head.startswith("Images/s"))
    button = table.locator("th[scope=col]").nth(place).locator("button")

    def speeds() -> list[float]:
        texts = table.locator(f"tbody tr td:nth-child({place + 1})").all_text_contents()
        return [float(text.replace(",", "")) for text in texts if text != "–"]

    button.click()
    assert speeds() == sorted(speeds())
    button.click()
    assert speeds() == sorted(speeds(), reverse=True)
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"


def test_the_raw_table_filters_by_name_and_label_and_says_when_nothing_matches(page: Page) -> None:
    page.locator("details.raw summary").click()
    rows = page.locator(".raw tbody tr")
    search = page.locator("input[type=search]")
    assert rows.count() == 48
    for words in ("zero-3", "deepspeed_zero3"):
        search.fill(words)
        assert rows.locator("visible=true").count() == 6
    search.fill("zero-3 nothing")
    assert page.locator(".none").inner_text() == "No row matches."
    search.fill("")
    assert page.locator(".none").inner_text() == ""
    assert rows.locator("visible=true").count() == 48


def test_failures_are_grouped_by_cause_and_name_their_log(page: Page) -> None:
    group = page.locator("details", has=page.locator("summary", has_text="out of memory, 1 run"))
    assert not group.locator("li").is_visible()
    group.locator("summary").first.click()
    said = group.first.inner_text()
    assert "<b>2 GiB</b>" in said, "a message is text, not markup"
    assert "w, DataParallel, 2 GPUs, seed 0 (training, rank 0)" in said
    assert "results/t/w/dp/gpus2/seed0/job.log" in said


def test_parity_unfolds_from_one_sentence(page: Page) -> None:
    group = page.locator("details", has_text="7 of 8 train the same model").first
    assert "not proven for FairScale FSDP" in group.locator("summary").inner_text()
    assert not group.locator("table").is_visible()
    group.locator("summary").click()
    assert group.locator("table").is_visible()


def test_every_link_works_when_the_page_is_mailed_alone(page: Page) -> None:
    links = page.locator("a[href]").evaluate_all("all => all.map((a) => a.getAttribute('href'))")
    assert links
    assert [one for one in links if not one.startswith("#")] == []
    ids = page.locator("[id]").evaluate_all("all => all.map((one) => one.id)")
    assert len(ids) == len(set(ids))
    assert {one[1:] for one in links} <= set(ids)


def test_a_link_into_a_closed_part_opens_it(page: Page) -> None:
    image = page.locator("#w-loss img")
    assert not image.is_visible()
    page.evaluate("location.hash = 'w-loss'")
    image.wait_for(state="visible")


def test_the_overlays_that_come_with_shardmark_are_known() -> None:
    table = (ROOT / "config/README.md").read_text()
    names = re.findall(r"^\| `(\w+\.yaml)`", table, re.MULTILINE)
    examples = (ROOT / "docs/examples").glob("*.[py]*")
    shipped = {f"config/{name}" for name in names} | {
        f"docs/examples/{one.name}" for one in examples
    }
    assert shipped == set(SHIPPED)


@pytest.mark.parametrize(
    ("command", "config", "files"),
    [
        ("snakemake --profile profiles/local --configfile config/demo.yaml", {}, []),
        (
            "snakemake --configfile config/demo.yaml mine/a.yaml config/mine.yaml --cores 2",
            {
                "workloads": {"a": {"file": "mine/a.py"}, "b": {"model": {"name": "gpt"}}},
                "strategies": {"s": {"file": "docs/examples/one_all_reduce.py"}},
            },
            ["mine/a.yaml", "config/mine.yaml", "mine/a.py"],
        ),
    ],
)
def test_what_no_commit_has_is_named(
    command: str, config: dict[str, Any], files: list[str]
) -> None:
    assert own_files(command, config) == files


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    violations = axe.Axe().run(page).response["violations"]
    serious = [
        (one["id"], one["nodes"][0]["html"][:200])
        for one in violations
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_print_on_paper_shows_all_and_cuts_nothing(page: Page) -> None:
    page.set_viewport_size({"width": 1047, "height": 740})
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1047
    tables = page.locator("table:visible")
    hidden = page.locator(".with table").count()
    assert tables.count() == page.locator("table").count() - hidden
    for table in tables.all():
        box = table.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 1047
    heading = page.locator("#w-steps-table thead button").first
    assert heading.evaluate("one => getComputedStyle(one).display") == "contents", (
        "Chromium repeats a table's header on each page only if it holds no box"
    )
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator(".raw table").is_visible()


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_never_scrolls_sideways_and_what_does_is_reached_by_keyboard(
    page: Page, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    parts = page.locator(".scroll")
    assert parts.count() == page.locator('.scroll[tabindex="0"][aria-label]').count()


@pytest.mark.parametrize("width", [1280, 1366])
def test_the_main_table_of_the_example_is_seen_whole(browser: Browser, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto((ROOT / "docs/example/report.html").as_uri())
    part = page.locator(".scroll:has(.overview)").first
    assert part.evaluate("one => one.scrollWidth - one.clientWidth") == 0
    page.close()


def test_a_caption_is_read_whole_on_a_narrow_window(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    boxes = [caption.bounding_box() for caption in page.locator("caption:visible").all()]
    assert boxes
    assert all(box and box["x"] + box["width"] <= 390 for box in boxes)


def test_a_figure_on_a_narrow_window_keeps_its_size_and_scrolls(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    image = page.locator("figure img").first
    assert image.bounding_box()["width"] >= 600  # type: ignore[index]
    assert image.evaluate("image => image.parentElement.clientWidth") < 390


@pytest.mark.slow
def test_a_full_matrix_opens_in_two_seconds(browser: Browser, tmp_path: Path) -> None:
    # Figures of fewer runs look alike and take less time to draw.
    few = config_of(seeds=range(2), gpus=[1, 2, 4, 8])
    write_matrix(few, tmp_path)
    draw_figures(few, tmp_path)
    figures = tmp_path / "results/t/figures"
    shutil.copytree(figures / "w", figures / "v")
    full = config_of(seeds=range(10), gpus=[1, 2, 4, 8], workloads=["v", "w"])
    write_matrix(full, tmp_path, side_files=False)
    address = write_page(full, tmp_path).as_uri()
    # Other work of the machine delays a page. Each of these is a new one, without a cache.
    timings = []
    for _ in range(3):
        page = browser.new_page()
        page.goto(address)
        entry = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        timings.append(page.evaluate(entry))
        words = first_screen_words(page)
        page.close()
    assert min(timings) < 2000, timings
    assert words <= 150


def test_one_seed_chooses_nothing(tmp_path: Path) -> None:
    config = config_of(seeds=[0], strategies=["ddp", "fsdp2"], gpus=[2])
    write_matrix(config, tmp_path)
    text = build(config, tmp_path).read_text()
    assert "Too few runs to choose." in text
    assert "One run per strategy: any difference may be chance." in text
    why = "Throughput against GPU count: scaling needs two GPU counts with a result"
    assert f"<li>{why}</li>" in text


def test_a_report_of_nothing_measured_still_builds(tmp_path: Path) -> None:
    config = config_of(seeds=[0], strategies=["ddp"], gpus=[1])
    write(failed(cell_of(config, "w", "ddp", 1, 0), "failed", "RuntimeError: no"), tmp_path)
    text = build(config, tmp_path).read_text()
    assert "No strategy has a result that counts." in text
    assert "RuntimeError: no" in text
    assert "<img" not in text


def test_one_gpu_is_said_first(tmp_path: Path) -> None:
    config = config_of(gpus=[1], strategies=["ddp", "dp"])
    write_matrix(config, tmp_path)
    assert "One GPU cannot answer which strategy is best" in build(config, tmp_path).read_text()
