"""One thread for torch, and Ctrl-C as in a terminal, however the tests are started."""

import os
import signal

# The tests' tensors are small, and they must not fight over the cores.
os.environ["OMP_NUM_THREADS"] = "1"  # for this process, and for those that the tests start

import torch

torch.set_num_threads(1)

# Started in the background, a process ignores Ctrl-C, and so would those that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
