"""The exported LaTeX tables: plain ASCII, and pdflatex compiles all of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_matrix import ROOT, config_of, failed, write, write_matrix, write_parity
from result_sets import write_set
from shardmark.cells import cell_of
from shardmark.escaping import for_latex
from shardmark.report.contents import EXPORTED_TABLES
from shardmark.report.table import Table, to_latex
from test_tables import summarised

HOSTILE = (
    "50 % of a_b & c #1 ~x^2 {$y$} \\input{/etc/passwd} \\\\[9cm] <|\"'`> --margin\n\n"
    "−1 ± 2 – 3 — ≥ 4 ≤ 5\u00a0µs × ° · … “q” ‘r’ → ● ◐ ○ Müller Łódź naïve 名 🚀 \x1b[31mred"
)
HEADINGS = ["[Name]", "A (%)", "Long"]
ROWS = [["[x_1]", "–", HOSTILE], ["*y", "1,234", HOSTILE * 20], ["", "", "名" * 5000]]
TABLE = Table(HOSTILE, HEADINGS, ROWS, [HOSTILE, "[a] note"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every LaTeX file of a matrix with failures, and of its comparison with another run."""
    root = tmp_path_factory.mktemp("latex")
    variant = {"fsdp_a_b": {"base": "fsdp"}}
    config = config_of(variant, strategies=["ddp", "fsdp", "fsdp_a_b"], workloads=["w_1"])
    write_matrix(config, root)
    write(failed(cell_of(config, "w_1", "ddp", 1, 2), "oom", HOSTILE), root)
    write_parity(
        config, "fsdp", 2, root, workload="w_1", status="failed", reason=f"fp32: {HOSTILE}"
    )
    tables = summarised(config, root)
    run_script("export_tables.py", "--tables", tables)
    ratios = {"ddp": 1.0, "fsdp": 0.9}
    sets = [
        write_set(root / name, ratios, range(3), noise=1, run="r")
        for name in ("before_1 %", "näch&ste −2")
    ]
    run_script("compare_runs.py", *sets, "--output", root / "compared")
    files = [*tables.glob("*.tex"), root / "compared/comparison.tex"]
    assert {file.stem for file in files} == {*EXPORTED_TABLES, "summary", "comparison"}
    return files


def run_script(name: str, *arguments: Path | str) -> None:
    command = [sys.executable, str(ROOT / "workflow/scripts" / name), *map(str, arguments)]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode in (0, 1, 2), done.stderr


def test_no_character_outside_ascii_remains(exported: list[Path]) -> None:
    for text in (to_latex([TABLE]), *(file.read_text() for file in exported)):
        assert sorted({one for one in text if not one.isascii()}) == []


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_pdflatex_compiles_every_exported_table(exported: list[Path], tmp_path: Path) -> None:
    (tmp_path / "hostile.tex").write_text(to_latex([TABLE, Table("No rows", HEADINGS, [])]))
    for file in exported:
        shutil.copy(file, tmp_path)
    names = sorted(file.name for file in tmp_path.glob("*.tex"))
    document = [
        r"\documentclass{article}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
        *(rf"\input{{{name}}}\clearpage" for name in names),
        r"\end{document}",
    ]
    (tmp_path / "all.tex").write_text("\n".join(document))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    assert (tmp_path / "all.pdf").exists()


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("−1.2 % ± 3", r"$-$1.2 \% $\pm$ 3"),
        ("2020–2022", r"2020\textendash{}2022"),
        ("--margin", "-{}-margin"),
        (r"a_b & c\d {e}", r"a\_b \& c\textbackslash{}d \{e\}"),
        ("5\u00a0µs\n\nlater", r"5 $\mu$s later"),
        ("Müller", r"M\"{u}ller"),
        ("名", "U+540D"),
    ],
)
def test_text_becomes_latex(text: str, latex: str) -> None:
    assert for_latex(text) == latex
