"""Large dictionaries learn in little memory."""

import subprocess
import sys

import pytest

from companies import ROOT, environment

STEPS = """
import torch
from benchmarks.timing import Sizes, batches
from benchmarks.training_step import OurStep
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.memory import most_memory

torch.set_num_threads(2)
sizes, device = Sizes(width=576, features=65536, k=32, batch=1024), torch.device("cpu")
step = OurStep(BatchTopK(features=sizes.features, k=sizes.k), sizes, "float32", batches(sizes, device, 2), device)
step()
step.trainee._tokens_since_fired += step.trainee._policy.dead_after
assert step.trainee._count_dead() == sizes.features
step()
print(most_memory())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sixty_five_thousand_features_learn_in_few_gigabytes_even_where_all_are_dead():
    found = subprocess.run([sys.executable, "-c", STEPS], env=environment(), cwd=ROOT, text=True, capture_output=True, check=True)
    assert 1.2e9 < int(found.stdout) < 6e9  # weights, gradients and Adam's moments alone are 1.2 GB
