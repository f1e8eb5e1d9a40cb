"""What an inspection costs: the process that is counted, and the dictionary that it reads."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import temporallens as tl
from benchmarks import inspection


def test_a_process_is_counted_by_itself_and_its_failure_ends_this_one(capsys: pytest.CaptureFixture[str]) -> None:
    cost = inspection.costs([sys.executable, "-c", "x = bytearray(200_000_000); print('said')"], 1)
    assert cost.processor > 0 and cost.seconds > 0 and 0.2 < cost.memory < 0.3  # this process, with PyTorch in it, has more
    assert capsys.readouterr().out == "said\n"
    with pytest.raises(SystemExit, match="the inspection failed"):
        inspection.costs([sys.executable, "-c", "raise SystemExit(3)"], 1)


def test_its_features_are_different_activations_without_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = 3 + np.random.default_rng(0).normal(size=(20, 10, 6)).astype(np.float32)

    def harvest(*_: Any, out: Path, **__: Any) -> tl.ActivationStore:
        return tl.ActivationStore.from_arrays(x, out)

    monkeypatch.setattr(inspection.tl, "harvest", harvest)
    inspection.write_dictionary(tmp_path / "x.safetensors", 50, tmp_path / "rows")
    tensors = load_file(tmp_path / "x.safetensors")
    assert tensors["encoder"].shape == (50, 6) and torch.equal(tensors["encoder"], tensors["decoder"])
    torch.testing.assert_close(tensors["encoder"].norm(dim=1), torch.ones(50))
    assert len(torch.unique(tensors["encoder"], dim=0)) == 50
    kept = torch.from_numpy(x[:, 1:].reshape(-1, 6))
    torch.testing.assert_close(tensors["bias"], kept.mean(0))
    dictionary = tl.load_dictionary(
        tmp_path / "x.safetensors", encoder="encoder", decoder="decoder", decoder_bias="bias", subtracts_bias=True, k=4
    )
    assert dictionary.encode(kept[:7]).count_nonzero(dim=1).max() == 4
