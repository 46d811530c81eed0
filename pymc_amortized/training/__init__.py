"""The training loop, its sources of simulations, its checkpoints and its progress bar."""

from pymc_amortized.training.device import available_devices, choose_device, fastest_step, torch_threads
from pymc_amortized.training.history import History
from pymc_amortized.training.loop import train, train_together
from pymc_amortized.training.options import Training
from pymc_amortized.training.progress import Status
from pymc_amortized.training.run import Task
from pymc_amortized.training.schedule import LastLayers
from pymc_amortized.training.settling import Efficiency, Stopping
from pymc_amortized.training.shared import Shared
from pymc_amortized.training.source import (
    Batch,
    Batches,
    FixedSimulations,
    FreshSimulations,
    Reduce,
)
from pymc_amortized.training.state import TrainingState
from pymc_amortized.training.trained import Trained, report, summary_line

__all__ = [
    "Batch",
    "Batches",
    "FixedSimulations",
    "FreshSimulations",
    "Reduce",
    "Efficiency",
    "History",
    "LastLayers",
    "Shared",
    "Status",
    "Stopping",
    "Task",
    "Trained",
    "Training",
    "TrainingState",
    "available_devices",
    "choose_device",
    "fastest_step",
    "report",
    "summary_line",
    "torch_threads",
    "train",
    "train_together",
]
