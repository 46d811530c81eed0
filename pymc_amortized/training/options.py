"""What a user can choose about training."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Literal, get_args

Precision = Literal["float32", "bf16"]

# Without the user's word: simple models have settled by 5,000 steps, most in less than a minute. Where steps take
# longer, more time pays: after one minute a tenth of the means of a local level over 60 steps are 0.46 sd off, after
# three 0.28.
MOST_STEPS = 5_000
DEFAULT_SECONDS = 180.0
# Where the density tells the network roughly where each posterior lies, or NUTS answers anyway. With two minutes, fits
# of three models of the gallery took 261, 182 and 196 s, with one 144, 126 and 101 s. Answers were as near to those of
# NUTS.
SHORT_SECONDS = 60.0
# Share of the steps in which everything is trained, where a built-in summary network's last layers alone follow. In
# these first steps the others learn most; the last layers are what needs many (an autoregression, 180 s: 1,000 steps of
# everything give a held-out loss of 0.90, 750 and then 3,000 of the last layers 0.82).
WHOLE = 0.25
# How often a simulation is used at most: the more often, the less is learned (4,000 steps from 390,000 simulations:
# 0.833, from 131,000: 0.847).
MOST_PASSES = 8
# Of a training of unknown length, before anything is known: with a density, most are done by then.
EXPECTED_STEPS = 400
# However slow a step: with fewer there is no schedule to speak of.
FEWEST_STEPS = 300


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the networks are trained.

    AdamW under a schedule that warms up linearly and then decays along a cosine to zero. The
    schedule's clock is the share of the work that is done: steps of ``num_steps`` or seconds of
    ``max_time``, whichever is further on. Without a number of steps, training ends when it is good enough: the learning
    rate stays at its peak, after 20 steps of warm-up, until that is decided, and decays over a last fifth of the steps.

    Parameters
    ----------
    num_steps : int or None
        Steps of the optimizer, of one batch each. None: until training is good enough (``target_efficiency`` of
        :func:`fit_posterior`), or a doubling of the steps brings little: a held-out loss that falls by less than 0.01
        nats. At most 5,000, or as many as take about three minutes (two where posteriors are sketched), half as long
        again if other work slows them down. How many were made is the last of ``posterior.history.step``.
    batch_size : int
        Simulations in a batch; of each process, where torchrun started several.
    learning_rate : float
        The peak of the schedule.
    warmup : float
        Share of the training, in [0, 1), over which the learning rate rises to its peak, where ``num_steps`` is given.
    weight_decay : float
        Decoupled weight decay of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101).
    clip_norm : float
        The gradient of all weights together is shortened to this norm. ``inf`` never shortens it.
    averaging : float
        The weights that are judged, kept and returned are a moving average over about this share of
        the steps made so far, in [0, 1). 0 takes the weights as they are.
    evaluations : int
        How many times, evenly over the training, the held-out loss is computed.
    held_out : float
        For a fixed set of simulations: the share of them, in (0, 1), that is held out to judge the
        weights.
    patience : int
        For a fixed set of simulations: training stops after this many evaluations without a better
        held-out loss.
    max_time : float or None
        Seconds after which training ends, simulating included. The learning rate still decays to
        zero. None: no limit.

    whole : float or None
        Share of the steps, in (0, 1], in which all of a built-in summary network is trained; then its last layers, and
        the density, go on alone, several times as fast. 1: to the end. None: a quarter where that makes steps faster; 1
        if ``num_steps`` is given. Networks of your own, and classifiers, are trained to the end.
    passes : int or None
        How often a simulation is used, on average, unless there is a fixed set of them. None: if ``num_steps`` is
        given once, or four times where posteriors are sketched; else as often as making one takes longer than half a
        step with it, 8 times at most.
    threads : int or None
        Threads of the processor that torch computes with. None: one, or all that torch may use,
        whichever is faster.
    precision : "float32" or "bf16"
        Of the numbers that networks compute with while they are trained. With "bf16" products of matrices are computed
        in bfloat16. Weights, held-out losses and everything after the training stay as they are. After 600 steps on a
        regression of 30 rows held-out losses were higher by 0.02 nats, with either of two seeds: for large networks.

    Raises
    ------
    TypeError, ValueError
        If an option is of the wrong type or out of range.

    Examples
    --------
    >>> pma.Training(num_steps=2000, batch_size=512).learning_rate
    0.003

    Passed on as ``pma.fit_posterior(model, training=pma.Training(max_time=60))``.
    """

    num_steps: int | None = None
    batch_size: int = 256
    learning_rate: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    averaging: float = 0.03
    evaluations: int = 100
    held_out: float = 0.1
    patience: int = 20
    max_time: float | None = None
    whole: float | None = None
    passes: int | None = None
    threads: int | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "evaluations", "patience", "passes", "threads"):
            if getattr(self, name) is not None or name not in ("num_steps", "passes", "threads"):
                self._integer(name, smallest=1)
        self._real("learning_rate", "a number > 0", lambda value: 0 < value < math.inf)
        self._real("warmup", "a number in [0, 1)", lambda value: 0 <= value < 1)
        self._real("weight_decay", "a number >= 0", lambda value: 0 <= value < math.inf)
        self._real("clip_norm", "a number > 0, inf for no clipping", lambda value: value > 0)
        self._real("averaging", "a number in [0, 1)", lambda value: 0 <= value < 1)
        self._real("held_out", "a number in (0, 1)", lambda value: 0 < value < 1)
        if self.whole is not None:
            self._real("whole", "a number in (0, 1], or None", lambda value: 0 < value <= 1)
        if self.max_time is not None:
            allowed = "a number of seconds > 0, or None for no limit"
            self._real("max_time", allowed, lambda value: 0 < value < math.inf)
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {get_args(Precision)}, got {self.precision!r}.")

    @property
    def steps(self) -> int:
        """Steps of the schedule, where nothing has been planned by the clock."""
        return MOST_STEPS if self.num_steps is None else self.num_steps

    @property
    def open_ended(self) -> bool:
        """Whether training ends when it is good enough, not after a given number of steps."""
        return self.num_steps is None

    @property
    def expected_simulations(self) -> int:
        """Simulations that training is expected to need at least."""
        if self.open_ended:
            return self.batch_size * EXPECTED_STEPS // (self.passes or MOST_PASSES)
        return self.batch_size * self.steps

    def planned(self, seconds_per_step: float, seconds: float = DEFAULT_SECONDS) -> "Training":
        """Choose the number of steps by what a step takes; what the user chose stays.

        Parameters
        ----------
        seconds_per_step : float
            Simulating included.
        seconds : float
            Of all steps, where the user has not chosen.
        """
        if self.num_steps is not None:
            return self
        affordable = int((self.max_time or seconds) / seconds_per_step)
        most = MOST_STEPS if self.max_time is None else affordable
        steps = max(min(affordable, most), FEWEST_STEPS)
        # where other work slows steps down later, three minutes do not become ten
        bound = self.max_time or 1.5 * max(seconds, steps * seconds_per_step)
        # an evaluation takes as long as some three steps: no more than a tenth of the time goes there
        return replace(
            self, num_steps=steps, max_time=bound, evaluations=min(self.evaluations, max(affordable // 30, 4))
        )

    def _integer(self, name: str, smallest: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be an integer >= {smallest}, got {value!r}.")
        if value < smallest:
            raise ValueError(f"{name} must be an integer >= {smallest}, got {value!r}.")
        object.__setattr__(self, name, int(value))

    def _real(self, name: str, allowed: str, holds: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be {allowed}, got {value!r}.")
        if not holds(float(value)):
            raise ValueError(f"{name} must be {allowed}, got {value!r}.")
        object.__setattr__(self, name, float(value))
