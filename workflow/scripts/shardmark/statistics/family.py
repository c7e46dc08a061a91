"""The comparisons of one family: estimates, p-values and intervals that agree with each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from shardmark.statistics import sign_flips, t_tests
from shardmark.statistics.sign_flips import BoolArray, FloatArray
from shardmark.statistics.stratified import Stratified

ALPHA = 0.05
# Runs of a side from which a test can show something: without a model, and with one.
FEWEST_ESTABLISHED = 6
FEWEST_LIKELY = 3

IntArray: TypeAlias = npt.NDArray[np.int_]


class Shift(NamedTuple):
    """A one-sided question: is sign * (log-ratio - shift) above zero? One value per comparison."""

    sign: FloatArray
    shift: FloatArray


class Family(Protocol):
    """Comparisons that are corrected together. Arrays have one value per comparison.

    Attributes:
        estimates: log-ratios.
        n: pairs, or runs of the strategy.
        n_baseline: pairs, or runs of what it is compared with.
        established: whether there are enough runs to show something without a model.
        spreads: standard error of the estimate, times the root of the smaller n; NaN if unknown.
        paired: whether runs are compared in pairs.
        corrected: whether p-values and intervals are corrected for several comparisons.
    """

    estimates: FloatArray
    n: IntArray
    n_baseline: IntArray
    established: BoolArray
    spreads: FloatArray
    paired: bool
    corrected: bool

    def two_sided_p(self) -> FloatArray:
        """Return the p of the hypothesis of no difference; NaN where there are too few runs."""

    def one_sided_p(self, question: Shift, *, corrected: bool) -> FloatArray:
        """Return the p of the hypothesis that the answer to the question is no."""

    def half_widths(self) -> FloatArray:
        """Return the half-widths of the intervals; NaN where there are too few runs."""

    def method(self, place: int) -> str:
        """Return the name of one comparison's test."""


class PairedFamily:
    """Comparisons of pairs.

    Args:
        differences: log-ratios, shape (blocks, comparisons), NaN where a block has no pair.
        corrected: whether to correct for all comparisons together.
    """

    paired = True

    def __init__(self, differences: FloatArray, *, corrected: bool) -> None:
        self.differences = np.round(differences, sign_flips.DECIMALS)
        self.corrected = corrected
        self.n = (~np.isnan(differences)).sum(axis=0)
        self.n_baseline = self.n
        self.estimates = np.nanmean(self.differences, axis=0)
        self.spreads = t_tests.standard_errors(self.differences) * np.sqrt(self.n)
        self.established = self.n >= FEWEST_ESTABLISHED
        self.likely = (self.n >= FEWEST_LIKELY) & ~self.established

    @property
    def _tested(self) -> int:
        return int((self.established | self.likely).sum())

    def two_sided_p(self) -> FloatArray:
        """See ``Family``."""
        return self._p(self.differences, two_sided=True, corrected=self.corrected)

    def one_sided_p(self, question: Shift, *, corrected: bool) -> FloatArray:
        """See ``Family``."""
        asked = question.sign * (self.differences - question.shift)
        return self._p(asked, two_sided=False, corrected=corrected)

    def _p(self, differences: FloatArray, *, two_sided: bool, corrected: bool) -> FloatArray:
        def by_flips(own: FloatArray) -> FloatArray:
            return sign_flips.adjusted_p(own, two_sided=two_sided, corrected=corrected)

        def by_t(own: FloatArray) -> FloatArray:
            p = t_tests.paired_p(own, two_sided=two_sided)
            return t_tests.holm(p, self._tested) if corrected else p

        return self._by_tier(differences, by_flips, by_t)

    def half_widths(self) -> FloatArray:
        """See ``Family``."""

        def by_flips(own: FloatArray) -> FloatArray:
            return sign_flips.half_widths(own, corrected=self.corrected)

        def by_t(own: FloatArray) -> FloatArray:
            degrees = (~np.isnan(own)).sum(axis=0) - 1
            comparisons = self._tested if self.corrected else 1
            return t_tests.quantile(degrees, comparisons) * t_tests.standard_errors(own)

        return self._by_tier(self.differences, by_flips, by_t)

    def _by_tier(
        self,
        differences: FloatArray,
        by_flips: Callable[[FloatArray], FloatArray],
        by_t: Callable[[FloatArray], FloatArray],
    ) -> FloatArray:
        values = np.full(differences.shape[1], np.nan)
        for chosen, calculate in ((self.established, by_flips), (self.likely, by_t)):
            if chosen.any():
                values[chosen] = calculate(differences[:, chosen])
        return values

    def method(self, place: int) -> str:
        """See ``Family``."""
        if self.established[place]:
            return "sign-flip"
        return "paired-t" if self.likely[place] else "none"


class UnpairedFamily:
    """Comparisons of groups of runs, within the devices that both sides ran on.

    Args:
        items: the comparisons.
        corrected: whether to correct for all comparisons together, by Holm's method.
    """

    paired = False

    def __init__(self, items: Sequence[Stratified], *, corrected: bool) -> None:
        self.items = items
        self.corrected = corrected
        self.n = np.array([item.n for item in items])
        self.n_baseline = np.array([item.n_baseline for item in items])
        self.estimates = np.array([item.estimate for item in items])
        errors = np.array([item.standard_error for item in items])
        self.spreads = errors * np.sqrt(np.minimum(self.n, self.n_baseline))
        known = np.array([bool(item.errors) for item in items])
        least = np.minimum(self.n, self.n_baseline)
        self.tested = known & (least >= FEWEST_LIKELY)
        self.established = known & (least >= FEWEST_ESTABLISHED)

    def two_sided_p(self) -> FloatArray:
        """See ``Family``."""
        nothing = np.zeros(len(self.items))
        question = Shift(np.ones(len(self.items)), nothing)
        return self._p(question, two_sided=True, corrected=self.corrected)

    def one_sided_p(self, question: Shift, *, corrected: bool) -> FloatArray:
        """See ``Family``."""
        return self._p(question, two_sided=False, corrected=corrected)

    def _p(self, question: Shift, *, two_sided: bool, corrected: bool) -> FloatArray:
        p_values = np.full(len(self.items), np.nan)
        for place in np.flatnonzero(self.tested).tolist():
            item = self.items[place]
            sign, shift = float(question.sign[place]), float(question.shift[place])
            p = item.t_p(sign, shift, two_sided=two_sided)
            if self.established[place]:
                p = max(p, item.permutation_p(sign, shift, two_sided=two_sided))
            p_values[place] = p
        if corrected:
            p_values[self.tested] = t_tests.holm(p_values[self.tested])
        return p_values

    def half_widths(self) -> FloatArray:
        """See ``Family``."""
        widths = np.full(len(self.items), np.nan)
        comparisons = int(self.tested.sum()) if self.corrected else 1
        for place in np.flatnonzero(self.tested).tolist():
            widths[place] = self.items[place].half_width(comparisons)
        return widths

    def method(self, place: int) -> str:
        """See ``Family``."""
        if self.established[place]:
            return "permutation-and-welch"
        return "welch" if self.tested[place] else "none"


def equivalence_p(family: Family, margin: float) -> FloatArray:
    """Return the p of two one-sided tests of equivalence (TOST; Schuirmann 1987).

    The tests at the nearer bounds are corrected together. The other bound is further away, so its
    test can only matter by itself.

    Args:
        family: the comparisons.
        margin: the margin of the ratio, for instance 0.02. The bounds are 1 / 1.02 and 1.02, so
            that the answer does not depend on which side is called the baseline.
    """
    side = np.where(family.estimates < 0, -1.0, 1.0)
    nearer = Shift(sign=-side, shift=side * math.log1p(margin))
    further = Shift(sign=side, shift=-nearer.shift)
    return np.maximum(
        family.one_sided_p(nearer, corrected=family.corrected),
        family.one_sided_p(further, corrected=False),
    )


def agreeing_intervals(
    estimates: FloatArray, half_widths: FloatArray, p: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the ends of the intervals, which exclude zero exactly where the test rejects.

    If the test rejects but the interval contains zero, the interval is cut at zero
    (step-down-compatible bounds; Strassburger & Bretz 2008, Guilbaud 2008). If the test does not
    reject but the interval excludes zero, the interval is widened to zero.
    """
    low, high = estimates - half_widths, estimates + half_widths
    rejected: BoolArray = p <= ALPHA
    low = np.where(rejected & (estimates > 0), np.maximum(low, 0), low)
    high = np.where(rejected & (estimates < 0), np.minimum(high, 0), high)
    return np.where(rejected, low, np.minimum(low, 0)), np.where(
        rejected, high, np.maximum(high, 0)
    )
