"""Log densities on the scale of standardized parameters."""

import numpy as np
import torch

from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.numerics.quadratic import LogDensities


class Standardized:
    """Log densities of standardized parameters.

    Parameters
    ----------
    densities : callable
        Of unconstrained parameters, like :class:`DensitiesOf`; by its method gradients, these are there too.
    standardizer : ParameterStandardizer
    """

    def __init__(self, densities: LogDensities, standardizer: ParameterStandardizer) -> None:
        self._densities, self._standardizer = densities, standardizer
        self._scale = standardizer.scale.numpy()

    def __call__(self, z: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Evaluate at z (k, m, dim), for the data sets at index (k,): (k, m)."""
        theta, log_det = self._standardizer.inverse(torch.as_tensor(z))
        return self._densities(theta.numpy(), index) - log_det.numpy()

    def moved(self, z: np.ndarray, places: np.ndarray, to: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Evaluate at z (k, m, dim) with parameters at some places moved: (k, m, steps).

        Parameters
        ----------
        z : ndarray (k, m, dim)
        places : ndarray (q,)
            Of parameters in which the standardizer is linear.
        to : ndarray (k, steps, q)
            Where these are moved.
        index : ndarray (k,)
        """
        theta, log_det = self._standardizer.inverse(torch.as_tensor(z))
        own = self._standardizer.center.numpy()[places] + self._scale[places] * to
        every = np.repeat(theta.numpy()[:, :, None], to.shape[1], axis=2)
        every[..., places] = own[:, None]
        values = self._densities(every.reshape(len(z), -1, z.shape[2]), index)
        return values.reshape(every.shape[:-1]) - log_det.numpy()[..., None]

    def gradients(self, z: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate with gradients (k, m, dim), right for parameters in which the standardizer is linear."""
        theta, log_det = self._standardizer.inverse(torch.as_tensor(z))
        log_p, gradient = self._densities.gradients(theta.numpy(), index)  # type: ignore[attr-defined]
        return log_p - log_det.numpy(), gradient * self._scale
