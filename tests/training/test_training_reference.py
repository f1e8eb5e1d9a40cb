"""Every term of the loss against a plain float64 one, and whole training runs against dense ones, step after step."""

import numpy as np
import pytest
import torch

from temporallens.activations.loader import Loader
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.arms.standard import Standard
from temporallens.dictionaries.steps import Dead, Forward
from temporallens.training.history import load_history
from temporallens.training.objective import RowWeights, inputs_for, objective, squared_errors
from temporallens.training.policy import TrainingPolicy
from temporallens.training.scales import position_scales
from temporallens.training.trainer import train

STEPS = 50
POLICY = {"batch_size": 128, "learning_rate": 3e-4, "log_every": 1, "dead_after": 256}


def reference(store, arm) -> list[float]:
    """Loss at every step, with nothing sparse, fused or clever in it; of masks, what `docs/method.md` says."""
    policy = TrainingPolicy(steps=STEPS, **POLICY)
    split = store.split(policy.held_out, policy.data_seed)
    moments = store.moments_of(split.train)
    centre, scale = moments.pooled_mean().float(), float(torch.sqrt(store.width / moments.pooled_variance()))
    start = arm.make(store.width, store.positions, torch.Generator().manual_seed(0))
    encoder, bias = start.encoder.detach().clone().requires_grad_(), start.encoder_bias.detach().clone().requires_grad_()
    decoder, origin = start.decoder.detach().clone().requires_grad_(), start.decoder_bias.detach().clone().requires_grad_()
    groups = [{"params": [encoder, bias, decoder, origin], "multiple": 1.0}]
    positional = isinstance(arm, Positional)
    if positional:
        logits = start.mask.logits.detach().clone().requires_grad_()
        groups.append({"params": [logits], "multiple": arm.mask_rate})
        searched, fired = torch.zeros(len(logits)), torch.zeros(arm.features)
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
            annealed = (step / STEPS - arm.mask_warmup) / (arm.harden_at - arm.mask_warmup)
            temperature = 5.0 * (0.1 / 5.0) ** min(max(annealed, 0), 1)
            gates = ((logits >= 0) | (logits >= logits.amax(0))).float() if annealed >= 1 else torch.sigmoid(logits / temperature)
            if arm.mask_gradient == "difference" and annealed < 1:
                gates = (2 * gates).clamp(max=1)
            group = start.mask.groups(batch.position)
            derived = arm.mask_gradient == "derivative" and 0 <= annealed < 1
            codes = codes * (gates if derived else gates.detach())[group]
        smallest = codes.detach().flatten().sort(descending=True).values[arm.k * len(x) - 1]
        codes = codes * (codes.detach() >= smallest)
        codes.retain_grad()
        error = x - codes @ decoder - origin
        loss = error.square().sum(1).mean()
        if dead.any():
            revived = silent.topk(min(int(dead.sum()), arm.features // 4)).indices
            revived = revived[dead[revived]]
            pre = ((x - origin.detach()) @ encoder[revived].T + bias[revived]).relu()
            if positional:
                pre = pre * gates.detach()[group][:, revived]
            places = min(store.width // 2, len(revived))
            top = pre.topk(places, dim=1)
            pre = torch.zeros_like(pre).scatter(1, top.indices, top.values)
            loss = loss + policy.auxiliary * (error.detach() - pre @ decoder[revived]).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        if positional and not derived and 0 <= annealed < 1:
            saved = codes.detach() * (codes.detach() / len(x) - codes.grad)
            earned = torch.zeros_like(logits).index_add_(0, group, saved)
            tokens = torch.bincount(group, minlength=len(logits)) / len(x)
            judged = (searched / searched.sum().clamp(min=1))[:, None] * fired >= 3
            logits.grad = judged * arm.least_share * tokens[:, None] * earned.sum(0).clamp(min=0) - earned
        decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder.detach()
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
        if positional and (step + 1) % arm.reopen_every == 0 and step / STEPS >= arm.mask_warmup:
            searched = 0.96 * searched + torch.bincount(group, minlength=len(logits))
            fired = 0.96 * fired + (codes > 0).sum(0)
        silent = torch.where((codes > 0).any(0), 0, silent + len(x))
        losses.append(loss.item())
    loader.close()
    return losses


ARMS = {
    "batchtopk": BatchTopK(features=96, k=3),
    "derivative": Positional(features=96, k=3, groups=4, mask_warmup=0.0, mask_gradient="derivative"),
    "difference": Positional(features=96, k=3, groups=4),
}


@pytest.mark.parametrize("encoder_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)
def test_fifty_steps_give_the_reference_losses(store, tmp_path, arm, encoder_dtype):
    trained = train(store, arm, STEPS, tmp_path / "run", encoder_dtype=encoder_dtype, **POLICY)
    history = load_history(trained.folder / "history.safetensors")
    assert history["dead_features"].max() > 0  # AuxK took part
    np.testing.assert_allclose(history["loss"], reference(store, arm), rtol=2e-4)


def test_squared_errors_have_the_gradient_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    reconstruction, x = (torch.randn(7, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    weights = torch.rand(7, dtype=torch.float64, generator=generator)
    reconstruction.requires_grad_()
    assert torch.autograd.gradcheck(lambda r: (weights * squared_errors(r, x)[0]).mean(), (reconstruction,))
    per_row, residual = squared_errors(reconstruction, x)
    torch.testing.assert_close(per_row, (x - reconstruction).square().sum(1))
    assert torch.equal(residual, x - reconstruction)
    assert not residual.requires_grad


@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("further", [False, True])
def test_every_term_of_the_objective_is_the_plain_formula(gained, weighed, further):
    rows, width, features = 11, 6, 14
    generator = torch.Generator().manual_seed(0)
    dictionary = BatchTopK(features=features, k=3).make(width, 4, generator).double()

    def rand(*shape):
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    x, reconstruction, magnitude, extra = rand(rows, width), rand(rows, width), rand(rows), rand(rows)
    leaves = [tensor.requires_grad_() for tensor in (reconstruction, magnitude, extra)]
    gain, w, v = 0.5 + rand(rows), 0.5 + rand(rows), 0.5 + rand(rows)
    forward = Forward(reconstruction, magnitude, magnitude, magnitude, extra if further else None)
    weights = RowWeights(gain if gained else None, w if weighed else None, v if weighed else None)
    dead = Dead(torch.tensor([1, 4, 9, 12]), torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    losses = objective(dictionary, forward, x, torch.zeros(rows, dtype=torch.int64), 0.3, 0.25, dead, weights)

    expected, mse = torch.zeros((), dtype=torch.float64), 0.0
    pre = (
        (x - dictionary.decoder_bias) @ dictionary.encoder[dead.features].T + dictionary.encoder_bias[dead.features]
    ).relu() * dead.certain
    places = pre.topk(width // 2, dim=1).indices
    revived = torch.zeros_like(pre).scatter(1, places, pre.gather(1, places)) @ dictionary.decoder[dead.features]
    for n in range(rows):
        units = 1 / gain[n] ** 2 if gained else 1.0
        error = ((x[n] - reconstruction[n]) ** 2).sum() * units
        expected = expected + (w[n] if weighed else 1) * (error + (extra[n] if further else 0)) / rows
        expected = expected + 0.3 * (v[n] if weighed else 1) * magnitude[n] / rows
        expected = expected + 0.25 * ((x[n] - reconstruction[n].detach() - revived[n]) ** 2).sum() * units / rows
        mse += float(error.detach()) / rows
    torch.testing.assert_close(losses.loss, expected, rtol=1e-12, atol=0)
    assert float(losses.mse) == pytest.approx(mse, rel=1e-12)
    assert float(losses.sparsity) == pytest.approx(float(magnitude.detach().mean()), rel=1e-12)
    leaves += [dictionary.encoder, dictionary.encoder_bias, dictionary.decoder]
    ours, plain = (torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (losses.loss, expected))
    for mine, theirs in zip(ours, plain, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def clipped_to_mean_one(average: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The weights as their definition has them, by halving the interval of factors."""
    low, high = 0.0, 1e9
    for _ in range(200):
        factor = (low + high) / 2
        low, high = (factor, high) if (np.clip(factor * average, 0.5, 2) * share).sum() < 1 else (low, factor)
    return np.clip(high * average, 0.5, 2)


def weighed_reference(store, arm, own: bool) -> list[float]:
    """Loss at every step of ReLU + L1 with position weights and per-position centring, dense and in float64."""
    policy = TrainingPolicy(steps=STEPS, **POLICY)
    split = store.split(policy.held_out, policy.data_seed)
    moments = store.moments_of(split.train)
    inputs = inputs_for(moments.pooled_mean(), moments.pooled_variance())
    scales = position_scales(moments, inputs)
    start = arm.make(store.width, store.positions, torch.Generator().manual_seed(0))
    weights = [getattr(start, name).detach().double().requires_grad_() for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")]
    encoder, bias, decoder, origin = weights
    optimizer = torch.optim.Adam(weights)
    loader, losses = Loader(store, split.train, policy.batch_size, policy.data_seed), []
    share, evidence = scales.share.numpy(), np.zeros(store.positions)
    averages = {"loss": np.zeros(store.positions), "magnitude": np.zeros(store.positions)}
    for step in range(STEPS):
        batch = next(loader)
        position = batch.position
        known = evidence > 0
        w = {name: np.ones(store.positions) for name in averages}
        if known.any():
            for name, average in averages.items():
                w[name][known] = clipped_to_mean_one(
                    (average / np.where(known, evidence, 1))[known], (share * known)[known] / (share * known).sum()
                )
        row = {name: torch.from_numpy(value)[position] for name, value in w.items()}
        gain = scales.gain.double()[position]
        x = ((batch.x.double() - inputs.centre.double()) * inputs.scale - scales.offset.double()[position]) * gain[:, None]
        for group in optimizer.param_groups:
            group["lr"] = policy.learning_rate * policy.rate(step)
        codes = ((x - origin) @ encoder.T + bias).relu()
        error = (x - codes @ decoder - origin).square().sum(1) / gain**2
        penalty = row["magnitude" if own else "loss"] * codes.sum(1)
        loss = ((error if own else row["loss"] * error) + arm.sparsity * penalty).mean()
        optimizer.zero_grad()
        loss.backward()
        decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder.detach()
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
        losses.append(loss.item())
        for p in position.unique().tolist():
            of_rows = {"loss": error.detach() / scales.variance[p], "magnitude": codes.detach().sum(1)}
            for name, average in averages.items():
                average[p] = 0.99 * average[p] + 0.01 * float(of_rows[name][position == p].mean())
            evidence[p] = 0.99 * evidence[p] + 0.01
    loader.close()
    return losses


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_fifty_weighed_steps_give_the_reference_losses(store, tmp_path, own):
    settings = {"position_sparsity": "own"} if own else {"position_sparsity": "shared", "position_weights": True}
    arm = Standard(features=48, sparsity=0.5, centre="position_scaled", **settings)
    trained = train(store, arm, STEPS, tmp_path / "run", **POLICY)
    history = load_history(trained.folder / "history.safetensors")
    assert history["sparsity_weight"].std() > 0.05
    np.testing.assert_allclose(history["loss"], weighed_reference(store, arm, own), rtol=2e-5)
