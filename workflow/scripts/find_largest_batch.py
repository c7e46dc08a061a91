"""Find the largest batch that fits for one strategy and GPU count, and write it as JSON.

The ranks try sizes in one process group. If a size does not fit, they end, and this script starts
new ones that go on with a smaller size. The exit status is 0 even if no batch fits, because that is
a result. It is 1 if there is no result.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from shardmark.cells import BatchSearch, batch_search
from shardmark.codebase import SCRIPTS
from shardmark.command import one_message
from shardmark.config.saved import read_config
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.largest_batch import LargestBatch, SearchState, TrialOutcome, batch_result
from shardmark.launching.endings import HUNG, Killed, find_failure
from shardmark.launching.launch import Ended, launch
from shardmark.launching.scratch import empty_scratch, scratch_folder
from shardmark.strategies import spec_of

# torch's message if cuDNN finds no kernel whose workspace fits. If a smaller batch ran, there are
# kernels for the GPU and the operation.
NO_KERNEL = "unable to find an engine to execute this computation"


def find_largest_batch(
    search: BatchSearch,
    output: Path,
    *,
    limit_s: float = math.inf,
    stall_s: float | None = None,
    script: Path | None = None,
) -> LargestBatch:
    """Search the largest batch and measure the throughput there.

    Args:
        search: what to search.
        output: where the result will be written; the scratch folder is created beside it.
        limit_s: give up after so many seconds.
        stall_s: end the processes if no rank makes progress for so many seconds.
        script: a script to run instead of the strategy's own; tests pass one that fails.

    Raises:
        UserError: if there is no result: the time is up, or something other than a lack of memory
            ended the processes.
    """
    begin, state = time.monotonic(), SearchState(search=search)
    with scratch_folder(output) as scratch:
        while state.measured is None:
            empty_scratch(scratch)
            file = scratch / "search.json"
            write_text(file, state.model_dump_json(by_alias=True))
            left_s = limit_s - (time.monotonic() - begin)
            ended = launch(
                script or SCRIPTS / spec_of(search.cell.base).script,
                ["--largest-batch", str(file), "--scratch", str(scratch)],
                search.cell,
                scratch,
                limit_s=max(0.0, left_s) if math.isfinite(limit_s) else None,
                stall_s=stall_s,
            )
            state = SearchState.model_validate_json(file.read_text())
            failed = why_not_fitting(state, ended)
            if failed is None:
                if state.measured is None:
                    raise UserError(
                        f"{search.title}: its processes ended with exit code 0 before the search "
                        "was over; code of the training or strategy ended them"
                    )
                continue
            outcome, reason = failed
            size = state.trying or search.least
            print(f"[{search.title}] {size} does not fit ({outcome}): {reason}", flush=True)
            state = state.after(size, outcome)
            if state.too_large == search.least:
                return batch_result(
                    search,
                    status="does_not_fit",
                    reason=reason,
                    trials=list(state.trials),
                )
    largest = state.largest
    assert largest is not None
    return batch_result(
        search,
        status="found" if state.too_large else "reached_most",
        micro_batch=largest,
        per_gpu_batch=largest * search.cell.definition.batch.accumulate,
        trials=list(state.trials),
        measured=state.measured,
    )


def why_not_fitting(state: SearchState, ended: Ended) -> tuple[TrialOutcome, str] | None:
    """Return how the processes ended if their batch was too large; None if they ended well.

    Raises:
        UserError: if something else ended them.
    """
    search = state.search
    try:
        failed = find_failure(search.cell, ended)
    except Killed as error:
        if state.trying is None:
            raise
        return "killed", str(error)
    if failed is None:
        return None
    status, failure = failed
    # Before the first size, only a lack of memory says something about all sizes.
    if status == "oom" and (state.trying or state.largest is None):
        return "oom", failure.exception
    if NO_KERNEL in failure.exception and state.largest:
        return "oom", failure.exception
    if failure.exception.startswith(HUNG) and state.trying:
        return "stalled", failure.exception
    if status == "oom":
        raise UserError(
            f"{search.title}: memory ran out before the first batch, although {state.largest} had "
            "fitted: something else may use the GPU. This is no result; give the same command again"
        )
    size = f"with a batch of {state.trying}" if state.trying else "before the first batch"
    if status == "timeout":
        raise UserError(
            f"{search.title}: the time limit ended the search {size}; raise "
            "cluster.time_limit_minutes or lower largest_batch.most"
        )
    raise UserError(
        f"{search.title}: failed {size}, and not for lack of memory: {failure.exception}. This is "
        "no result; mend that, or keep largest_batch.most below that batch, and give the same "
        "command again"
    )


@one_message
def main() -> None:
    """Run the search that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    parser.add_argument("--workload", required=True, help="the search's, and so on")
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument(
        "--time-limit-minutes", type=float, default=math.inf, help="give up after this time"
    )
    parser.add_argument(
        "--stall-limit-minutes", type=float, help="end processes after this time without progress"
    )
    arguments = parser.parse_args()
    search = batch_search(arguments.config, arguments.workload, arguments.strategy, arguments.gpus)
    stall = arguments.stall_limit_minutes
    largest = find_largest_batch(
        search,
        arguments.output,
        limit_s=arguments.time_limit_minutes * 60,
        stall_s=stall * 60 if stall else None,
    )
    write_text(arguments.output, largest.model_dump_json(indent=1, by_alias=True))
    print(f"[{search.title}] {largest.status} {largest.micro_batch or ''}", flush=True)


if __name__ == "__main__":
    main()
