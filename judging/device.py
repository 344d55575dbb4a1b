"""Where models run. It decides the numbers that they compute with, see `judging.model`."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
