"""The statistics: against published examples, brute force, and what was planted."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from result_tables import GPU, OTHERS, cell_row, cells_table
from shardmark.errors import UserError
from shardmark.statistics.comparisons import CANNOT, NOT_COMPARABLE, compare
from shardmark.statistics.family import holm, pairs_for_significance
from shardmark.statistics.rank_sum import RankSum
from shardmark.statistics.scaling import scaling_of
from shardmark.statistics.seeds_needed import seeds_needed
from shardmark.statistics.shift import (
    ShiftTest,
    equivalence_p,
    interval,
    p_greater,
    p_less,
    two_sided_p,
)
from shardmark.statistics.signed_rank import SignedRank

ROOT = Path(__file__).resolve().parents[1]
# Darwin's maize, self- against cross-fertilised, as in the documentation of scipy.stats.wilcoxon.
MAIZE = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]
# Hollander & Wolfe, Nonparametric Statistical Methods (1973): Hamilton depression factor IV before
# and after a tranquilliser (p. 29, Table 3.1), and the permeability of human chorioamnion at term
# and at 12 to 26 weeks (p. 69, Table 4.1).
BEFORE = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
AFTER = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
TERM = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46]
EARLY = [1.15, 0.88, 0.90, 0.74, 1.21]
# With zeros, ties of one sign and of both.
TIED = [
    [0.0, 0.0, 1.0, 1.0, 2.0, -1.0],
    [0.0, 3.0, 3.0, 3.0, 3.0, 3.0],
    [1.0, 1.0, 1.0],
    [0.0, 0.0],
    [-2.0],
]


def primary(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["family"] == "primary"].set_index("strategy")


def test_paired_test_gives_the_documented_p_of_darwins_maize() -> None:
    test = SignedRank(MAIZE)
    assert two_sided_p(test) == pytest.approx(0.041259765625, abs=1e-12)
    assert p_greater(test) == pytest.approx(0.0206298828125, abs=1e-12)


def test_paired_estimate_interval_and_p_are_those_of_hollander_and_wolfe() -> None:
    test = SignedRank(np.subtract(AFTER, BEFORE))
    assert test.estimate == pytest.approx(-0.46, abs=1e-9)
    assert p_less(test) == pytest.approx(10 / 512)
    # Their interval, of 96.1 % exactly; no other lies between that and 95 %.
    assert interval(test) == pytest.approx((-0.786, -0.010), abs=1e-9)


def test_unpaired_estimate_interval_and_p_are_those_of_hollander_and_wolfe() -> None:
    test = RankSum(EARLY, TERM)
    assert p_less(test) == pytest.approx(0.1272, abs=5e-5)
    assert test.estimate == pytest.approx(-0.305, abs=1e-9)
    assert interval(test) == pytest.approx((-0.76, 0.15), abs=1e-9)


def test_unpaired_test_gives_the_documented_p_of_scipys_example() -> None:
    # Age at the onset of diabetes, in the documentation of scipy.stats.mannwhitneyu.
    assert two_sided_p(RankSum([19, 22, 16, 29, 24], [20, 11, 17, 12])) == pytest.approx(1 / 9)


def test_holm_gives_the_rejections_of_a_published_family() -> None:
    # Benjamini & Hochberg 1995, J. R. Statist. Soc. B 57, section 3.2: 15 endpoints, of which
    # Bonferroni's method rejects three; the fourth, 0.0095, is over 0.05 / 12 as well.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert (holm(p) <= 0.05).sum() == 3
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize("differences", TIED)
def test_with_ties_and_zeros_the_paired_tails_are_those_of_all_sign_flips(
    differences: list[float],
) -> None:
    ranks = stats.rankdata(np.abs(differences))
    signs = np.sign(differences)
    seen = ranks[signs > 0].sum()
    sums = np.array(
        [
            ranks[(np.array(flip) * np.abs(signs)) > 0].sum()
            for flip in itertools.product((-1, 1), repeat=len(differences))
        ]
    )
    expected = (np.mean(sums <= seen), np.mean(sums >= seen))
    assert SignedRank(differences).tails(0.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("first", "second"), [([1, 1, 2], [1, 3, 3, 0]), ([5, 5], [5, 5]), ([2], [1, 1, 1])]
)
def test_with_ties_the_unpaired_tails_are_those_of_all_choices(
    first: list[float], second: list[float]
) -> None:
    ranks = stats.rankdata([*first, *second])
    seen = ranks[: len(first)].sum()
    sums = np.array([sum(choice) for choice in itertools.combinations(ranks, len(first))])
    expected = (np.mean(sums <= seen), np.mean(sums >= seen))
    assert RankSum(first, second).tails(0.0) == pytest.approx(expected)


def samples_of_every_kind() -> list[ShiftTest]:
    generator = np.random.default_rng(5)
    # Coarse, so that there are ties, and shifts at which the statistic jumps.
    coarse = [np.round(generator.normal(0.4, 1, n)) for n in (6, 7, 9, 12)]
    fine = [generator.normal(0.4, 1, n) for n in (3, 6, 9, 15)]
    paired: list[ShiftTest] = [SignedRank(values) for values in (*coarse, *fine, *TIED)]
    sides = itertools.pairwise([*coarse, *fine])
    return [*paired, *(RankSum(first, second) for first, second in sides)]


@pytest.mark.parametrize("test", samples_of_every_kind())
def test_the_interval_holds_the_shifts_that_the_test_does_not_reject(test: ShiftTest) -> None:
    low, high = interval(test)
    points = test.breakpoints
    beyond = [points[0] - 1, points[-1] + 1]
    for shift in {0.0, *points, *((points[1:] + points[:-1]) / 2), *beyond}:
        assert (two_sided_p(test, shift) > 0.05) == (low <= shift <= high), shift
    assert low <= test.estimate <= high


def test_equivalence_is_that_the_90_percent_interval_lies_within_the_margin() -> None:
    generator = np.random.default_rng(7)
    outcomes = set()
    for _ in range(200):
        test = SignedRank(generator.normal(0.012, 0.012, 9))
        low, high = interval(test, 0.90)
        within = -math.log(1.02) < low and high < math.log(1.02)
        assert (equivalence_p(test, 0.02) <= 0.05) == within
        outcomes.add(within)
    assert outcomes == {True, False}


def test_seven_comparisons_need_nine_pairs_and_one_needs_six() -> None:
    assert pairs_for_significance(7) == 9
    assert pairs_for_significance(1) == 6
    ratios = {"ddp": 1.0} | dict.fromkeys(OTHERS, 1.2)
    eight = primary(compare(cells_table(ratios, range(8)), "ddp"))
    assert set(eight["verdict"]) == {CANNOT}
    assert eight["p"].unique() == pytest.approx([2 / 256])
    assert eight["reason"].str.contains("at least 9 seeds").all()
    nine = primary(compare(cells_table(ratios, range(9)), "ddp"))
    assert set(nine["verdict"]) == {"faster"}


def test_three_pairs_have_no_interval_and_cannot_be_significant() -> None:
    test = SignedRank([0.03, 0.031, 0.032])
    assert two_sided_p(test) == 0.25
    assert interval(test) == (-math.inf, math.inf)
    assert two_sided_p(SignedRank([0.03, 0.031, 0.032, 0.033, 0.034])) == 0.0625


def test_a_planted_slow_down_of_3_percent_is_found_with_nine_seeds() -> None:
    covered = 0
    for noise in range(20):
        table = compare(cells_table({"ddp": 1.0, "fsdp": 0.97}, noise=noise), "ddp")
        row = primary(table).loc["fsdp"]
        assert row["verdict"] == "slower"
        assert row["paired"]
        # Within four standard errors, each 0.5 % * sqrt(2 / 9) = 0.24 %.
        assert row["ratio"] == pytest.approx(0.97, abs=0.0097)
        assert row["p_holm"] == pytest.approx(2 / 512)
        covered += row["ci_low"] < 0.97 < row["ci_high"]
    # 19 are expected; under 16 has a chance of 0.003.
    assert covered >= 16


def test_a_planted_difference_of_nothing_is_called_equivalent() -> None:
    for noise in range(20):
        table = compare(cells_table({"ddp": 1.0, "fsdp": 1.0}, noise=noise), "ddp")
        row = primary(table).loc["fsdp"]
        assert row["verdict"] == "equivalent"
        assert row["p_equivalence"] <= 0.05


def test_noise_leaves_a_comparison_open_and_says_how_many_seeds_would_settle_it() -> None:
    table = compare(cells_table({"ddp": 1.0, "fsdp": 1.01}, sd=0.02), "ddp")
    row = primary(table).loc["fsdp"]
    assert row["verdict"] == "inconclusive"
    assert row["seeds_needed"] > 9
    assert "further runs scatter like these" in row["reason"]


def test_the_seeds_said_to_settle_a_comparison_do_so_four_times_of_five() -> None:
    generator = np.random.default_rng(11)
    pilot = SignedRank(0.01 + 0.02 * stats.zscore(generator.normal(size=9), ddof=1))
    needed = seeds_needed(pilot, 0.02)
    assert needed is not None
    settled = 0
    for _ in range(400):
        # At the upper limit of the spread, which is what the number is meant to withstand.
        spread = 0.02 * math.sqrt(8 / stats.chi2.ppf(0.2, 8))
        later = SignedRank(generator.normal(pilot.estimate, spread, needed))
        settled += two_sided_p(later) <= 0.05 or equivalence_p(later, 0.02) <= 0.05
    print(f"{needed} seeds settle it in {settled / 400:.2f} of the cases")
    # Two standard errors of 400 are 0.04.
    assert settled / 400 == pytest.approx(0.8, abs=0.05)
    assert seeds_needed(SignedRank([0.1, 0.1]), 0.02) is None


def test_a_baseline_in_disguise_changes_no_verdict() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.019}, sd=0.002)
    one = primary(compare(cells, "ddp")).loc["fsdp"]
    other = primary(compare(cells, "fsdp")).loc["ddp"]
    assert one["verdict"] == other["verdict"] == "equivalent"
    assert one["ratio"] * other["ratio"] == pytest.approx(1)
    assert one["p_equivalence"] == other["p_equivalence"]
    # 0.98 is not 1 / 1.02: one side's 2 % slower must be the other's 2 % faster.
    assert equivalence_p(SignedRank([-0.02] * 9), 0.02) == equivalence_p(
        SignedRank([0.02] * 9), 0.02
    )
    assert equivalence_p(SignedRank([-0.02] * 9), 0.02) > 0.9


def test_runs_of_a_seed_on_different_devices_are_not_pairs() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells["device_uuids"] = [GPU.format((7 * index) % 5) for index in range(len(cells))]
    row = primary(compare(cells, "ddp")).loc["fsdp"]
    assert not row["paired"]
    assert "different devices" in row["reason"]
    assert row["verdict"] == "slower"
    values = [cells[cells["strategy"] == name]["images_per_s"] for name in ("fsdp", "ddp")]
    expected = stats.mannwhitneyu(*values, method="exact").pvalue
    assert row["p"] == pytest.approx(expected)


def test_strategies_on_devices_of_their_own_are_not_comparable() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells["device_uuids"] = cells["strategy"].map({"ddp": GPU.format(0), "fsdp": GPU.format(1)})
    row = primary(compare(cells, "ddp")).loc["fsdp"]
    assert row["verdict"] == NOT_COMPARABLE
    assert "never ran on the same devices" in row["reason"]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("torch", "2.16.0", "mixed torch: 2.15.0 and 2.16.0"),
        ("driver", "580.2", "mixed driver: 570.1 and 580.2"),
        ("code_sha256", "other code of fsdp", "mixed code within fsdp"),
        ("device_names", "NVIDIA H100", "mixed device names"),
        ("precision", "fp32", "mixed precision"),
    ],
)
def test_mixed_versions_are_refused(column: str, value: str, reason: str) -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97, "fsdp2": 0.97})
    one = (cells["strategy"] == "fsdp") & (cells["seed"] == 3)
    cells.loc[one, column] = value
    table = primary(compare(cells, "ddp"))
    assert table.loc["fsdp", "verdict"] == NOT_COMPARABLE
    assert reason in table.loc["fsdp", "reason"]
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
    assert "aaaaaaaaaaaa and bbbbbbbbbbbb" in refused["reason"]
    # A cell of ddp at the later commit shows that the shared code had not changed.
    later = cell_row("ddp", 9, 1e4, git_commit="b" * 40)
    cells = pd.concat([cells, pd.DataFrame([later])], ignore_index=True)
    assert primary(compare(cells, "ddp")).loc["fsdp", "verdict"] == "slower"


def test_cells_that_failed_or_are_suspect_or_unproven_are_left_out_with_the_reason() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97}, range(12))
    of_it = cells["strategy"] == "fsdp"
    cells.loc[of_it & (cells["seed"] == 0), ["excluded", "images_per_s"]] = ["oom", np.nan]
    suspect = of_it & (cells["seed"] == 1)
    cells.loc[suspect, ["excluded", "images_per_s"]] = ["suspect (throttled, drifting)", 1.0]
    cells.loc[of_it & (cells["seed"] == 2), "excluded"] = "parity missing"
    row = primary(compare(cells, "ddp")).loc["fsdp"]
    assert row["n"] == 9
    assert row["ratio"] == pytest.approx(0.97, abs=0.0097)
    for reason in ("1 oom", "1 suspect (throttled, drifting)", "1 parity missing"):
        assert reason in row["reason"]


def test_a_baseline_that_did_not_run_leaves_nothing_to_compare() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells.loc[cells["strategy"] == "ddp", "excluded"] = "oom"
    row = primary(compare(cells, "ddp")).loc["fsdp"]
    assert row["verdict"] == NOT_COMPARABLE
    assert "ddp has no usable cell" in row["reason"]
    assert "9 oom" in row["reason"]
    assert math.isnan(row["ratio"])


def test_what_was_not_measured_is_empty_and_the_rest_is_compared() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97}, energy_per_image_j=None)
    table = compare(cells, "ddp").set_index("metric")
    assert "not measured" in table.loc["energy_per_image_j", "reason"]
    assert table.loc["images_per_s", "verdict"] == "slower"


def test_other_metrics_are_exploratory_and_exact_with_nothing_but_ties() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells.loc[cells["strategy"] == "fsdp", "memory_used_peak_bytes"] //= 2
    table = compare(cells, "ddp").set_index("metric")
    memory = table.loc["memory_used_peak_bytes"]
    assert memory["family"] == "exploratory"
    assert math.isnan(memory["p_holm"])
    assert memory["verdict"] == "lower"
    assert memory["ci_low"] == memory["ci_high"] == pytest.approx(0.5)
    # Not corrected: six seeds are enough for each of seven.
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
    assert (table["p_holm"] == table["p"]).all()


def test_a_cell_that_stands_twice_is_an_error() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    with pytest.raises(UserError, match="w fsdp gpus1 seed8: stands in the table more than once"):
        compare(pd.concat([cells, cells.tail(1)]), "ddp")


def test_speed_up_and_efficiency_have_intervals_and_keep_the_regimes_apart() -> None:
    tables = []
    for scaling, fixed, free in (
        ("strong", "global_batch_size", "per_gpu_batch_size"),
        ("weak", "per_gpu_batch_size", "global_batch_size"),
    ):
        for gpus, ratio in ((1, 1.0), (4, 3.6)):
            batch = {fixed: 512, free: 512 * gpus if scaling == "weak" else 512 // gpus}
            changes = {"scaling": scaling, "gpus": gpus, "workload": scaling, **batch}
            tables.append(cells_table({"ddp": ratio}, noise=gpus, **changes))
    found = scaling_of(pd.concat(tables)).set_index(["scaling", "gpus"])
    for scaling in ("strong", "weak"):
        row = found.loc[(scaling, 4)]
        assert row["speedup"] == pytest.approx(3.6, rel=0.01)
        assert row["efficiency"] == pytest.approx(0.9, rel=0.01)
        assert row["efficiency_low"] < 0.9 < row["efficiency_high"]
        assert row["efficiency_high"] - row["efficiency_low"] < 0.02
        assert found.loc[(scaling, 1), "speedup"] == 1


def test_no_speed_up_is_given_over_another_batch_or_version_and_no_interval_from_three_runs() -> (
    None
):
    one, four = cells_table({"ddp": 1.0}, range(3)), cells_table({"ddp": 3.6}, range(3), gpus=4)
    four["global_batch_size"] = 2048
    three = scaling_of(pd.concat([one, four])).iloc[1]
    assert three["speedup"] == pytest.approx(3.6, rel=0.02)
    assert math.isnan(three["speedup_low"])
    for column, value in (("per_gpu_batch_size", 256), ("torch", "2.16.0")):
        changed = scaling_of(pd.concat([one, four.assign(**{column: value})])).iloc[1]
        assert math.isnan(changed["speedup"])
        assert f"mixed {column.replace('_', ' ')}" in changed["reason"]


def test_the_statistics_do_not_import_torch() -> None:
    statistics = ("comparisons", "scaling", "verdict", "set_comparison")
    modules = (*(f"statistics.{name}" for name in statistics), "results.merge")
    code = "import sys\n" + "".join(f"import shardmark.{name}\n" for name in modules)
    code += "sys.exit('torch' in sys.modules)"
    scripts = ROOT / "workflow/scripts"
    subprocess.run([sys.executable, "-c", code], cwd=scripts, check=True)
