"""The largest batch that fits: what the search finds with real ranks, and where its result goes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from find_largest_batch import find_largest_batch
from shardmark.cells import BatchSearch, batch_search
from shardmark.config.loading import load
from shardmark.errors import UserError
from shardmark.largest_batch import LargestBatch, SearchState
from small_matrix import ROOT

LIMITED = ROOT / "tests/failing/train_limited.py"
# Longer than the imports take on a busy machine.
STALL_S = 25.0


def raw(**changes: Any) -> dict[str, Any]:
    """A matrix with a tiny language model, whose sequences are fewer than some batches."""
    return {
        "run": "t",
        "matrix": {"workloads": ["gpt"], "strategies": ["ddp"], "gpus": [2], "seeds": [0]},
        "workloads": {
            "gpt": {
                "model": {
                    "name": "gpt",
                    "layers": 1,
                    "width": 8,
                    "heads": 1,
                    "context": 8,
                    "vocabulary": 16,
                },
                "dataset": {"name": "synthetic_tokens", "sequences": 4},
                "batch": {"global": 4},
                "optimizer": {"name": "adamw", "learning_rate": 0.001},
                "precision": "fp32",
            }
        },
        "cluster": {"device": "cpu", "gpus_per_node": 2},
        "measure": {
            "steady_min_s": 0.2,
            "steady_max_s": 0.2,
            "warmup_min_steps": 3,
            "warmup_max_steps": 6,
        },
        "largest_batch": {"workloads": ["gpt"], "most": 16},
        **changes,
    }


def search(most: int = 16, **changes: Any) -> BatchSearch:
    config = load(raw(largest_batch={"workloads": ["gpt"], "most": most}, **changes), ROOT)
    return batch_search(config, "gpt", "ddp", 2)


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Searches with ranks that fail above a limit."""

    def find(limit: int, *failures: str, most: int = 16) -> LargestBatch:
        file = tmp_path / "failures"
        file.write_text("\n".join(failures))
        monkeypatch.setenv("LIMIT", str(limit))
        monkeypatch.setenv("FAILURES", str(file))
        output = tmp_path / "gpus2.json"
        return find_largest_batch(search(most), output, stall_s=STALL_S, script=LIMITED)

    return find


def outcomes(largest: LargestBatch) -> list[tuple[int, str]]:
    return [(trial.micro_batch, trial.outcome) for trial in largest.trials]


def test_a_rank_that_runs_out_of_memory_bounds_the_search(find: Any, tmp_path: Path) -> None:
    largest = find(5, "memory")
    assert (largest.status, largest.micro_batch, largest.per_gpu_batch) == ("found", 5, 5)
    assert outcomes(largest) == [
        *((1, "fits"), (2, "fits"), (4, "fits")),
        *((8, "oom"), (6, "oom"), (5, "fits")),
    ]
    assert largest.measured is not None
    assert largest.measured.unit == "tokens"
    assert largest.measured.items_per_s == pytest.approx(2 * largest.measured.items_per_s_per_gpu)
    assert largest.measured.torch_reserved_bytes is None, "not measured on a CPU"
    assert list(tmp_path.iterdir()) == [tmp_path / "failures"], "no scratch folder is left"


def test_ranks_that_are_killed_or_hang_twice_bound_the_search(find: Any) -> None:
    largest = find(1, "killed", "hang", most=2)
    assert (largest.status, largest.micro_batch) == ("found", 1)
    assert outcomes(largest) == [(1, "fits"), (2, "killed"), (2, "stalled")]


def test_a_rank_that_is_killed_once_bounds_nothing() -> None:
    state = SearchState(search=search()).after(1, "fits").after(2, "killed")
    assert state.next_size() == 2
    assert state.after(2, "fits").next_size() == 4


def test_a_strategy_may_fit_at_no_batch(find: Any) -> None:
    largest = find(0, "memory")
    assert (largest.status, largest.micro_batch, largest.measured) == ("does_not_fit", None, None)
    assert "Tried to allocate 2.00 GiB" in largest.reason
    assert outcomes(largest) == [(1, "oom")]


def test_a_search_ends_at_the_largest_batch_that_is_tried(find: Any) -> None:
    largest = find(99, most=3)
    assert (largest.status, largest.micro_batch) == ("reached_most", 3)
    assert outcomes(largest) == [(1, "fits"), (2, "fits"), (3, "fits")]


def test_another_failure_is_no_result(find: Any) -> None:
    with pytest.raises(UserError, match=r"failed with a batch of 2, .*the wheels came off"):
        find(1, "wheels")


def test_the_time_limit_is_no_result(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"time limit.*cluster\.time_limit_minutes"):
        find_largest_batch(search(), tmp_path / "gpus2.json", limit_s=1.0)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("answer", range(1, 40))
def test_every_limit_is_found_with_few_trials(answer: int) -> None:
    state = SearchState(search=search(most=32))
    while (size := state.next_size()) is not None:
        state = state.after(size, "fits" if size <= answer else "oom")
    assert state.largest == min(answer, 32)
    assert len(state.trials) <= 10


def test_a_size_whose_window_does_not_fit_is_too_large() -> None:
    state = SearchState(search=search())
    for size in (1, 2, 4):
        state = state.after(size, "fits")
    state = state.after(8, "oom").after(6, "fits").after(7, "oom")
    assert (state.next_size(), state.largest) == (None, 6)
    state = state.after(6, "oom")
    assert (state.next_size(), state.largest) == (5, 4)
