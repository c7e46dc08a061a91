"""The matrix as it runs, from the records that Snakemake logs."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import re
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from shardmark.cells import Cell, ParityCase, cells_of, parity_case
from shardmark.controller import progress
from shardmark.controller.progress import Progress, duration, needs_the_console, outcome
from shardmark.files import write_text
from shardmark.metrics import Failure, Loss, Metrics, Throughput
from shardmark.parity_result import Parity
from small_matrix import cell_at, matrix

CELLS = list(cells_of(matrix(matrix__strategies=["ddp"], matrix__gpus=[1])))
GATE = [
    parity_case(matrix(), "small", strategy, ranks)
    for strategy, ranks in (("ddp", 2), ("slim", 2), ("slim", 1))
]


class Matrix:
    """A logger with the display on it, and the records of a matrix of ``CELLS`` and ``GATE``."""

    def __init__(
        self, stream: io.TextIOBase, cells: list[Cell] = CELLS, gate: list[ParityCase] = GATE
    ) -> None:
        self.stream = stream
        self.progress = Progress(cells, gate, stream)  # type: ignore[arg-type]
        self.logger = logging.Logger("a matrix", logging.INFO)
        self.logger.addHandler(self.progress)

    def log(self, event: LogEvent, **fields: object) -> None:
        self.logger.info("", extra={"event": event, **fields})

    def start(self, jobid: int, cell: Cell) -> None:
        at = {"workload": cell.workload, "strategy": cell.strategy}
        at |= {"gpus": str(cell.gpus), "seed": str(cell.seed)}
        self.log(LogEvent.JOB_INFO, rule_name="train", jobid=jobid, wildcards=at)

    def check(self, jobid: int, case: ParityCase) -> None:
        cell = case.cell
        at = {"workload": cell.workload, "strategy": cell.strategy, "ranks": str(cell.gpus)}
        self.log(LogEvent.JOB_INFO, rule_name="check_parity", jobid=jobid, wildcards=at)

    def judge(
        self, jobid: int, case: ParityCase, status: str = "passed", reason: str | None = None
    ) -> None:
        cell = case.cell
        parity = Parity(
            workload=cell.workload,
            strategy=cell.strategy,
            ranks=cell.gpus,
            device=cell.device,
            backend=None,
            status=status,  # type: ignore[arg-type]
            reason=reason,
            case_sha256="",
            code_sha256="",
        )
        write_text(case.file, parity.model_dump_json(by_alias=True))
        self.log(LogEvent.JOB_FINISHED, job_id=jobid)

    def finish(self, jobid: int, metrics: Metrics | None = None) -> None:
        if metrics is not None:
            write_text(metrics.cell.folder / "metrics.json", metrics.model_dump_json(by_alias=True))
        self.log(LogEvent.JOB_FINISHED, job_id=jobid)

    def fail(self, jobid: int, rule: str = "train", logs: tuple[str, ...] = ()) -> None:
        self.log(LogEvent.JOB_ERROR, rule_name=rule, jobid=jobid, log=list(logs))


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plain() -> Iterator[Matrix]:
    """The display where there is no terminal."""
    shown = Matrix(io.StringIO())
    yield shown
    shown.progress.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The display's clock; it stands still until ``now`` is set."""
    made = SimpleNamespace(now=time.monotonic())
    made.monotonic = lambda: made.now
    monkeypatch.setattr(progress, "time", made)
    return made


def lines(shown: Matrix) -> list[str]:
    assert isinstance(shown.stream, io.StringIO)
    return shown.stream.getvalue().splitlines()


def ok(cell: Cell) -> Metrics:
    throughput = Throughput(
        items_per_s=14500.4,
        items_per_s_per_gpu=14500.4,
        step_ms_mean=1,
        step_ms_p50=1,
        step_ms_p90=1,
        step_ms_p99=1,
        steps=10,
        window_s=1,
        warmup_steps=3,
        warmup_converged=True,
        slowest_rank=0,
    )
    loss = Loss(per_epoch=[2, 1.23456], final=1.23456)
    return ended(cell, "ok").model_copy(update={"throughput": throughput, "loss": loss})


def ended(cell: Cell, status: str, reason: str | None = None) -> Metrics:
    failure = None if reason is None else Failure.plain(reason)
    return Metrics(
        cell=cell,
        cell_sha256=cell.fingerprint(),
        code_sha256="",
        status=status,  # type: ignore[arg-type]
        failure=failure,
    )


def test_without_a_terminal_a_cell_that_ends_is_one_plain_line(plain: Matrix) -> None:
    for jobid, cell in enumerate(CELLS):
        plain.start(jobid, cell)
    plain.finish(0, ok(CELLS[0]))
    plain.finish(1, ended(CELLS[1], "oom", "CUDA out of memory.\nTried to allocate 2 GiB"))
    assert lines(plain) == [
        "[1/2] small ddp gpus1 seed0: ok, 14,500 images/s, loss 1.235",
        "[2/2] small ddp gpus1 seed1: oom (CUDA out of memory.)",
    ]
    plain.progress.close()
    plain.progress.close()
    assert lines(plain)[2:] == ["cells [2/2] | 1 ok, 1 oom"]


def test_a_cell_whose_result_cannot_be_read_is_told_and_ends_nothing(plain: Matrix) -> None:
    plain.start(7, CELLS[0])
    write_text(CELLS[0].folder / "metrics.json", "{")
    plain.finish(7)
    [line] = lines(plain)
    assert line.startswith("[1/2] small ddp gpus1 seed0: refused (results/t/small/ddp/")


def test_a_failed_cell_shows_the_end_of_its_log(plain: Matrix) -> None:
    log = Path("job.log")
    log.write_text("".join(f"line {number}\n" for number in range(20)))
    plain.start(1, CELLS[0])
    plain.fail(1, logs=("job.log",))
    assert lines(plain) == [
        "[1/2] small ddp gpus1 seed0: no result; see job.log",
        *(f"    line {number}" for number in range(15, 20)),
    ]
    assert plain.progress.state().startswith("cells [1/2] | 1 no result")


def test_slurms_errors_do_not_hide_the_launchers_last_word(plain: Matrix) -> None:
    errors = ["srun: error: n2: task 1: Exited with exit code 1", "shardmark: killed rank 3"]
    log = Path("job.log")
    log.write_text("\n".join(["epoch 1", errors[0], "srun: Force Terminated", errors[1]]))
    plain.start(1, CELLS[0])
    plain.fail(1, logs=("job.log",))
    assert lines(plain)[1:] == [f"    {error}" for error in errors]


def test_a_failed_cell_without_a_log_points_to_the_messages(plain: Matrix) -> None:
    plain.start(1, CELLS[0])
    plain.fail(1)
    plain.fail(2, rule="fetch_data", logs=("gone.log",))
    assert lines(plain) == [
        "[1/2] small ddp gpus1 seed0: no result; see the messages",
        "fetch_data: no result; see gone.log",
    ]


def test_a_log_that_is_no_text_is_shown_as_far_as_it_can_be(plain: Matrix) -> None:
    Path("job.log").write_bytes(b"caf\xe9\n")
    plain.start(1, CELLS[0])
    plain.fail(1, logs=("job.log",))
    assert lines(plain)[-1] == "    caf�"


def test_a_cell_that_is_tried_again_counts_once(plain: Matrix) -> None:
    plain.start(1, CELLS[0])
    plain.fail(1)
    plain.start(1, CELLS[0])
    assert plain.progress.done == 0
    plain.finish(1, ok(CELLS[0]))
    assert lines(plain)[-1].startswith("[1/2] ")
    assert "1 ok" in plain.progress.state()
    assert "no result" not in plain.progress.state()


def test_the_state_says_what_runs(plain: Matrix) -> None:
    assert plain.progress.state() == "cells [0/2] | none ended yet"
    plain.log(LogEvent.JOB_INFO, rule_name="make_oracle", jobid=9, wildcards={})
    assert plain.progress.state().endswith("| running make_oracle")
    for jobid, cell in enumerate(CELLS):
        plain.start(jobid, cell)
    assert plain.progress.state().endswith("| running small ddp gpus1 seed0 and 1 more")
    plain.log(LogEvent.JOB_FINISHED, job_id=9)
    assert lines(plain) == []


def test_the_time_left_follows_the_pace_of_the_cells_so_far(
    clock: SimpleNamespace, plain: Matrix
) -> None:
    assert plain.progress.left_s() is None
    plain.start(0, CELLS[0])
    clock.now += 600
    plain.finish(0, ok(CELLS[0]))
    assert plain.progress.left_s() == pytest.approx(600)
    assert plain.progress.state().endswith("about 10 min left")
    plain.start(1, CELLS[1])
    plain.finish(1, ok(CELLS[1]))
    assert plain.progress.left_s() == 0
    assert "left" not in plain.progress.state()


def test_the_time_of_the_gate_alone_is_no_time_of_cells(
    clock: SimpleNamespace, plain: Matrix
) -> None:
    plain.check(10, GATE[0])
    clock.now += 2400
    plain.judge(10, GATE[0])
    plain.start(0, CELLS[0])
    clock.now += 200
    plain.check(11, GATE[1])  # beside a cell
    clock.now += 100
    plain.finish(0, ok(CELLS[0]))
    clock.now += 5000  # the gate alone again
    assert plain.progress.left_s() == pytest.approx(300)
    plain.judge(11, GATE[1])
    plain.start(1, CELLS[1])
    clock.now += 60
    assert plain.progress.left_s() == pytest.approx(240)


def test_time_in_which_cells_run_side_by_side_counts_once(
    clock: SimpleNamespace,
) -> None:
    cells = list(cells_of(matrix(matrix__gpus=[1])))
    shown = Matrix(io.StringIO(), cells)
    for jobid, cell in enumerate(cells[:3]):
        shown.start(jobid, cell)
    clock.now += 300
    for jobid in range(3):
        shown.finish(jobid, ok(cells[jobid]))
    assert shown.progress.left_s() == pytest.approx(300)


def test_a_parity_case_is_a_plain_line_when_it_starts_and_when_it_ends(plain: Matrix) -> None:
    plain.check(10, GATE[0])
    plain.check(11, GATE[1])
    plain.judge(11, GATE[1], "failed", "fp32: the loss deviates\nsecond line")
    plain.judge(10, GATE[0])
    plain.check(12, GATE[2])
    plain.judge(12, GATE[2], "error", "training, rank 1: " + "x" * 200)
    assert lines(plain) == [
        "parity case 1 of 3, small ddp ranks2: started",
        "parity case 2 of 3, small slim ranks2: started",
        "parity case 2 of 3, small slim ranks2: failed (fp32: the loss deviates)",
        "parity case 1 of 3, small ddp ranks2: passed",
        "parity case 3 of 3, small slim ranks1: started",
        "parity case 3 of 3, small slim ranks1: error (training, rank 1: " + "x" * 102 + ")",
    ]


def test_a_verdict_that_cannot_be_read_ends_its_case(plain: Matrix) -> None:
    plain.check(10, GATE[0])
    write_text(GATE[0].file, "{")
    plain.log(LogEvent.JOB_FINISHED, job_id=10)
    assert lines(plain)[-1].startswith(
        "parity case 1 of 3, small ddp ranks2: unreadable (results/t/parity/small/ddp/ranks2.json"
    )
    assert plain.progress.state() == "cells [0/2] | none ended yet"


def test_the_state_names_the_gate_while_it_runs_alone(plain: Matrix) -> None:
    plain.log(LogEvent.JOB_INFO, rule_name="make_oracle", jobid=9, wildcards={})
    for jobid, case in enumerate(GATE, 10):
        plain.check(jobid, case)
    cells = "cells [0/2] | none ended yet"
    running = "running small ddp ranks2 and 2 more"
    assert plain.progress.state() == f"parity [0/3] | {running} | {cells}"
    plain.judge(10, GATE[0], "failed", "it deviates")
    running = "running small slim ranks2 and 1 more"
    assert plain.progress.state() == f"parity [1/3] | {running} | 1 failed | {cells}"
    plain.start(0, CELLS[0])
    running = "running small ddp gpus1 seed0"
    assert plain.progress.state() == f"{cells} | {running} | parity [1/3]"
    plain.finish(0, ok(CELLS[0]))
    assert plain.progress.state().startswith("parity [1/3] | running small slim ranks2 and 1 more")
    plain.judge(11, GATE[1])
    plain.judge(12, GATE[2])
    assert plain.progress.state().startswith("cells [1/2] | 1 ok | running make_oracle")


def test_a_parity_job_that_fails_runs_no_more_and_keeps_its_number(plain: Matrix) -> None:
    Path("parity.log").write_text("no verdict\n")
    plain.check(10, GATE[0])
    plain.check(11, GATE[1])
    plain.fail(11, rule="check_parity", logs=("parity.log",))
    assert plain.progress.state().startswith("parity [1/3] | running small ddp ranks2 | 1 no")
    plain.check(11, GATE[1])
    assert plain.progress.state().startswith("parity [0/3] | running small ddp ranks2 and 1 more")
    plain.judge(11, GATE[1])
    assert lines(plain)[2:] == [
        "parity case 2 of 3, small slim ranks2: no result; see parity.log",
        "    no verdict",
        "parity case 2 of 3, small slim ranks2: started",
        "parity case 2 of 3, small slim ranks2: passed",
    ]
    plain.fail(10, rule="check_parity")
    assert plain.progress.state() == "cells [0/2] | none ended yet"


def test_a_run_of_the_gate_alone_ends_with_its_verdicts() -> None:
    shown = Matrix(io.StringIO(), [], GATE[:2])
    shown.check(10, GATE[0])
    shown.judge(10, GATE[0])
    shown.check(11, GATE[1])
    shown.judge(11, GATE[1], "failed", "it deviates")
    shown.progress.close()
    assert lines(shown)[-1] == "parity [2/2] | 1 passed, 1 failed"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (5400, "1 h 30 min")],
)
def test_durations_as_a_person_says_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_display_that_goes_wrong_does_not_end_the_matrix(
    plain: Matrix, capsys: pytest.CaptureFixture[str]
) -> None:
    plain.start(0, cell_at("slim", gpus=2))  # no cell of this run
    plain.finish(0)
    plain.start(1, CELLS[0])
    plain.finish(1, ok(CELLS[0]))
    assert lines(plain)[-1].startswith("[1/2] small ddp gpus1 seed0: ok")
    capsys.readouterr()


def test_nothing_planned_shows_no_bar_and_no_state() -> None:
    shown = Matrix(io.StringIO(), [], [])
    shown.fail(3, rule="plot", logs=("plot.log",))
    shown.progress.close()
    assert lines(shown) == ["plot: no result; see plot.log"]


def test_only_what_the_display_does_not_tell_reaches_the_console() -> None:
    def record(level: int, text: str = "", **fields: object) -> logging.LogRecord:
        made = logging.LogRecord("snakemake", level, "", 0, text, None, None)
        made.__dict__.update(fields)
        return made

    assert needs_the_console(record(logging.WARNING, "disk is full"))
    assert needs_the_console(record(logging.ERROR, "bug", exception="RuleException"))
    assert not needs_the_console(record(logging.INFO, "Finished job 3"))
    assert not needs_the_console(
        record(logging.WARNING, "Cannot restore results/t/metrics.json: no backup found.")
    )
    assert not needs_the_console(record(logging.ERROR, event=LogEvent.JOB_ERROR))
    assert not needs_the_console(
        record(logging.ERROR, "CalledProcessError in rule train", exception="RuleException")
    )


class Terminal:
    """A pseudo-terminal of a width, and what was written to it."""

    def __init__(self, columns: int) -> None:
        self.reading, writing = os.openpty()
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.set_blocking(self.reading, False)
        self.stream = os.fdopen(writing, "w")
        self.seen = ""

    def read(self) -> str:
        with contextlib.suppress(BlockingIOError):  # nothing new
            self.seen += os.read(self.reading, 1 << 16).decode()
        return self.seen

    def wait_for(self, pattern: str) -> str:
        """Everything written, as soon as it holds the pattern."""
        end = time.monotonic() + 10
        while not re.search(pattern, self.read()):
            assert time.monotonic() < end, f"{pattern!r} is not in {self.seen!r}"
            time.sleep(0.01)
        return self.seen


@pytest.fixture(params=[100, 40])
def terminal(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Terminal, Matrix]]:
    monkeypatch.setattr(progress, "REFRESH_S", 0.02)
    made = Terminal(request.param)
    shown = Matrix(made.stream)  # type: ignore[arg-type]
    yield made, shown
    shown.progress.close()


def test_in_a_terminal_a_live_bar_stands_under_the_lines(
    terminal: tuple[Terminal, Matrix],
) -> None:
    made, shown = terminal
    made.wait_for(r"-{24} cells \[0/2\]")
    shown.start(0, CELLS[0])
    shown.finish(0, ok(CELLS[0]))
    text = made.wait_for(r"#{12}-{12} cells \[1/2\]")
    # Each drawing begins by clearing the row, so that a line is never written behind the bar.
    assert "\r\x1b[K[1/2] small ddp gpus1 seed0: ok, 14,500 images/s, loss 1.235\r\n" in text
    drawn = [part for part in text.split("\r\x1b[K") if "cells [" in part]
    width = os.get_terminal_size(made.reading).columns
    assert all("\n" not in part and len(part) < width for part in drawn), drawn


def test_in_a_terminal_the_bar_follows_the_gate_and_a_case_is_a_line_when_it_ends(
    terminal: tuple[Terminal, Matrix],
) -> None:
    made, shown = terminal
    shown.check(10, GATE[0])
    made.wait_for(r"-{24} parity \[0/3\]")
    shown.judge(10, GATE[0])
    shown.check(11, GATE[1])
    text = made.wait_for(r"#{8}-{16} parity \[1/3\]")
    assert "\r\x1b[Kparity case 1 of 3, small ddp ranks2: passed\r\n" in text
    assert "started" not in text
    shown.start(0, CELLS[0])
    made.wait_for(r"#{8}-{16} parity[^#]*-{24} cells \[0/2\]")


def test_in_a_terminal_the_gate_alone_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_S", 0.02)
    made = Terminal(100)
    shown = Matrix(made.stream, [], GATE[:1])  # type: ignore[arg-type]
    shown.check(10, GATE[0])
    made.wait_for(r"-{24} parity \[0/1\] \| running small ddp ranks2")
    shown.judge(10, GATE[0])
    made.wait_for(r"#{24} parity \[1/1\] \| 1 passed")
    shown.progress.close()


def test_at_the_end_the_bar_gives_way_to_the_last_state(terminal: tuple[Terminal, Matrix]) -> None:
    made, shown = terminal
    shown.start(0, CELLS[0])
    shown.finish(0, ended(CELLS[0], "timeout", "the time limit"))
    made.wait_for(r"#{12}-{12} cells")
    shown.progress.close()
    made.wait_for(r"\r\x1b\[Kcells \[1/2\] \| 1 timeout[^#]*\r\n$")
    time.sleep(0.1)
    assert made.read().endswith("\r\n"), "drawn after its end"


def test_a_warning_of_snakemakes_is_not_written_behind_the_bar(
    terminal: tuple[Terminal, Matrix],
) -> None:
    made, shown = terminal

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.stream.write(f"{record.getMessage()}\n")
            shown.stream.flush()

    shown.logger.addHandler(Console())
    made.wait_for(r"cells \[0/2\]")
    shown.logger.warning("disk is nearly full")
    text = made.wait_for("nearly full")
    assert "\r\x1b[Kdisk is nearly full" in text


def test_attached_it_takes_the_place_of_the_consoles_messages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.Logger("snakemake's", logging.INFO)
    console = logging.StreamHandler(io.StringIO())
    console.set_name("DefaultStreamHandler")
    logger.addHandler(console)
    shown = Progress.attach(logger, [])
    assert logger.handlers[0] is shown
    logger.info("Finished job 3")
    logger.warning("disk is full")
    assert console.stream.getvalue() == "disk is full\n"
    shown.close()


def test_a_device_fault_is_the_outcome_of_a_run_that_ended_well(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    faulty = ok(CELLS[0]).model_copy(update={"device_faults": ["throttled: 40 % of the window"]})
    path.write_text(faulty.model_dump_json(by_alias=True))
    assert outcome(path)[0] == "device fault"


def test_an_outcome_without_figures_is_its_status(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(ended(CELLS[0], "ok").model_dump_json(by_alias=True))
    assert outcome(path) == ("ok", "")
