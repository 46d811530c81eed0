"""The training loop, its sources of simulations, its checkpoints and its progress bar."""

from pymc_amortized.training.device import available_devices, choose_device, torch_threads
from pymc_amortized.training.history import History
from pymc_amortized.training.loop import Condensing, Task, train, train_together
from pymc_amortized.training.options import Training
from pymc_amortized.training.progress import Status
from pymc_amortized.training.shared import Shared
from pymc_amortized.training.source import (
    Batch,
    Batches,
    FixedSimulations,
    FreshSimulations,
    Reduce,
    split,
)
from pymc_amortized.training.state import TrainingState
from pymc_amortized.training.timing import fastest_step
from pymc_amortized.training.trained import Trained, report, summary_line

__all__ = [
    "Batch",
    "Batches",
    "Condensing",
    "FixedSimulations",
    "FreshSimulations",
    "Reduce",
    "History",
    "Shared",
    "Status",
    "Task",
    "Trained",
    "Training",
    "TrainingState",
    "available_devices",
    "choose_device",
    "fastest_step",
    "report",
    "split",
    "summary_line",
    "torch_threads",
    "train",
    "train_together",
]
