"""How a posterior came about."""

from __future__ import annotations

from dataclasses import dataclass

from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.fitting.simulation_plan import SimulationPlan
from pymc_amortized.graph.data.simulations import Simulations, truncating
from pymc_amortized.training import Trained, Training


@dataclass(frozen=True)
class Provenance:
    """All that is needed to repeat or continue a training.

    Attributes
    ----------
    entropy : tuple of int
        Seed of everything random; it can be passed back as ``random_seed``.
    training : Training
        With the number of steps, if it was given.
    num_simulations : int or None
        Size of the fixed set of simulations; None for fresh ones at every step.
    cores : int
        Processes that simulated.
    simulations : int
        Simulations that training consumed.
    attempted : int
        Simulations made for statistics, including dropped ones.
    dropped : dict of str to int
        Why some of those were dropped.
    settled : bool
        Whether the loss had settled.
    held_out_loss : float
        Of the weights that were kept, on the scale of standardized parameters.
    user_simulations : bool
        Whether the simulations were the user's.
    off : tuple of str
        What corrected draws of simulated data sets are not calibrated in.
    """

    entropy: tuple[int, ...]
    training: Training
    num_simulations: int | None
    cores: int
    simulations: int
    attempted: int
    dropped: dict[str, int]
    settled: bool
    held_out_loss: float
    user_simulations: bool
    off: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        trained: Trained,
        made: Simulations,
        setup: Setup,
        plan: SimulationPlan,
        *,
        simulations: int | None = None,
        user_simulations: bool = False,
    ) -> Provenance:
        """Of what was trained, with statistics of the simulations `made` before."""
        return cls(
            entropy=setup.entropy,
            training=setup.options,
            num_simulations=plan.number,
            cores=plan.cores,
            simulations=trained.simulations if simulations is None else simulations,
            attempted=made.attempted,
            dropped=made.dropped,
            settled=trained.settled,
            held_out_loss=float(trained.held_out_loss),
            user_simulations=user_simulations,
        )

    def attributes(self) -> dict[str, str | int]:
        """What a result should say about it."""
        attributes: dict[str, str | int] = {
            "trained_on_simulations": self.simulations,
            "training_settled": int(self.settled),
        }
        truncated = truncating(self.dropped)
        for name, those in (("prior_truncated", True), ("simulations_dropped", False)):
            some = {why: count for why, count in self.dropped.items() if (why in truncated) == those}
            if some:
                reasons = (f"{why}: {count} of {self.attempted} simulations" for why, count in some.items())
                attributes[name] = "; ".join(reasons)
        return attributes
