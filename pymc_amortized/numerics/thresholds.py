"""The one table of what draws have to satisfy: by it they are settled, go on to the next rung, or are doubted."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of weights, of chains and of data; the docstring below each gives its reason and its source."""

    pareto_k: float = 0.7
    """Largest Pareto k that weights can be trusted with, however many they are; of fewer it is smaller (Vehtari et al.
    2024, JMLR 25(72), eq. 13)."""
    finite_variance: float = 0.5
    """Pareto k up to which weights have a variance (section 2 there). Above it the error of an evidence says nothing.
    By networks that knew little, hierarchies ended at a k of 0.5 to 0.65, with 3 to 12 effective draws of a hundred
    proposals and standard deviations that were 5 to 25 % too small."""
    fewest_for_tail: int = 25
    """Fewer finite weights than this do not make a tail that a Pareto distribution can be fitted to."""
    fewest_positive: float = 0.1
    """Share of the proposals that count as having weight when a largest weight is compared with the mean."""
    harmless: float = 2.0
    """Largest weight, in units of the mean of those that are not zero, of weights that are as good as constant: k says
    what may lie where the proposal has next to nothing."""
    harmless_if_defended: float = 5.0
    """Largest weight, in the same units, where a part of the proposal has heavy tails, and so less can lie beyond it: a
    share of 2 % five standard deviations away gives weights of 10 and more, four or five of them among a thousand such
    proposals."""
    harmless_share: float = 0.002
    """Of all weights, that one of many such proposals may have: with four like it, the share of what they stand for is
    known to 0.4 %, by which a variance is off by a tenth if that is five standard deviations away."""
    lost: float = 0.1
    """Share of the weights that smoothing may take away. Of weights that follow a Pareto distribution of shape 0.7 it
    takes more from one set of 4,000 in ten; from a mode that three proposals hit, all but a hundredth."""
    notably_lost: float = 0.02
    """Share that it may take away before more proposals are worth their time: about what it takes from a tail of shape
    0.5. A mode that a few proposals hit may have as much."""
    influence: float = 0.125
    """Share of a variance that one proposal may make before more are worth their time, and in the end: 0.5 % of the
    weight where it lies five standard deviations away, 3 % where it lies two."""
    heaviest: float = 0.005
    """Share of the weight that one proposal may have in an estimate of the evidence, wherever it lies."""
    wanted_efficiency: float = 0.5
    """Importance effective sample size per draw above which more proposals are not worth their time; per proposal,
    above which a tail without a variance has little weight."""
    fewest_effective: int = 400
    """Effective draws that estimates should rest on (Vehtari et al. 2021, Bayesian Analysis 16(2): 100 for each of four
    chains)."""
    fewest_proposals: int = 1000
    """Per data set in all: with fewer, the tail of the weights says little."""
    excluded: float = 0.005
    """Share of excluded simulations, or of an unknown density, that changes the log marginal likelihood by as much as
    its usual error."""
    r_hat: float = 1.01
    """Of chains, rank-normalized (Vehtari et al. 2021, section 4), and of proposals that are weighted chain by chain:
    beyond it, the share of a mode that half of the draws belong to has a standard deviation of .07 between chains."""
    by_chance: float = 1e-3
    """Probability with which chains of weighted proposals may differ as much by their Monte Carlo errors alone."""
    fewest_per_set: int = 250
    """Proposals whose weights are normalized together, of chains that have fewer draws each."""
    ess_per_chain: int = 100
    """Bulk and tail effective draws that R-hat and errors need, for each of at least four chains (same section)."""
    divergences: float = 0.01
    """Share of draws: PyMC and Stan warn of any; more than a few are no accident of one unlucky step."""
    elsewhere: float = 6.0
    """Standard deviations from where all chains of NUTS are, beyond which mass is that of another mode."""
    mass_elsewhere: float = 0.02
    """Share of the mass that may lie there."""
    drift: float = 4.5
    """Standard errors by which further moves of tempered particles may change a mean. Of 42 runs on posteriors that
    they reach, 3.8 was the largest; of 6 runs in a funnel with a narrow neck, 4.9 the smallest."""
    far_outside: float = 0.1
    """How far data may lie beyond the simulated range, in units of its width."""
    novel: float = 0.01
    """Chance of any false alarm of novelty in a call, however many data sets: it is met often, and must not become
    noise."""
    forgotten: float = 0.3
    """Nats that what a learned likelihood does not see of the past of a series adds to its log density, above which
    that matters."""
    forgotten_chance: float = 0.001
    """Chance of a false alarm of that."""


THRESHOLDS = Thresholds()
