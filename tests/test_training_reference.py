"""The sparse training step against a plain dense one: the same losses, step after step, to float32 rounding."""

import numpy as np
import pytest
import torch

from temporallens.activations.loader import Loader
from temporallens.dictionaries.batchtopk import BatchTopK
from temporallens.dictionaries.positional import Positional
from temporallens.training.history import load_history
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainer import train

STEPS = 50
POLICY = {"batch_size": 128, "learning_rate": 3e-4, "log_every": 1, "dead_after": 256}


def reference(store, arm, positional: bool) -> list[float]:
    """Loss at every step, with nothing sparse, fused or clever in it."""
    policy = TrainingPolicy(steps=STEPS, **POLICY)
    split = store.split(policy.held_out, policy.data_seed)
    moments = store.moments_of(split.train)
    centre, scale = moments.pooled_mean().float(), float(torch.sqrt(store.width / moments.pooled_variance()))
    start = arm.make(store.width, store.positions, torch.Generator().manual_seed(0))
    encoder, bias = start.encoder.detach().clone().requires_grad_(), start.encoder_bias.detach().clone().requires_grad_()
    decoder, origin = start.decoder.detach().clone().requires_grad_(), start.decoder_bias.detach().clone().requires_grad_()
    groups = [{"params": [encoder, bias, decoder, origin], "multiple": 1.0}]
    if positional:
        logits = start.mask.logits.detach().clone().requires_grad_()
        groups.append({"params": [logits], "multiple": arm.mask_rate})
    optimizer = torch.optim.Adam(groups)
    silent = torch.zeros(arm.features, dtype=torch.long)
    loader, losses = Loader(store, split.train, policy.batch_size, policy.data_seed), []
    for step in range(STEPS):
        batch = next(loader)
        x = (batch.x.float() - centre) * scale
        for group in optimizer.param_groups:
            group["lr"] = policy.learning_rate * policy.rate(step) * group["multiple"]
        dead = silent >= policy.dead_after
        codes = ((x - origin) @ encoder.T + bias).relu()
        if positional:
            share = step / STEPS / arm.harden_at
            temperature = 5.0 * (0.1 / 5.0) ** min(share, 1)
            gates = (logits >= 0).float() if share >= 1 else torch.sigmoid(logits / temperature)
            codes = codes * gates[start.mask.groups(batch.position)]
        smallest = codes.detach().flatten().sort(descending=True).values[arm.k * len(x) - 1]
        codes = codes * (codes.detach() >= smallest)
        error = x - codes @ decoder - origin
        loss = error.square().sum(1).mean()
        if dead.any():
            revived = silent.topk(min(int(dead.sum()), arm.features // 4)).indices
            revived = revived[dead[revived]]
            pre = ((x - origin.detach()) @ encoder[revived].T + bias[revived]).relu()
            places = min(store.width // 2, len(revived))
            top = pre.topk(places, dim=1)
            pre = torch.zeros_like(pre).scatter(1, top.indices, top.values)
            loss = loss + policy.auxiliary * (error.detach() - pre @ decoder[revived]).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder.detach()
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
        silent = torch.where((codes > 0).any(0), 0, silent + len(x))
        losses.append(loss.item())
    loader.close()
    return losses


@pytest.mark.parametrize("encoder_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("positional", [False, True], ids=["batchtopk", "positional"])
def test_fifty_steps_give_the_reference_losses(store, tmp_path, positional, encoder_dtype):
    arm = Positional(features=96, k=3, groups=4) if positional else BatchTopK(features=96, k=3)
    trained = train(store, arm, STEPS, tmp_path / "run", encoder_dtype=encoder_dtype, **POLICY)
    history = load_history(trained.folder / "history.safetensors")
    assert history["dead_features"].max() > 0  # AuxK took part
    np.testing.assert_allclose(history["loss"], reference(store, arm, positional), rtol=2e-4)
