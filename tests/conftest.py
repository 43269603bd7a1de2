"""One thread for torch: the tests' tensors are small, and they must not fight over the cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for this process, and for those that the tests start

import torch

torch.set_num_threads(1)
