"""Probing values of which each interacts with its neighbours only, for many densities at once."""

import numpy as np

from pymc_amortized.numerics.integrals import banded_log_integral


class BandedGaps:
    """What is missing of data sets, and what moves when it is probed.

    Where values interact only with those at most ``band`` places away, every (2 band + 1)-th can be moved at once
    (Curtis, Powell & Reid 1974).

    Parameters
    ----------
    missing : bool ndarray (n, width)
        All variables that are integrated, flat.
    band : int
    """

    def __init__(self, missing: np.ndarray, band: int) -> None:
        self.width, self.counts = missing.shape[1], missing.sum(axis=1)
        self._missing, self._band = missing, band
        self.probes = 2 * band + 1
        most = int(self.counts.max(initial=0))
        # places of missing values in order, then some that are not missing
        self._places = np.argsort(~missing, axis=1, kind="stable")[:, :most]
        self._real = np.arange(most) < self.counts[:, None]

    def probed(self, values: np.ndarray) -> np.ndarray:
        """The values (n, width), and then for each probe the same with some of the missing ones larger by 1."""
        turns = np.arange(self.width) % self.probes == np.arange(self.probes)[:, None, None]
        return np.concatenate([values, (values + (self._missing & turns)).reshape(-1, self.width)])

    def block(self, m: int) -> int:
        """How many data sets to take at once, at m parameters each: gradients of a block take 32 MiB."""
        return max(32 * 2**20 // (8 * m * (self.probes + 1) * max(self.width, 1)), 1)

    def integral(self, index: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Log integrals (k, m), from gradients (1 + probes, k, m, width): as the data are, and at each probe."""
        slope, moved = slopes[0], slopes[1:]
        places, real = self._places[index], self._real[index]  # (k, most)
        most = int(self.counts[index].max())
        places, real = places[:, :most], real[:, :most]
        k, m = slope.shape[:2]
        which = np.arange(k)[:, None]
        g = np.where(real[:, :, None], slope[which, :, places], 0.0)  # (k, most, m)
        curvature = np.zeros((most, self._band + 1, k, m))
        for j in range(self._band + 1):
            before = np.roll(places, j, axis=1)
            near = real & (places - before <= self._band) & (np.arange(most) >= j)
            second = slope[which, :, places] - moved[before % self.probes, which, :, places]
            curvature[:, j] = np.where(near[:, :, None], second, float(j == 0)).swapaxes(0, 1)
        return banded_log_integral(g.swapaxes(0, 1), curvature, self.counts[index][:, None])
