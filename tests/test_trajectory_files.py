"""The gate's trajectories as files: what is written is read again, and nothing in them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shardmark.errors import UserError
from shardmark.parity.oracle import Trajectory
from shardmark.parity.trajectory_files import read_oracles, read_trajectories, write_plain
from shardmark.parity_result import Deviation

WEIGHTS = {"w": torch.tensor([1.0, 2.0])}
TRAJECTORY = Trajectory([1.0, 0.5], WEIGHTS, WEIGHTS, WEIGHTS)
FLOOR = Deviation(loss=1e-7, first_update=float("inf"), final_weights=1e-7)
KNOWN = {"trajectory": TRAJECTORY, "floor": FLOOR, "first_update_floor": 1e-7, "rounding": FLOOR}


class RunsWhenRead:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ranks2.pt"
    write_plain({"fp32": KNOWN, "real": {"summary": {"loss_0": 1.0}, "floor": 0.1}}, path)
    found = read_oracles(path)
    assert found["fp32"]["floor"] == found["fp32"]["rounding"] == FLOOR
    assert found["fp32"]["trajectory"].losses == [1.0, 0.5]
    assert torch.equal(found["fp32"]["trajectory"].final["w"], WEIGHTS["w"])
    assert found["real"] == {"summary": {"loss_0": 1.0}, "floor": 0.1}
    write_plain({"backend": "gloo", "bf16": TRAJECTORY, "real": None}, path)
    assert read_trajectories(path)["bf16"].losses == [1.0, 0.5]
    assert [file.name for file in tmp_path.iterdir()] == ["ranks2.pt"]


@pytest.mark.parametrize("read", [read_oracles, read_trajectories])
def test_code_in_a_file_does_not_run(tmp_path: Path, read: Any) -> None:
    path, mark = tmp_path / "ranks2.pt", tmp_path / "ran"
    torch.save({"fp32": RunsWhenRead(mark)}, path)
    with pytest.raises(UserError, match=f"{path}: is damaged, or holds more than tensors"):
        read(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [[], {"fp32": 1}, {"fp32": {"trajectory": 1, "floor": {}}}, {"fp32": {"floor": {}}}]
)
def test_an_oracle_of_another_shape_is_named(tmp_path: Path, content: object) -> None:
    path = tmp_path / "ranks2.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match="delete it to make it anew"):
        read_oracles(path)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_oracle_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "ranks2.pt"
    write_plain({"fp32": KNOWN, "real": None}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="delete it to make it anew"):
        read_oracles(path)
