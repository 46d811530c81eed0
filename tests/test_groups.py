"""Variables of groups: found by the density, integrated out, drawn given the parameters; any number of groups."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
import xarray as xr
from scipy import stats
from scipy.special import gammaln, logsumexp

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.setup import read_setup
from pymc_amortized.approximators.fitting.simulating import separate_locals
from pymc_amortized.correction.draws import Draws, Failure
from pymc_amortized.correction.groups import SEVERAL_MODES, Groups, draw_groups
from pymc_amortized.correction.ladder import _with_locals
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.density.given import PredictiveOfNewGroups
from pymc_amortized.graph.density.marginal import MarginalDensity
from pymc_amortized.graph.model.sizes import Range
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import INTERPRETED
from pymc_amortized.numerics.sampling.independent import Blocks
from pymc_amortized.numerics.sampling.laplace import approximate, integrate
from pymc_amortized.numerics.sampling.precision import Arrow, Banded, Full

SIZES = {"county": (3, 40), "house": (20, 200)}
CONTEXT = {**SIZES, "county_index": "groups", "basement": pm.Bernoulli.dist(0.3)}


def radon(*, centered: bool = True, groups: int = 12, houses: int = 60, counts: bool = False) -> pm.Model:
    """Houses in counties."""
    rng = np.random.default_rng(1)
    index, x = rng.integers(0, groups, houses), rng.integers(0, 2, houses)
    with pm.Model(coords={"county": [f"c{i}" for i in range(groups)]}) as model:
        basement = pm.Data("basement", x, dims="house")
        county = pm.Data("county_index", index, dims="house")
        mu, tau, slope = pm.Normal("mu", 0, 2), pm.HalfNormal("tau", 1), pm.Normal("slope", 0, 1)
        if centered:
            effect = pm.Normal("effect", mu, tau, dims="county")
        else:
            effect = pm.Deterministic("effect", mu + tau * pm.Normal("z", 0, 1, dims="county"), dims="county")
        mean = effect[county] + slope * basement
        if counts:
            pm.Poisson("y", pt.exp(mean), observed=rng.poisson(1.0, houses), dims="house")
        else:
            sigma = pm.HalfNormal("sigma", 1)
            pm.Normal("y", mean, sigma, observed=rng.normal(size=houses), dims="house")
    return model


def snapshot(model: pm.Model) -> ModelSpec:
    return take_snapshot(
        model, context=["basement", "county_index"], sizes=[Range("county", 3, 400), Range("house", 20, 2000)]
    )


def held(model: pm.Model) -> dict[str, np.ndarray]:
    """The data set that a model holds, as densities take it."""
    spec = snapshot(model)
    data = {v.name: spec.held[v.name] for v in spec.data}
    return data | {"county": len(model.coords["county"]), "house": len(data["y"])}


def log_prior(theta: np.ndarray) -> np.ndarray:
    """Of the parameters of `radon`, on their unconstrained scale."""
    mu, log_tau, slope = theta.T[:3]
    scales = stats.halfnorm(0, 1).logpdf(np.exp(theta[:, [1, 3][: theta.shape[1] - 2]])).sum(1)
    jacobian = log_tau + (theta[:, 3] if theta.shape[1] > 3 else 0)
    return stats.norm(0, 2).logpdf(mu) + stats.norm.logpdf(slope) + scales + jacobian


class TestBlocks:
    def test_what_shares_a_term_is_one_block(self) -> None:
        reads = np.zeros((6, 5), dtype=bool)
        reads[[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]] = True
        reads[0, 3] = True
        blocks = Blocks.of(reads)
        assert blocks.number == 4
        assert blocks.block_of[0] == blocks.block_of[3]
        np.testing.assert_array_equal(blocks.place, [*blocks.block_of, 4])

    @pytest.mark.parametrize("band", [1, 3])
    def test_banded_factors_are_those_of_full_matrices(self, band: int) -> None:
        rng = np.random.default_rng(0)
        size, n = 20, 3
        lower = np.tril(rng.normal(size=(n, size, size)), -1)
        lower = np.triu(lower, -band) + 3 * np.eye(size)
        precision = lower @ lower.swapaxes(1, 2)
        entries = np.zeros((size, band + 1, n, 1))
        for j in range(band + 1):
            for i in range(j, size):
                entries[i, j, :, 0] = precision[:, i, i - j]
        banded, full = Banded.of(entries), Full.of(precision[:, None])
        x = rng.normal(size=(n, 1, size))
        np.testing.assert_allclose(banded.solve(x), full.solve(x))
        np.testing.assert_allclose(banded.solve_transposed(x), full.solve_transposed(x))
        np.testing.assert_allclose(banded.log_det, full.log_det)

    @pytest.mark.parametrize("bent", [0.0, 0.3])
    def test_crossed_values_are_told_by_few_directions(self, bent: float) -> None:
        """12 subjects and 10 items: precisions of normal values are sums of matrices; of others they are not."""
        rng = np.random.default_rng(0)
        subject, item = (v.ravel() for v in np.meshgrid(range(12), range(10), indexing="ij"))
        design = np.zeros((120, 22))
        design[np.arange(120), subject] = design[np.arange(120), 12 + item] = 1.0
        y, scales = rng.normal(size=120), np.exp(rng.normal(size=(40, 2)))
        asked = []

        def parts(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            noise, prior = scales[rows].T[..., None]
            rest = y - x @ design.T
            value = -0.5 * (rest**2 / noise).sum(1) - 0.5 * (x**2 / prior).sum(1) - bent * np.cosh(x).sum(1)
            return value, (rest / noise) @ design - x / prior - bent * np.sinh(x), x

        def slopes(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            asked.append(len(x))
            value, slope, _ = parts(x, rows)
            return np.column_stack([value, np.zeros(len(x))]), slope

        blocks = Blocks.of(np.concatenate([design != 0, np.eye(22, dtype=bool)]))
        assert len(blocks.turns) == 11  # an item each, and all subjects at once
        for _ in range(2):
            asked.clear()
            normals = approximate(slopes, blocks, np.zeros((40, 22)))
        factors = normals.at(np.repeat(np.eye(22)[:, None], 40, axis=1)) - normals.mode  # (22, 40, 22)
        found = np.linalg.inv(np.einsum("jni,jnk->nik", factors, factors))
        ends = bent * np.cosh(normals.mode)[:, None] * np.eye(22)
        exact = design.T @ design / scales[:, :1, None] + np.eye(22) / scales[:, 1:, None] + ends
        np.testing.assert_allclose(found, exact, rtol=2e-2 if bent else 1e-5, atol=1e-4)
        assert max(asked) == 40 or bent  # one direction for each, no more
        assert np.abs(slopes(normals.mode, np.arange(40))[1]).max() < (0.2 if bent else 1e-6)

    def test_integrals_of_crossed_binary_values_are_unbiased(self) -> None:
        """Twelve persons and two items, beside sums over grids: persons are independent given the items."""
        rng = np.random.default_rng(1)
        y = rng.integers(0, 2, (12, 2)).astype(float)
        person, item = (v.ravel() for v in np.meshgrid(range(12), range(2), indexing="ij"))
        design = np.zeros((24, 14))
        design[np.arange(24), person], design[np.arange(24), 12 + item] = 2.0, -1.0
        blocks = Blocks.of(np.concatenate([design != 0, np.eye(14, dtype=bool)]))
        assert [len(cells) for cells in blocks.cells] == [12]

        def sums(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
            logit = x @ design.T
            terms = np.concatenate([y.ravel() * logit - np.logaddexp(0, logit), stats.norm.logpdf(x)], axis=1)
            return np.stack([terms[:, blocks.cell_of == cell].sum(1) for cell in range(14)], axis=1)

        def slopes(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rest = y.ravel() - 1 / (1 + np.exp(-x @ design.T))
            return blocks.by_block(sums(x, rows)), rest @ design - x

        grid = np.linspace(-6, 6, 121)
        one, two = (v.ravel() for v in np.meshgrid(grid, grid, indexing="ij"))
        logits = 2 * grid[:, None] - np.stack([one, two])[:, None]
        persons = [(own[:, None, None] * logits - np.logaddexp(0, logits)).sum(0) for own in y]
        persons = [each + stats.norm.logpdf(grid)[:, None] for each in persons]
        items = stats.norm.logpdf(one) + stats.norm.logpdf(two) + sum(logsumexp(each, axis=0) for each in persons)
        exact = logsumexp(items) + 14 * np.log(0.1)
        normals = approximate(slopes, blocks, np.zeros((400, 14)))
        found = integrate(sums, normals, np.random.default_rng(0), 64, draw=True)
        errors = found.log_integral - exact
        assert abs(np.exp(errors).mean() - 1) < 4 * errors.std() / np.sqrt(400) + 1e-3
        assert errors.std() < 0.1
        assert 0.5 < found.noise.mean() / errors.var() < 2
        assert found.apart.max() < 1e-9
        p = np.exp(items - logsumexp(items))
        first = np.exp(persons[0] - logsumexp(persons[0], axis=0)) @ p
        for drawn, values, shares in ((found.drawn[:, 12], one, p), (found.drawn[:, 0], grid, first)):
            mean, sd = shares @ values, np.sqrt(shares @ values**2 - (shares @ values) ** 2)
            assert abs(drawn.mean() - mean) < 4 * sd / 20
            assert drawn.std() == pytest.approx(sd, rel=0.15)

    def test_factors_of_a_diagonal_part_are_those_of_the_whole(self) -> None:
        rng = np.random.default_rng(0)
        ends, shared, rest = rng.uniform(5, 6, (3, 1, 30)), rng.normal(size=(3, 1, 10, 30)), 50 * np.eye(10)[None, None]
        whole = np.zeros((3, 1, 40, 40))
        whole[..., :30, :30], whole[..., 30:, 30:] = ends[..., None] * np.eye(30), rest
        whole[..., 30:, :30], whole[..., :30, 30:] = shared, shared.swapaxes(-1, -2)
        arrow, full = Arrow.of(ends, shared, np.repeat(rest, 3, axis=0)), Full.of(whole)
        x = rng.normal(size=(5, 3, 1, 40))
        np.testing.assert_allclose(arrow.solve(x), full.solve(x))
        np.testing.assert_allclose(arrow.solve_transposed(x), full.solve_transposed(x))
        np.testing.assert_allclose(arrow.transposed_times(x[0]), full.transposed_times(x[0]))
        np.testing.assert_allclose(arrow.log_det, full.log_det)
        arrow.put(np.array([0]), arrow.take(np.array([2])))
        np.testing.assert_allclose(arrow.log_det[0], full.log_det[2])

    def test_integrals_of_a_chain_of_counts_are_unbiased(self) -> None:
        """Three Poisson counts with a random walk of log rates, beside a sum over a grid."""
        counts = np.array([2.0, 0.0, 3.0])
        reads = np.eye(3, dtype=bool)
        reads = np.concatenate([reads, [[True, True, False], [False, True, True]]])
        blocks = Blocks.of(reads)

        def sums(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
            steps = stats.norm.logpdf(np.diff(x, axis=1)).sum(1) + stats.norm.logpdf(x[:, 0])
            each = (x * counts - np.exp(x) - gammaln(counts + 1)).sum(1)
            return np.column_stack([steps + each, np.zeros(len(x))])

        def slopes(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            by = np.zeros_like(x)
            by[:, 1:] -= np.diff(x, axis=1)
            by[:, :-1] += np.diff(x, axis=1)
            by[:, 0] -= x[:, 0]
            return sums(x, rows), by + counts - np.exp(x)

        grid = np.linspace(-7, 6, 90)
        every = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3)
        exact = logsumexp(sums(every, np.arange(len(every)))[:, 0]) + 3 * np.log(grid[1] - grid[0])
        normals = approximate(slopes, blocks, np.zeros((200, 3)))
        found = integrate(sums, normals, np.random.default_rng(0), 32, draw=True)
        errors = found.log_integral - exact
        assert abs(np.exp(errors).mean() - 1) < 4 * errors.std() / np.sqrt(200) + 1e-3
        assert 0.5 < found.noise.mean() / errors.var() < 2
        p = np.exp(sums(every, np.arange(len(every)))[:, 0] - exact) * (grid[1] - grid[0]) ** 3
        mean, variance = p @ every, p @ every**2 - (p @ every) ** 2
        assert (np.abs(found.drawn.mean(0) - mean) < 4 * np.sqrt(variance / 200)).all()


class TestDensity:
    @pytest.mark.parametrize("centered", [True, False])
    def test_normal_groups_are_integrated_exactly(self, centered: bool) -> None:
        model = radon(centered=centered, groups=200, houses=500)
        density = MarginalDensity(snapshot(model), {}, INTERPRETED)
        data, rng = held(model), np.random.default_rng(0)
        theta = 0.5 * rng.normal(size=(3, 4))
        found = density(theta, data)
        member = np.eye(200)[data["county_index"]]
        for one, value in zip(theta, found, strict=True):
            mu, log_tau, slope, log_sigma = one
            covariance = np.exp(2 * log_sigma) * np.eye(500) + np.exp(2 * log_tau) * member @ member.T
            exact = stats.multivariate_normal(mu + slope * data["basement"], covariance).logpdf(data["y"])
            assert value == pytest.approx(exact + log_prior(one[None])[0], abs=1e-6)

    def test_draws_given_the_parameters_are_those_of_each_group(self) -> None:
        model = radon(groups=4, houses=30)
        density, data = MarginalDensity(snapshot(model), {}, INTERPRETED), held(model)
        theta = np.tile([0.3, -0.5, 0.2, -0.2], (4000, 1))
        drawn = density.drawn(theta, data, np.random.default_rng(0)).drawn
        tau, sigma = np.exp(-0.5), np.exp(-0.2)
        for group in range(4):
            rest = (data["y"] - 0.2 * data["basement"])[data["county_index"] == group]
            precision = 1 / tau**2 + len(rest) / sigma**2
            mean = (0.3 / tau**2 + rest.sum() / sigma**2) / precision
            assert drawn[:, group].mean() == pytest.approx(mean, abs=4 / np.sqrt(4000 * precision))
            assert drawn[:, group].std() == pytest.approx(precision**-0.5, rel=0.06)

    def test_groups_of_counts_are_integrated_without_bias(self) -> None:
        model = radon(counts=True, groups=6, houses=20)
        density, data = MarginalDensity(snapshot(model), {}, INTERPRETED), held(model)
        theta = np.tile([[0.2, -0.3, 0.1]], (60, 1))
        found = density.integrated(theta, data)
        grid = np.linspace(-9, 9, 2001)
        total = log_prior(theta[:1])[0]
        for group in range(6):
            own = data["county_index"] == group
            log_rate = (0.2 + np.exp(-0.3) * grid) + 0.1 * data["basement"][own, None]
            y = data["y"][own, None]
            log_p = (y * log_rate - np.exp(log_rate) - gammaln(y + 1)).sum(0) + stats.norm.logpdf(grid)
            total += logsumexp(log_p) + np.log(grid[1] - grid[0])
        errors = found.log_integral - total
        assert np.abs(errors).max() < 0.2
        assert abs(errors.mean()) < 5 * errors.std() / np.sqrt(60) + 1e-4

    def test_a_term_that_reads_two_groups_joins_them(self) -> None:
        model = radon(groups=5, houses=30)
        with model:
            pm.Potential("tie", -0.5 * (model["effect"][0] - model["effect"][1]) ** 2)
        density, data = MarginalDensity(snapshot(model), {}, INTERPRETED), held(model)
        blocks = density.blocks(np.zeros((2, 4)), data)
        assert blocks.number == 4
        assert blocks.block_of[0] == blocks.block_of[1]

    def test_a_second_mode_of_groups_is_seen(self) -> None:
        """Groups of two kinds, far apart, of which a few vague rows do not tell the kind."""
        with pm.Model(coords={"group": range(4)}) as model:
            share, spread = pm.Beta("share", 2, 2), pm.HalfNormal("spread", 1)
            kinds = pm.Normal.dist(pt.constant([-2.0, 2.0]), 0.2)
            effect = pm.Mixture("effect", pt.stack([share, 1 - share]), kinds, dims="group")
            pm.Normal("y", effect, 3.0 + spread, observed=np.array([0.1, -0.3, 0.5, 0.0]), dims="group")
        spec = take_snapshot(model).with_locals(["effect"])
        density, data = MarginalDensity(spec, {}, INTERPRETED), {"y": spec.held["y"]}
        found = density.several_modes(np.zeros((2, 2)), data)
        assert found == "4 of 4 blocks of effect have a second mode given the parameters"

    def test_one_mode_is_one(self) -> None:
        model = radon(counts=True, groups=6, houses=20)
        density, data = MarginalDensity(snapshot(model), {}, INTERPRETED), held(model)
        theta = np.random.default_rng(0).normal(size=(3, 3))
        assert density.several_modes(theta, data) is None

    def test_a_term_that_reads_groups_at_some_values_only(self) -> None:
        """Two groups repel each other, but only where both are above 1: where they were looked for, they were not."""
        model = radon(groups=5, houses=30)
        with model:
            one, two = model["effect"][0], model["effect"][1]
            pm.Potential("tie", pt.switch((one > 1.0) & (two > 1.0), -8.0 * (one - two) ** 2, 0.0))
        density, data = MarginalDensity(snapshot(model), {}, INTERPRETED), held(model)
        theta = np.tile([1.5, -0.5, 0.0, 0.5], (50, 1))
        try:
            drawn = density.drawn(theta, data, np.random.default_rng(0)).drawn
        except ValueError as error:
            assert "not so at the draws" in str(error)
        else:
            blocks = density.blocks(theta, data, 16)
            assert blocks.block_of[0] == blocks.block_of[1]
            assert np.isfinite(drawn).all()


# Which variables are integrated out


def binomial_groups() -> pm.Model:
    trials = np.array([5, 12, 30, 8, 20, 25])
    with pm.Model(coords={"hospital": range(6)}) as model:
        mu, log_sigma = pm.Normal("mu", -1, 1), pm.Normal("log_sigma", -0.5, 1)
        logit = pm.Normal("logit", mu, pt.exp(log_sigma), dims="hospital")
        pm.Binomial("y", trials, logit_p=logit, observed=np.array([1, 2, 9, 0, 3, 8]), dims="hospital")
    return model


def schools() -> pm.Model:
    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 10), pm.HalfNormal("tau", 10)
        theta = pm.Normal("theta", mu, tau, shape=8)
        pm.Normal("y", theta, np.linspace(9, 18, 8), observed=np.zeros(8))
    return model


def crossed() -> pm.Model:
    subject, item = (v.ravel() for v in np.meshgrid(range(20), range(10), indexing="ij"))
    with pm.Model() as model:
        scales = pm.HalfNormal("scales", 1, shape=2)
        a, b = pm.Normal("a", 0, scales[0], shape=20), pm.Normal("b", 0, scales[1], shape=10)
        pm.Normal("y", a[subject] + b[item], 1, observed=np.zeros(200))
    return model


def nested() -> pm.Model:
    school = np.arange(24) % 6
    with pm.Model() as model:
        scales = pm.HalfNormal("scales", 1, shape=2)
        a = pm.Normal("a", 0, scales[0], shape=6)
        c = pm.Normal("c", a[school], scales[1], shape=24)
        pm.Poisson("y", pt.exp(c), observed=np.ones(24, dtype=int))
    return model


def regression() -> pm.Model:
    x = np.random.default_rng(0).normal(size=(40, 5))
    with pm.Model() as model:
        beta, sigma = pm.Normal("beta", 0, 1, shape=5), pm.HalfNormal("sigma", 1)
        pm.Normal("y", x @ beta, sigma, observed=np.zeros(40))
    return model


@pytest.mark.parametrize(
    ("build", "names"),
    [(binomial_groups, ["logit"]), (schools, []), (crossed, ["a", "b"]), (nested, ["a", "c"]), (regression, [])],
)
def test_variables_of_groups_are_found_where_that_helps(build: Callable[[], pm.Model], names: list[str]) -> None:
    setup = read_setup(None, None, 1, None, False, None)
    spec = separate_locals(take_snapshot(build()), {}, setup)
    assert [p.name for p in spec.locals] == names


# What users see


def conflicting(prior: str) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Groups of which one has rows that contradict each other, or a prior with two far modes."""
    y = np.array([-15.0, -15.2, 15.0, 15.1, 3.0, 3.2])
    with pm.Model(coords={"g": range(2)}) as model:
        index = pm.Data("index", [0, 0, 0, 0, 1, 1], dims="row")
        mu = pm.Normal("mu", 0, 10)
        if prior == "normal":
            e = pm.Normal("e", mu, 10.0, dims="g")
            pm.StudentT("y", nu=3, mu=e[index], sigma=0.3, observed=y, dims="row")
        else:
            parts = [pm.Normal.dist(0.0, 1.0), pm.Normal.dist(30.0, 1.0)]
            e = pm.Mixture("e", w=[0.7, 0.3], comp_dists=parts, dims="g")
            pm.Normal("y", e[index] + mu, 40.0, observed=y, dims="row")
    spec = take_snapshot(model, context=["index"], sizes=[Range("g", 2, 9), Range("row", 3, 30)]).with_locals(["e"])
    return spec, {v.name: spec.held[v.name] for v in spec.data} | {"g": 2, "row": 6}


@pytest.mark.parametrize("prior", ["normal", "two modes"])
def test_second_modes_far_away_are_found(prior: str) -> None:
    """Sixty standard deviations from the first: only draws from the prior lead there."""
    spec, data = conflicting(prior)
    density = MarginalDensity(spec, {})
    found = draw_groups(density, data, np.full((1, 50, 1), 3.0), np.random.SeedSequence(1))
    assert found.failure is not None and found.failure.reason == SEVERAL_MODES


def test_chains_of_nuts_are_searched_for_second_modes() -> None:
    """All of them begin at one mode, and agree."""
    spec, data = conflicting("normal")
    target = SimpleNamespace(log_density=MarginalDensity(spec, {}), given=lambda index: data, obstacles=[None])
    theta, none = np.full((1, 8, 1), 3.0), np.zeros((1, 8))
    chains = Draws(theta, none, none, none, None, 0, rung="nuts", locals=np.full((1, 8, 2), 15.0))
    marked = _with_locals(target, {0: chains}, np.random.SeedSequence(0))[0]
    assert marked.failure is not None and marked.failure.reason == SEVERAL_MODES and marked.stage == "failed"


def test_newton_begins_where_there_is_a_density() -> None:
    """Delays below 30 and 40: the density is zero where all groups are at zero, of which exp is 1."""
    with pm.Model(coords={"g": range(2)}) as model:
        index = pm.Data("index", [0, 0, 1, 1], dims="row")
        mu = pm.Normal("mu", 0, 10)
        e = pm.Normal("e", mu, 0.5, dims="g")
        delay = 50.0 - pm.math.exp(e[index])
        pm.Exponential("y", 0.1, observed=np.zeros(4), dims="row")
        pm.Potential("after", pm.math.switch(delay > 49.5, -np.inf, 0.2 * delay).sum())
    spec = take_snapshot(model, context=["index"], sizes=[Range("g", 2, 9), Range("row", 3, 30)]).with_locals(["e"])
    data = {"y": np.ones(4), "index": spec.held["index"], "g": 2, "row": 4}
    density = MarginalDensity(spec, {})
    values = [density.integrated(np.full((1, 1), 3.0), data, np.random.default_rng(k)).log_integral for k in range(20)]
    grid = np.linspace(-0.69, 6, 20001)
    each = logsumexp(stats.norm(3, 0.5).logpdf(grid) + 0.4 * (50 - np.exp(grid))) + np.log(grid[1] - grid[0])
    exact = stats.norm(0, 10).logpdf(3.0) + 4 * stats.expon(scale=10).logpdf(1.0) + 2 * each
    assert float(logsumexp(values) - np.log(20)) == pytest.approx(exact, abs=0.1)


@pytest.fixture(scope="module")
def posterior() -> pma.AmortizedPosterior:
    brief = pma.Training(num_steps=4, batch_size=32, evaluations=2)
    return pma.fit_posterior(radon(), context=CONTEXT, training=brief, random_seed=1, progressbar=False)


def some_data(groups: int = 7, houses: int = 50, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    index, x = rng.integers(0, groups, houses), rng.integers(0, 2, houses)
    index[:groups] = np.arange(groups)
    effect = rng.normal(1.0, 0.7, groups)
    return {"y": effect[index] - 0.5 * x + rng.normal(0, 0.8, houses), "basement": x, "county_index": index}


class TestAnyNumberOfGroups:
    def test_the_factorization_is_said(self, posterior: pma.AmortizedPosterior) -> None:
        said = "effect: 40 groups of one value, independent of each other given mu, tau, slope, sigma"
        assert said in str(posterior.structure)

    def test_labels_of_groups_are_those_of_the_data(self, posterior: pma.AmortizedPosterior) -> None:
        labels = ["a", "b", "c", "d", "e", "f", "g", "no rows"]
        tree = posterior.sample({**some_data(), "county": labels}, draws=50, random_seed=1)
        assert tree.posterior["effect"].coords["county"].to_numpy().tolist() == labels
        assert tree.posterior["effect"].dims == ("chain", "draw", "county")
        own = posterior.sample(draws=50, random_seed=1)
        assert own.posterior["effect"].coords["county"].to_numpy().tolist() == [f"c{i}" for i in range(12)]

    def test_a_group_without_rows_has_its_prior(self, posterior: pma.AmortizedPosterior) -> None:
        draws = posterior.sample({**some_data(), "county": 8}, random_seed=1).posterior.to_dataset()
        z = ((draws["effect"].isel(county=7) - draws["mu"]) / draws["tau"]).to_numpy().ravel()
        assert stats.kstest(z[::8], "norm").pvalue > 0.001

    def test_several_sizes_in_one_batch(self, posterior: pma.AmortizedPosterior) -> None:
        sets = [some_data(3, 30), some_data(20, 150), some_data(9, 80)]
        tree = posterior.sample(sets, batched=True, draws=100, random_seed=1)
        known = np.isfinite(tree.posterior["effect"].to_numpy()).all((1, 2)).sum(1)
        assert known.tolist() == [3, 20, 9]
        assert (tree.sample_stats["stage"] == "psis").all()
        predicted = posterior.sample_posterior_predictive(tree, random_seed=1).posterior_predictive["y"]
        assert np.isfinite(predicted.to_numpy()).all((1, 2)).sum(1).tolist() == [30, 150, 80]
        assert dict(posterior.one_dataset(tree, 2).posterior.sizes)["county"] == 9
        log_likelihood = posterior.compute_log_likelihood(tree, extend_inferencedata=False)["y"]
        assert np.isfinite(log_likelihood.to_numpy()).all((1, 2)).sum(1).tolist() == [30, 150, 80]

    def test_files(self, posterior: pma.AmortizedPosterior, tmp_path: object) -> None:
        path = f"{tmp_path}/radon.pma"
        posterior.save(path)
        again, data = pma.load(path, model=radon()), some_data()
        one, two = (p.sample(data, draws=20, random_seed=3).posterior["effect"] for p in (posterior, again))
        np.testing.assert_array_equal(one, two)

    def test_moments_are_those_of_a_grid(self, posterior: pma.AmortizedPosterior) -> None:
        """Of tau and a group's effect, by the exact marginal density on a grid around the draws."""
        data = some_data(12, 100)
        tree = posterior.sample(data, random_seed=1)
        full = posterior.compiled.log_density
        given = posterior.read(data).one(posterior.spec, 0)
        names = ["mu", "tau", "slope", "sigma"]
        draws = np.stack([tree.posterior[name].to_numpy().ravel() for name in names], 1)
        draws[:, [1, 3]] = np.log(draws[:, [1, 3]])
        # importance sampling from a wide t around the draws: another way to the same density
        rng = np.random.default_rng(0)
        proposal = stats.multivariate_t(draws.mean(0), 1.5 * np.cov(draws.T), df=5, seed=rng)
        theta = proposal.rvs(8000)
        log_w = full(theta, given) - proposal.logpdf(theta)
        w = np.exp(log_w - logsumexp(log_w))
        mean = w @ theta
        sd = np.sqrt(w @ (theta - mean) ** 2)
        assert (np.abs(draws.mean(0) - mean) / sd < 0.15).all()
        np.testing.assert_allclose(draws.std(0) / sd, 1, atol=0.12)

    def test_calibration_takes_one_group_of_each_data_set(self, posterior: pma.AmortizedPosterior) -> None:
        check = pma.check_calibration(
            posterior, num_datasets=40, draws=100, correction="auto", random_seed=1, progressbar=False
        )
        assert check["recovery"]["effect"].sizes == {"estimate": 4, "dataset": 40}
        assert check["calibration"].attrs["calibrated"] == 1


@pytest.fixture(scope="module")
def tree(posterior: pma.AmortizedPosterior) -> xr.DataTree:
    return posterior.sample({**some_data(), "county": list("abcdefg")}, random_seed=1)


class TestFurtherGroups:
    def test_values_given_the_parameters_are_the_exact_ones(
        self, posterior: pma.AmortizedPosterior, tree: xr.DataTree
    ) -> None:
        y, x = np.array([2.0, 1.0, 2.5, -1.0]), np.array([0, 1, 0, 0])
        more = {"y": y, "basement": x, "county_index": [0, 0, 0, 1], "county": ["new", "newer"]}
        found = posterior.sample_groups(tree, more, random_seed=2)
        draws = found.posterior.to_dataset()
        xr.testing.assert_equal(draws["tau"], tree.posterior["tau"])
        assert draws["effect"].coords["county"].to_numpy().tolist() == ["new", "newer"]
        mu, tau, slope, sigma = (draws[name].to_numpy().ravel() for name in ("mu", "tau", "slope", "sigma"))
        for county, rows in enumerate((slice(3), slice(3, 4))):
            rest = (y[rows] - slope[:, None] * x[rows]).sum(1)
            precision = 1 / tau**2 + len(x[rows]) / sigma**2
            mean = (mu / tau**2 + rest / sigma**2) / precision
            z = (draws["effect"].isel(county=county).to_numpy().ravel() - mean) * np.sqrt(precision)
            assert stats.kstest(z, "norm").pvalue > 0.001
        assert found.sample_stats["pareto_k_of_groups"] == -np.inf
        again = posterior.sample_posterior_predictive(found, random_seed=1)
        assert dict(again.posterior_predictive["y"].sizes)["house"] == 4

    def test_groups_without_any_row_have_their_prior(
        self, posterior: pma.AmortizedPosterior, tree: xr.DataTree
    ) -> None:
        nothing = {"y": [], "basement": np.zeros(0, int), "county_index": np.zeros(0, int), "county": 2}
        draws = posterior.sample_groups(tree, nothing, random_seed=2).posterior.to_dataset()
        z = ((draws["effect"] - draws["mu"]) / draws["tau"]).to_numpy().ravel()
        assert stats.kstest(z, "norm").pvalue > 0.001

    def test_predictions_find_groups_by_label(self, posterior: pma.AmortizedPosterior, tree: xr.DataTree) -> None:
        index = {"basement": [0, 0, 0], "county_index": [0, 1, 2], "county": ["g", "new", "a"]}
        found = posterior.sample_posterior_predictive(tree, context=index, predictions=True, random_seed=1)
        draws, y = tree.posterior.to_dataset(), found.predictions["y"]
        for house, (mean, variance) in enumerate(
            [
                (draws["effect"].sel(county="g"), 0.0),
                (draws["mu"], draws["tau"] ** 2),
                (draws["effect"].sel(county="a"), 0.0),
            ]
        ):
            z = (y.isel(house=house) - mean) / np.sqrt(draws["sigma"] ** 2 + variance)
            assert stats.kstest(z.to_numpy().ravel(), "norm").pvalue > 0.001

    def test_predictions_by_index_keep_the_groups_of_the_result(
        self, posterior: pma.AmortizedPosterior, tree: xr.DataTree
    ) -> None:
        index = {"basement": [0, 0], "county_index": [6, 7]}  # the eighth is new
        found = posterior.sample_posterior_predictive(tree, context=index, predictions=True, random_seed=1)
        draws, y = tree.posterior.to_dataset(), found.predictions["y"]
        z = (y.isel(house=0) - draws["effect"].isel(county=6)) / draws["sigma"]
        assert stats.kstest(z.to_numpy().ravel(), "norm").pvalue > 0.001
        assert float(y.isel(house=1).std()) > 1.1 * float(y.isel(house=0).std())

    def test_labels_on_one_side_alone_say_nothing(self, posterior: pma.AmortizedPosterior) -> None:
        tree = posterior.sample(some_data(), draws=20, random_seed=1)
        context = {"basement": [0], "county_index": [0], "county": ["a"]}
        with pytest.raises(ValueError, match="'county' has labels, but the result has none"):
            posterior.sample_posterior_predictive(tree, context=context, predictions=True)

    def test_a_posterior_of_all_variables_together_has_no_groups(
        self, hospitals: pma.AmortizedPosterior, posterior: pma.AmortizedPosterior, tree: xr.DataTree
    ) -> None:
        with pytest.raises(ValueError, match="pass posterior.one_dataset"):
            many = posterior.sample([some_data(), some_data(5)], batched=True, draws=20, random_seed=1)
            posterior.sample_groups(many, some_data())
        lacking = tree.copy()
        lacking["posterior"] = xr.DataTree(tree.posterior.to_dataset().drop_vars("tau"))
        with pytest.raises(KeyError, match="lacks .'tau'."):
            posterior.sample_groups(lacking, some_data())

    def test_plots(self, posterior: pma.AmortizedPosterior, tree: xr.DataTree) -> None:
        figure = pma.plot_shrinkage(posterior, tree)
        (axes,) = figure.axes
        assert axes.get_title() == "effect"
        assert len(axes.lines) == 7  # an interval for each group
        assert "effect" in "".join(text.get_text() for text in pma.plot_factors(posterior).axes[0].texts)
        assert len(pma.plot_shrinkage(posterior, tree, backend="none").viz["plot"]) == 1

    def test_a_group_without_data_is_its_own_prior(self, posterior: pma.AmortizedPosterior, tree: xr.DataTree) -> None:
        seed = np.random.SeedSequence(1)
        anew = posterior.compiled.predictions.redrawn(tree, ["effect"], ["effect"], seed)["effect"]
        draws = tree.posterior.to_dataset()
        z = ((anew - draws["mu"]) / draws["tau"]).to_numpy().ravel()
        assert stats.kstest(z[::7], "norm").pvalue > 0.001

    def test_new_values_of_a_series_are_no_groups(self) -> None:
        with pm.Model(coords={"day": range(10)}) as model:
            step = pm.HalfNormal("step", 1)
            level = pm.GaussianRandomWalk("level", sigma=step, init_dist=pm.Normal.dist(), dims="day")
            x = pm.Data("x", np.zeros(10), dims="day")
            pm.Normal("y", level + x, 1.0, observed=np.zeros(10), dims="day")
        spec = take_snapshot(model, context=["x"], sizes=[Range("day", 5, 20)]).with_locals(["level"])
        with pytest.raises(ValueError, match="'level' depend on each other .*along .'day'. they are one draw"):
            PredictiveOfNewGroups(spec, ["y"], INTERPRETED)._compiled()


@pytest.fixture(scope="module")
def hospitals() -> pma.AmortizedPosterior:
    brief = pma.Training(num_steps=2, batch_size=32, evaluations=2)
    return pma.fit_posterior(binomial_groups(), training=brief, random_seed=1, progressbar=False)


def exact_hospitals() -> tuple[float, np.ndarray, np.ndarray]:
    """Log evidence, means and sds of the parameters of `binomial_groups`, on a grid."""
    trials, y = np.array([5, 12, 30, 8, 20, 25]), np.array([1, 2, 9, 0, 3, 8])
    mu, log_sigma = (v.ravel() for v in np.meshgrid(np.linspace(-5, 3, 161), np.linspace(-5, 3, 161), indexing="ij"))
    z = np.linspace(-8, 8, 401)
    logit = mu[:, None] + np.exp(log_sigma)[:, None] * z
    total = stats.norm(-1, 1).logpdf(mu) + stats.norm(-0.5, 1).logpdf(log_sigma)
    for n, k in zip(trials, y, strict=True):
        choose = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        log_p = choose + k * logit - n * np.logaddexp(0, logit) + stats.norm.logpdf(z)
        total += logsumexp(log_p, axis=1) + np.log(z[1] - z[0])
    evidence = logsumexp(total) + 2 * np.log(0.05)
    p, grid = np.exp(total - logsumexp(total)), np.column_stack([mu, log_sigma])
    return evidence, p @ grid, np.sqrt(p @ grid**2 - (p @ grid) ** 2)


def test_a_hierarchy_of_counts_has_the_moments_and_evidence_of_a_grid(hospitals: pma.AmortizedPosterior) -> None:
    evidence, mean, sd = exact_hospitals()
    tree = hospitals.sample(draws=2000, random_seed=1)
    draws = np.stack([tree.posterior[name].to_numpy().ravel() for name in ("mu", "log_sigma")], 1)
    assert tree.sample_stats["stage"] == "psis"
    assert (np.abs(draws.mean(0) - mean) < 0.1 * sd).all()
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.07)
    found = hospitals.log_marginal_likelihood(random_seed=1)
    assert float(found["log_marginal_likelihood"]) == pytest.approx(evidence, abs=0.1)


def test_evidence_has_the_gate_of_draws(hospitals: pma.AmortizedPosterior, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Groups(np.zeros((1, 1, 6)), 1.2, Failure("the weights of groups are poor", "told"))
    monkeypatch.setattr("pymc_amortized.correction.evidence.draw_groups", lambda *_: failed)
    found = hospitals.log_marginal_likelihood(random_seed=1)
    assert (
        np.isnan(found["log_marginal_likelihood"]) and "the weights of groups are poor: told" in found.attrs["doubts"]
    )


def test_values_of_groups_differ_between_seeds(hospitals: pma.AmortizedPosterior) -> None:
    """Given the parameters, too: else two runs would seem to agree on what they both have by chance."""
    assert -np.inf < float(hospitals.sample(draws=500, random_seed=1).sample_stats["pareto_k_of_groups"]) < 0.5
    runs = [hospitals.sample(draws=500, random_seed=seed).posterior.to_dataset() for seed in (1, 2)]
    rest = [(run["logit"] - run["logit"].mean(("chain", "draw"))).to_numpy().ravel() for run in runs]
    assert abs(np.corrcoef(*rest)[0, 1]) < 0.05


def test_batches_of_a_fixed_number_of_groups(hospitals: pma.AmortizedPosterior) -> None:
    posterior = hospitals
    y = [[1, 2, 9, 0, 3, 8], [0, 5, 20, 1, 9, 4]]
    tree = posterior.sample({"y": y}, batched=True, draws=50, random_seed=1)
    assert np.isfinite(tree.posterior["logit"].to_numpy()).all()
    assert dict(tree.posterior["logit"].sizes) == {"dataset": 2, "chain": 4, "draw": 50, "hospital": 6}
    with pytest.raises(ValueError, match="refine: values of groups .*logit.* are integrated out"):
        posterior.refine()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"county": ["a", "b"]}, "'county_index' holds 6, but the dimension 'county' has 2 elements"),
        ({"county": ["a"] * 7}, "labels of groups must differ"),
        ({"county": 50}, "dimension 'county' has length 50; the posterior was trained for 3 to 40"),
        ({"county": 7.5}, "must be the number of groups, or their labels"),
    ],
)
def test_wrong_numbers_of_groups(posterior: pma.AmortizedPosterior, change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        posterior.sample({**some_data(), **change})


def test_labels_stand_beside_a_covariate_of_groups() -> None:
    with pm.Model(coords={"g": range(3)}) as model:
        index = pm.Data("index", [0, 0, 1, 1, 2], dims="row")
        u = pm.Data("u", np.zeros(3), dims="g")
        e = pm.Normal("e", u, 2.0, dims="g")
        pm.Normal("y", e[index], 1.0, observed=np.zeros(5), dims="row")
    spec = take_snapshot(model, context=["index", "u"], sizes=[Range("g", 2, 9), Range("row", 3, 30)])
    data = {"y": np.zeros(4), "index": [0, 1, 1, 0], "u": [0.5, 1.5]}
    assert read_datasets(spec, {**data, "g": ["a", "b"]}).coords["g"].tolist() == ["a", "b"]
    assert read_datasets(spec, {**data, "g": 2}).lengths["g"] == 2
    two = xr.Dataset(
        {"y": (("dataset", "row"), np.zeros((2, 4))), "index": (("dataset", "row"), np.zeros((2, 4), int))}
        | {"u": (("dataset", "g"), np.ones((2, 3)))},
        {"row": [7, 7, 8, 9], "g": [4, 5, 6]},  # coordinates of arrays are no lengths
    )
    assert read_datasets(spec, two, batched=True).lengths["g"].tolist() == [3, 3]
    assert read_datasets(spec, two.isel(dataset=0)).coords["g"].tolist() == [4, 5, 6]
    with pytest.raises(ValueError, match="observed.'g'. says 3, and 'u' has length 2 there"):
        read_datasets(spec, {**data, "g": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="must differ, and 'a' is there twice"):
        read_datasets(spec, {**data, "g": ["a", "a"]})


def test_sources_of_indices() -> None:
    other = {**CONTEXT, "basement": "groups"}
    with pytest.raises(ValueError, match="'groups' is for whole numbers that pick elements"):
        pma.fit_posterior(radon(), context=other)
    with pytest.raises(ValueError, match="'county_index' holds .*, but the dimension 'county' has 3 elements"):
        pma.simulate(radon(), 10, context={**CONTEXT, "county_index": "resample"})
    with pytest.raises(ValueError, match="fit_likelihood needs a fixed number of parameters"):
        pma.fit_likelihood(radon(), context=CONTEXT)


def test_groups_without_common_parameters_are_refused() -> None:
    with pm.Model(coords={"group": range(5)}) as model:
        pm.Normal("y", pm.Normal("effect", 0, 1, dims="group"), 1, observed=np.zeros(5), dims="group")
    with pytest.raises(ValueError, match=r"all free variables, \['effect'\], are values of groups"):
        pma.fit_posterior(model, context={"group": (3, 8)})
