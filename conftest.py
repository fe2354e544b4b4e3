"""What all tests and examples share."""

import os

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # torchrl tells of each storage it makes
