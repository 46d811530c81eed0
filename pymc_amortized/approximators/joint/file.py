"""Joint trainings in files: a posterior and a likelihood in one."""

from dataclasses import dataclass, replace

from pymc_amortized.approximators.joint.joint import AmortizedJoint, learned_posterior
from pymc_amortized.approximators.likelihood.file import SavedLikelihood, read_likelihood
from pymc_amortized.approximators.posterior.file import SavedPosterior, read_posterior
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.storage.brought import Brought
from pymc_amortized.approximators.storage.save import contents


@dataclass(frozen=True)
class SavedJoint:
    """What a file holds of a joint training."""

    posterior: SavedPosterior
    likelihood: SavedLikelihood
    corrected_by_likelihood: bool


@contents.register
def joint_contents(joint: AmortizedJoint) -> SavedJoint:
    """Take from a joint training what a file holds."""
    posterior = contents(replace(joint.posterior, learned=None))
    return SavedJoint(posterior, contents(joint.likelihood), joint.posterior.learned is not None)


def read_joint(saved: SavedJoint, brought: Brought) -> AmortizedJoint:
    """Make both of what a file holds, and of the user's model."""
    posterior = read_posterior(saved.posterior, brought, AmortizedPosterior)
    likelihood = read_likelihood(saved.likelihood, replace(brought, summary=None, density=None))
    learned = learned_posterior(posterior, likelihood) if saved.corrected_by_likelihood else posterior
    return AmortizedJoint(learned, likelihood)
