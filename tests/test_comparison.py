"""The statistics: against hand-made cases, brute force, and what was planted."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from result_tables import GPU, OTHERS, cell_row, cells_table
from shardmark.errors import UserError
from shardmark.statistics import sign_flips, t_tests
from shardmark.statistics.comparison_rows import NOT_COMPARABLE
from shardmark.statistics.comparisons import compare
from shardmark.statistics.family import PairedFamily, Shift, agreeing_intervals, equivalence_p
from shardmark.statistics.findings import WITH_EXCLUDED, read_findings, write_findings
from shardmark.statistics.scaling import scaling_of
from shardmark.statistics.seeds_needed import seeds_needed, seeds_to_decide
from shardmark.statistics.stratified import Stratified

ROOT = Path(__file__).resolve().parents[1]
BOUND = math.log(1.02)


def primary(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["family"] == "primary"].set_index("strategy")


def noise(blocks: int, comparisons: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).normal(0.3, 1, (blocks, comparisons))


def brute_force_p(differences: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """Step-down max-t by the book: every flip, one step after the other."""
    blocks = len(differences)

    def t(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, Any]:
        found = []
        for column in values.T:
            own = column[~np.isnan(column)]
            found.append(abs(own.mean() / own.std(ddof=1) * math.sqrt(len(own))))
        return np.array(found)

    observed = t(differences)
    signs = itertools.product((1, -1), repeat=blocks)
    flipped = np.array([t(np.array(sign)[:, None] * differences) for sign in signs])
    left, p, largest = list(range(len(observed))), [0.0] * len(observed), 0.0
    while left:
        first = max(left, key=lambda place: observed[place])
        share = (flipped[:, left].max(axis=1) >= observed[first] - 1e-9).mean()
        largest = max(largest, float(share))
        p[first] = largest
        left.remove(first)
    return p


@pytest.mark.parametrize("comparisons", [1, 2, 5])
def test_the_joint_sign_flip_p_is_that_of_every_flip_and_step(comparisons: int) -> None:
    for seed in range(5):
        differences = noise(7, comparisons, seed)
        assert sign_flips.adjusted_p(differences) == pytest.approx(brute_force_p(differences))


def test_excluded_runs_count_in_findings_of_their_own(tmp_path: Path) -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.8}, range(4))
    cells.loc[(cells.strategy == "fsdp") & (cells.seed == 0), "excluded"] = "throttled"
    cells.loc[(cells.strategy == "fsdp2") & (cells.seed == 0), "excluded"] = "not training"
    write_findings(cells, "ddp", 0.02, tmp_path)
    pairs = [
        read_findings(folder).comparisons.query("family == 'primary'").set_index("strategy").n
        for folder in (tmp_path, tmp_path / WITH_EXCLUDED)
    ]
    assert [list(n[["fsdp", "fsdp2"]]) for n in pairs] == [[3, 3], [4, 3]]


def test_a_missing_block_is_left_out_of_its_own_t_alone() -> None:
    differences = noise(8, 3)
    differences[2, 0] = differences[5, 1] = differences[6, 1] = np.nan
    assert sign_flips.adjusted_p(differences) == pytest.approx(brute_force_p(differences))


def test_six_blocks_on_one_side_have_a_p_of_2_in_64_whatever_the_size_of_the_family() -> None:
    same = np.array([[0.010, 0.011, 0.012, 0.013, 0.014, 0.015]]).T
    assert sign_flips.adjusted_p(same).tolist() == [2 / 64]
    assert sign_flips.adjusted_p(same, two_sided=False).tolist() == [1 / 64]
    assert sign_flips.adjusted_p(-same, two_sided=False).tolist() == [1.0]
    twelve = same * np.arange(1, 13) + noise(6, 12) * 1e-4
    assert sign_flips.adjusted_p(twelve).tolist() == [2 / 64] * 12


def test_equal_differences_are_as_sure_as_can_be_and_no_difference_is_none() -> None:
    table = np.array([[0.5, 0.0]] * 6)
    assert sign_flips.adjusted_p(table, corrected=False).tolist() == [2 / 64, 1.0]
    assert sign_flips.half_widths(table, corrected=False).tolist() == [0.0, 0.0]


def test_beyond_14_blocks_flips_are_drawn_and_agree_with_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    differences = noise(15, 3) - 0.1
    drawn = sign_flips.adjusted_p(differences)
    assert (sign_flips.adjusted_p(differences) == drawn).all(), "the seed is fixed"
    sign_flips.flips.cache_clear()
    monkeypatch.setattr(sign_flips, "MOST_EXACT", 15)
    exact = sign_flips.adjusted_p(differences)
    sign_flips.flips.cache_clear()
    # Four standard errors of 20,000 flips.
    assert drawn == pytest.approx(exact, abs=4 * 0.5 / math.sqrt(20_000))
    assert ((exact > 0.001) & (exact < 0.9)).any(), "and not of p-values that are all extreme"


def test_many_families_at_once_are_each_judged_alone() -> None:
    families = np.stack([noise(6, 3, seed) for seed in range(4)])
    for function in (sign_flips.adjusted_p, sign_flips.half_widths, t_tests.paired_p):
        one_by_one = np.array([function(own) for own in families])
        assert function(families) == pytest.approx(one_by_one)


@pytest.mark.parametrize("blocks", [3, 4, 5, 6, 7, 9])
def test_p_and_interval_never_contradict_each_other(blocks: int) -> None:
    generator = np.random.default_rng(blocks)
    answers, cut, widened = set(), 0, 0
    for _ in range(300):
        family = PairedFamily(generator.normal(0.02, 0.02, (blocks, 4)), corrected=True)
        p, half = family.two_sided_p(), family.half_widths()
        low, high = agreeing_intervals(family.estimates, half, p)
        assert ((low <= family.estimates) & (family.estimates <= high)).all()
        excluded = (low >= 0) | (high <= 0)
        assert (excluded[p <= 0.05]).all()
        assert ((low <= 0) & (high >= 0))[p > 0.05].all()
        cut += int((np.abs(family.estimates) < half)[p <= 0.05].sum())
        widened += int((np.abs(family.estimates) > half)[p > 0.05].sum())
        answers |= set(p <= 0.05)
    assert answers == {True, False}
    assert cut, "step-down shows more than the simultaneous interval"
    assert widened if blocks == 6 else True, "the flips are few and p coarse"


def test_tier_2_is_the_paired_t_test_with_holm() -> None:
    differences = noise(4, 3)
    expected = [stats.ttest_1samp(column, 0).pvalue for column in differences.T]
    assert t_tests.paired_p(differences) == pytest.approx(expected)
    family = PairedFamily(differences, corrected=True)
    assert family.two_sided_p() == pytest.approx(t_tests.holm(np.array(expected)))
    error = differences.std(axis=0, ddof=1) / 2
    assert family.half_widths() == pytest.approx(stats.t.ppf(1 - 0.05 / 6, 3) * error)


def test_holm_gives_the_rejections_of_a_published_family() -> None:
    # Benjamini & Hochberg 1995, J. R. Statist. Soc. B 57, section 3.2: 15 endpoints, of which
    # Bonferroni's method rejects three; the fourth, 0.0095, is over 0.05 / 12 as well.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert (t_tests.holm(np.array(p)) <= 0.05).sum() == 3
    four = np.array([0.01, 0.04, 0.03, 0.005])
    assert t_tests.holm(four) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert t_tests.holm(four, 5) == pytest.approx([0.04, 0.09, 0.09, 0.025])


def test_a_strategy_with_few_blocks_is_likely_and_the_others_stay_established() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.9})
    cells.loc[(cells["strategy"] == "fsdp2") & (cells["seed"] > 3), "excluded"] = "oom"
    table = primary(compare(cells, "ddp"))
    assert table.loc["fsdp", ["n", "tier", "method"]].tolist() == [9, "established", "sign-flip"]
    assert table.loc["fsdp2", ["n", "tier", "method"]].tolist() == [4, "likely", "paired-t"]
    assert table.loc["fsdp", "p_adjusted"] == 2 / 512


def test_one_and_two_runs_have_a_ratio_and_no_more() -> None:
    for seeds in (1, 2):
        row = primary(compare(cells_table({"ddp": 1.0, "fsdp": 0.5}, range(seeds)), "ddp")).iloc[0]
        assert row["ratio"] == pytest.approx(0.5, rel=0.02)
        assert row[["verdict", "tier", "method", "reason"]].tolist() == [
            *("open", "open", "none", "few_runs"),
        ]
        assert row[["ci_low", "ci_high", "p_adjusted", "seeds_needed"]].isna().all()


def test_the_ratio_is_the_geometric_mean_of_paired_ratios() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.9}, sd=0.1)
    sides = cells.pivot(index="seed", columns="strategy", values="items_per_s")
    row = primary(compare(cells, "ddp")).loc["fsdp"]
    assert row["ratio"] == pytest.approx(stats.gmean(sides["fsdp"] / sides["ddp"]))


@pytest.mark.parametrize("seeds", [4, 9])
def test_the_order_of_cells_and_the_unit_change_nothing(seeds: int) -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.995, "fsdp2": 0.97}, range(seeds))
    table = primary(compare(cells, "ddp"))
    shuffled = cells.sample(frac=1, random_state=1)
    other = cells.assign(items_per_s=cells["items_per_s"] / 1000)
    figures = ["ratio", "ci_low", "ci_high", "p_adjusted", "p_equivalence"]
    for changed in (shuffled, other):
        again = primary(compare(changed, "ddp")).loc[table.index]
        assert again[figures].to_numpy() == pytest.approx(table[figures].to_numpy())
        assert (again["verdict"] == table["verdict"]).all()


def test_equivalence_is_the_larger_of_two_one_sided_tests() -> None:
    for seed, blocks in itertools.product(range(40), (4, 8)):
        differences = np.random.default_rng(seed).normal(0.01, 0.012, (blocks, 1))
        family = PairedFamily(differences, corrected=True)
        ones = np.ones(1)
        sides = [
            family.one_sided_p(Shift(ones, -BOUND * ones), corrected=False),
            family.one_sided_p(Shift(-ones, BOUND * ones), corrected=False),
        ]
        assert equivalence_p(family, 0.02) == pytest.approx(max(sides))


def test_a_planted_slow_down_of_3_percent_is_found_with_nine_seeds() -> None:
    covered = 0
    for seed in range(20):
        table = compare(cells_table({"ddp": 1.0, "fsdp": 0.97}, noise=seed), "ddp")
        row = primary(table).loc["fsdp"]
        assert row[["verdict", "tier"]].tolist() == ["slower", "established"]
        assert row["paired"]
        # Within four standard errors, each 0.5 % * sqrt(2 / 9) = 0.24 %.
        assert row["ratio"] == pytest.approx(0.97, abs=0.0097)
        assert row["p_adjusted"] == pytest.approx(2 / 512)
        covered += row["ci_low"] < 0.97 < row["ci_high"]
    # 19 are expected; under 16 has a chance of 0.003.
    assert covered >= 16


def test_seven_planted_slow_downs_are_all_established_with_six_seeds() -> None:
    ratios = {"ddp": 1.0} | dict.fromkeys(OTHERS, 0.95)
    table = primary(compare(cells_table(ratios, range(6)), "ddp"))
    assert set(table["verdict"]) == {"slower"}
    assert set(table["tier"]) == {"established"}
    five = primary(compare(cells_table(ratios, range(5)), "ddp"))
    assert set(five["tier"]) == {"likely"}


def test_a_planted_difference_of_nothing_is_called_equivalent() -> None:
    for seed in range(20):
        table = compare(cells_table({"ddp": 1.0, "fsdp": 1.0}, noise=seed), "ddp")
        row = primary(table).loc["fsdp"]
        assert row["verdict"] == "equivalent"
        assert row["p_equivalence"] <= 0.05


def test_a_difference_smaller_than_the_margin_is_equivalence_and_says_so() -> None:
    row = primary(compare(cells_table({"ddp": 1.0, "fsdp": 0.99}, sd=0.001), "ddp")).loc["fsdp"]
    assert row["verdict"] == "equivalent"
    assert row["reason"] == "within_margin"
    assert row["ci_high"] < 1


def test_noise_leaves_a_comparison_open_and_says_how_many_seeds_would_settle_it() -> None:
    table = compare(cells_table({"ddp": 1.0, "fsdp": 1.01}, sd=0.02), "ddp")
    row = primary(table).loc["fsdp"]
    assert row[["verdict", "tier"]].tolist() == ["open", "open"]
    assert row["seeds_needed"] > 9


def test_the_seeds_said_to_settle_a_comparison_do_so_four_times_of_five() -> None:
    generator = np.random.default_rng(11)
    pilot = 0.01 + 0.02 * stats.zscore(generator.normal(size=9), ddof=1)
    needed = seeds_needed(pilot.mean(), 0.02, 9, 0.02)
    assert needed is not None
    settled = 0
    for _ in range(400):
        # At the upper limit of the spread, which is what the number is meant to withstand.
        spread = 0.02 * math.sqrt(8 / stats.chi2.ppf(0.2, 8))
        later = generator.normal(pilot.mean(), spread, (needed, 1))
        shown = t_tests.paired_p(later) <= 0.05
        side = np.sign(later.mean())
        equal = t_tests.paired_p(BOUND - side * later, two_sided=False) <= 0.05
        settled += bool(shown) or bool(equal)
    # Two standard errors of 400 are 0.04.
    assert settled / 400 == pytest.approx(0.8, abs=0.05)
    assert seeds_needed(0.1, 0.01, 2, 0.02) is None, "two runs do not tell the spread"
    assert seeds_to_decide(1e-5, 0.05, 9) is None, "more than 200"


def test_a_baseline_in_disguise_changes_no_verdict() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.019}, sd=0.002)
    one = primary(compare(cells, "ddp")).loc["fsdp"]
    other = primary(compare(cells, "fsdp")).loc["ddp"]
    assert one["verdict"] == other["verdict"] == "equivalent"
    assert one["ratio"] * other["ratio"] == pytest.approx(1)
    assert one["ci_low"] * other["ci_high"] == pytest.approx(1)
    assert one["p_equivalence"] == other["p_equivalence"]


def test_an_unmatched_seed_changes_nothing() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.99}, range(3), sd=0.005)
    extra = pd.DataFrame([cell_row("fsdp", 7, 5000.0), cell_row("fsdp", 8, 5000.0)])
    before = compare(cells, "ddp")
    after = compare(pd.concat([cells, extra], ignore_index=True), "ddp")
    pd.testing.assert_frame_equal(before, after)


def on_nodes(cells: pd.DataFrame, seed: int = 0, nodes: int = 3) -> pd.DataFrame:
    """Every run on a node by chance, which differ by several per cent."""
    generator = np.random.default_rng(seed)
    chosen = generator.integers(nodes, size=len(cells))
    speeds = np.exp(generator.normal(0, 0.08, nodes))
    return cells.assign(
        device_uuids=[GPU.format(node) for node in chosen],
        items_per_s=cells["items_per_s"] * speeds[chosen],
    )


def test_runs_by_chance_on_nodes_that_differ_are_compared_within_each_node() -> None:
    for seed in range(10):
        cells = on_nodes(cells_table({"ddp": 1.0, "fsdp": 0.95, "fsdp2": 1.0}, range(12)), seed)
        table = primary(compare(cells, "ddp"))
        assert not table["paired"].any()
        assert set(table["method"]) == {"permutation-and-welch"}
        assert table.loc["fsdp", "verdict"] == "slower"
        assert table.loc["fsdp", "ratio"] == pytest.approx(0.95, abs=0.01), "nodes cancel"
        assert table.loc["fsdp2", "verdict"] in ("equivalent", "open")


def test_one_run_moved_to_another_device_does_not_unpair_the_family() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97, "fsdp2": 0.97})
    moved = (cells["strategy"] == "fsdp") & (cells["seed"] == 4)
    cells.loc[moved, ["device_uuids", "items_per_s"]] = [GPU.format(9), 1.0]
    table = primary(compare(cells, "ddp"))
    assert table["paired"].all()
    assert table["n"].to_dict() == {"fsdp": 8, "fsdp2": 9}
    assert set(table["verdict"]) == {"slower"}


def test_permutations_within_nodes_are_those_of_every_labelling() -> None:
    first = {"a": [1.0, 1.2, 0.9], "b": [2.1, 2.0], "d": [5.0]}
    second = {"a": [1.1, 1.4], "b": [2.3, 2.2, 2.6], "c": [9.0]}
    item = Stratified(first, second)
    assert (item.n, item.n_baseline) == (5, 5), "a node of one side says nothing"
    means = [np.mean(first[node]) - np.mean(second[node]) for node in "ab"]
    assert item.estimate == pytest.approx(np.mean(means))
    pooled = [np.array(first[node] + second[node]) for node in "ab"]
    sums = [
        sum(pooled[0][list(one)]) + sum(pooled[1][list(other)])
        for one in itertools.combinations(range(5), 3)
        for other in itertools.combinations(range(5), 2)
    ]
    centre = 3 * pooled[0].mean() + 2 * pooled[1].mean()
    far = np.abs(np.array(sums) - centre)
    expected = (far >= abs(sum(first["a"]) + sum(first["b"]) - centre) - 1e-9).mean()
    assert item.permutation_p(two_sided=True) == pytest.approx(expected)


def test_on_one_node_the_larger_p_of_welch_and_student_counts() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(0, 1, 7), generator.normal(0.5, 3, 5)
    item = Stratified({"a": list(first)}, {"a": list(second)})
    tests = [stats.ttest_ind(first, second, equal_var=equal) for equal in (False, True)]
    assert item.t_p(two_sided=True) == pytest.approx(max(test.pvalue for test in tests))
    assert [degrees for _, degrees in item.errors] == pytest.approx([test.df for test in tests])
    less = [
        stats.ttest_ind(first - 0.2, second, equal_var=equal, alternative="less").pvalue
        for equal in (False, True)
    ]
    assert item.t_p(-1, 0.2, two_sided=False) == pytest.approx(max(less))


def test_one_run_of_each_on_every_node_is_the_paired_t_test() -> None:
    sides = noise(2, 6)
    item = Stratified(*({f"n{node}": [value] for node, value in enumerate(side)} for side in sides))
    expected = stats.ttest_rel(*sides)
    assert item.t_p(two_sided=True) == pytest.approx(expected.pvalue)
    assert [degrees for _, degrees in item.errors] == [5]


def test_strategies_on_devices_of_their_own_are_not_comparable() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells["device_uuids"] = cells["strategy"].map({"ddp": GPU.format(0), "fsdp": GPU.format(1)})
    row = primary(compare(cells, "ddp")).loc["fsdp"]
    assert row["verdict"] == NOT_COMPARABLE
    assert row["reason"] == "devices_never_met"
    assert math.isnan(row["ratio"])
    unknown = cells.assign(device_uuids="", hosts="")
    assert primary(compare(unknown, "ddp")).loc["fsdp", "reason"] == "devices_unknown"


@pytest.mark.parametrize(
    ("column", "value", "values"),
    [
        ("torch", "2.16.0", "2.15.0 / 2.16.0"),
        ("driver", "580.2", "570.1 / 580.2"),
        ("code_sha256", "other code of fsdp", "code of fsdp / other code o"),
        ("device_names", "NVIDIA H100", "NVIDIA H100 / NVIDIA H200"),
        ("precision", "fp32", "bf16 / fp32"),
    ],
)
def test_mixed_versions_are_refused(column: str, value: str, values: str) -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97, "fsdp2": 0.97})
    one = (cells["strategy"] == "fsdp") & (cells["seed"] == 3)
    cells.loc[one, column] = value
    table = primary(compare(cells, "ddp"))
    assert table.loc["fsdp", "verdict"] == NOT_COMPARABLE
    assert table.loc["fsdp", "reason"] == f"mixed_{column}"
    assert table.loc["fsdp", "reason_values"] == values
    assert table.loc["fsdp2", "verdict"] == "slower"


def test_a_framework_of_two_versions_matters_to_its_own_strategies_only() -> None:
    cells = cells_table({"ddp": 1.0, "deepspeed_zero1": 0.9})
    zero1 = cells["strategy"] == "deepspeed_zero1"
    cells.loc[zero1, "packages"] = "deepspeed 0.19.8"
    assert primary(compare(cells, "ddp")).loc["deepspeed_zero1", "verdict"] == "slower"
    cells.loc[zero1 & (cells["seed"] == 0), "packages"] = "deepspeed 0.20.0"
    assert primary(compare(cells, "ddp")).loc["deepspeed_zero1", "verdict"] == NOT_COMPARABLE


def test_commits_of_the_same_code_compare_and_others_do_not() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells.loc[cells["strategy"] == "fsdp", "git_commit"] = "b" * 40
    refused = primary(compare(cells, "ddp")).loc["fsdp"]
    assert refused["verdict"] == NOT_COMPARABLE
    assert refused["reason"] == "mixed_git_commit"
    assert refused["reason_values"] == "aaaaaaaaaaaa / bbbbbbbbbbbb"
    # A cell of ddp at the later commit shows that the shared code had not changed.
    later = cell_row("ddp", 9, 1e4, git_commit="b" * 40)
    cells = pd.concat([cells, pd.DataFrame([later])], ignore_index=True)
    assert primary(compare(cells, "ddp")).loc["fsdp", "verdict"] == "slower"


def test_excluded_cells_take_no_part() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97}, range(12))
    of_it = cells["strategy"] == "fsdp"
    cells.loc[of_it & (cells["seed"] == 0), ["excluded", "items_per_s"]] = ["oom", np.nan]
    cells.loc[of_it & (cells["seed"] == 1), ["excluded", "items_per_s"]] = ["throttled", 1.0]
    cells.loc[of_it & (cells["seed"] == 2), "excluded"] = "parity missing"
    row = primary(compare(cells, "ddp")).loc["fsdp"]
    assert row["n"] == 9
    assert row["ratio"] == pytest.approx(0.97, abs=0.0097)


def test_a_baseline_that_did_not_run_leaves_nothing_to_compare() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells.loc[cells["strategy"] == "ddp", "excluded"] = "oom"
    row = primary(compare(cells, "ddp")).loc["fsdp"]
    assert row["verdict"] == NOT_COMPARABLE
    assert row[["reason", "reason_values"]].tolist() == ["no_usable_cell", "ddp"]
    assert math.isnan(row["ratio"])
    absent = primary(compare(cells, "dp")).loc["fsdp"]
    assert absent[["reason", "reason_values"]].tolist() == ["no_cell", "dp"]


def test_what_was_not_measured_is_empty_and_the_rest_is_compared() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97}, energy_per_item_j=None)
    table = compare(cells, "ddp").set_index("metric")
    assert table.loc["energy_per_item_j", "reason"] == "not_measured"
    assert table.loc["items_per_s", "verdict"] == "slower"


def test_other_metrics_are_exploratory_and_exact_with_nothing_but_ties() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells.loc[cells["strategy"] == "fsdp", "memory_used_peak_bytes"] //= 2
    table = compare(cells, "ddp").set_index("metric")
    memory = table.loc["memory_used_peak_bytes"]
    assert memory["family"] == "exploratory"
    assert memory["verdict"] == "lower"
    assert memory["ci_low"] == memory["ci_high"] == pytest.approx(0.5)
    assert memory["p_adjusted"] == 2 / 512, "not corrected"
    cells = cells_table({"ddp": 1.0} | dict.fromkeys(OTHERS, 0.97), range(6))
    cells.loc[cells["strategy"] != "ddp", "memory_used_peak_bytes"] //= 2
    table = compare(cells, "ddp").set_index("metric")
    assert set(table.loc["memory_used_peak_bytes", "verdict"]) == {"lower"}


def test_groups_are_families_of_their_own_and_regimes_never_mix() -> None:
    weak = cells_table({"ddp": 1.0, "fsdp": 0.97})
    strong = cells_table({"ddp": 1.0, "fsdp": 0.90}, scaling="strong", noise=1)
    strong["workload"] = "other"
    more = cells_table({"ddp": 1.9, "fsdp": 1.8}, gpus=2, noise=2)
    table = primary(compare(pd.concat([weak, strong, more]), "ddp")).reset_index()
    assert list(table["scaling"] + table["gpus"].astype(str)) == ["strong1", "weak1", "weak2"]
    assert (table["p_adjusted"] == 2 / 512).all()


def test_a_cell_that_stands_twice_is_an_error() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    with pytest.raises(UserError, match="w fsdp gpus1 seed8: is in the table more than once"):
        compare(pd.concat([cells, cells.tail(1)]), "ddp")


def at_two_counts(scaling: str, devices: int, sd: float = 0.005) -> pd.DataFrame:
    """DDP on one GPU of several, by turns, and on all four."""
    tables = []
    fixed, free = "global_batch_size", "per_gpu_batch_size"
    if scaling == "weak":
        fixed, free = free, fixed
    for gpus, ratio in ((1, 1.0), (4, 3.6)):
        batch = {fixed: 512, free: 512 * gpus if scaling == "weak" else 512 // gpus}
        table = cells_table({"ddp": ratio}, noise=gpus, sd=sd, scaling=scaling, gpus=gpus, **batch)
        uuids = [GPU.format(seed % devices) for seed in table["seed"]]
        tables.append(table.assign(device_uuids=uuids if gpus == 1 else "all four"))
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize("scaling", ["strong", "weak"])
def test_speed_up_and_efficiency_are_of_geometric_means_and_have_intervals(scaling: str) -> None:
    found = scaling_of(at_two_counts(scaling, devices=9)).set_index("gpus")
    row = found.loc[4]
    assert row["speedup"] == pytest.approx(3.6, rel=0.01)
    assert row["efficiency"] == pytest.approx(0.9, rel=0.01)
    assert row["efficiency_low"] < 0.9 < row["efficiency_high"]
    assert row["efficiency_high"] - row["efficiency_low"] < 0.02
    assert found.loc[1, "speedup"] == 1


def test_the_interval_of_an_efficiency_includes_how_much_the_devices_differ() -> None:
    cells = at_two_counts("weak", devices=3)
    one = cells["gpus"] == 1
    speeds = {GPU.format(0): 0.95, GPU.format(1): 1.0, GPU.format(2): 1.05}
    cells.loc[one, "items_per_s"] *= cells[one]["device_uuids"].map(speeds)
    row = scaling_of(cells).set_index("gpus").loc[4]
    # Three devices, 5 % apart: their mean is known to 4.3 * 5 % / sqrt(3) = 12 %.
    assert row["efficiency_low"] == pytest.approx(0.9 * 0.88, abs=0.015)
    assert row["efficiency_high"] == pytest.approx(0.9 * 1.13, abs=0.015)
    alone = scaling_of(at_two_counts("weak", devices=1)).set_index("gpus").loc[4]
    assert alone["reason"] == "one_reference_device"
    assert math.isnan(alone["efficiency_low"])
    assert alone["efficiency"] == pytest.approx(0.9, rel=0.01)


def test_no_speed_up_is_given_over_another_batch_or_version_and_no_interval_from_one_run() -> None:
    cells = at_two_counts("weak", devices=3)
    few = scaling_of(cells[(cells["gpus"] == 1) | (cells["seed"] == 0)]).set_index("gpus").loc[4]
    assert few["speedup"] == pytest.approx(3.6, rel=0.02)
    assert few["reason"] == "few_runs"
    two = scaling_of(cells[(cells["gpus"] == 1) | (cells["seed"] < 2)]).set_index("gpus").loc[4]
    assert two["reason"] == "few_runs"
    for column, value in (("per_gpu_batch_size", 256), ("torch", "2.16.0")):
        changed = cells.assign(**{column: cells[column].where(cells["gpus"] == 1, value)})
        row = scaling_of(changed).set_index("gpus").loc[4]
        assert math.isnan(row["speedup"])
        assert row["reason"] == f"mixed_{column}"


def test_the_statistics_do_not_import_torch() -> None:
    statistics = ("comparisons", "scaling", "verdict", "set_comparison")
    modules = (*(f"statistics.{name}" for name in statistics), "results.merge")
    code = "import sys\n" + "".join(f"import shardmark.{name}\n" for name in modules)
    code += "sys.exit('torch' in sys.modules)"
    scripts = ROOT / "workflow/scripts"
    subprocess.run([sys.executable, "-c", code], cwd=scripts, check=True)
