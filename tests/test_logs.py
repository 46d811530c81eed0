"""Messages are seen once, whether or not the user has configured logging."""

import subprocess
import sys

import pytest

# not the main process, so that the names of users, which say nothing, are not imported
SAY = (
    "import logging, multiprocessing; multiprocessing.current_process().name = 'another'; import pymc_amortized; "
    "{} logging.getLogger('pymc_amortized').info('settled')"
)


@pytest.mark.parametrize("configure", ["", "logging.basicConfig();"])
def test_messages_are_seen_once(configure):
    code = [sys.executable, "-W", "ignore", "-c", SAY.format(configure)]
    said = subprocess.run(code, capture_output=True, text=True, check=True).stderr
    assert said.count("settled") == 1
