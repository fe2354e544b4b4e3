"""What all tests and examples share."""

import os

# Tests run in as many processes as there are cores; more threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # torchrl tells of each storage it makes
