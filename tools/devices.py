"""Whole studies on the device that is here: do dictionaries come out as on the processor, and does a Gemma 2 of random weights go through?

    python -m tools.devices [--out runs/devices] [--small] [--processes N]

1. Every kind of arm, and one that knows token and past beforehand, is trained and measured on the device, and once more on the processor,
   each from its own reading of a small model in float32. FVE and L0 on held-out documents must agree.
2. A Gemma 2 with the configuration of 2B, but for fewer layers and the vocabulary of the shipped tokenizer, and random weights is read,
   trained on from a store and from a stream, and measured with what runs it again.
3. With `--processes` the stream is trained on by so many processes, one GPU each, and must give what one process gave.

On a machine without a GPU the device is the processor, and `--small` is what it can do in minutes. The last line says what was found, and
`OUT/devices.json` holds it; exit code 1 where something differs.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from temporallens.activations.language.shipped import model_folder, quiet_transformers
from temporallens.dictionaries.kinds import ARMS, UNTRAINED
from temporallens.evaluation.results import load_results
from temporallens.files import write_json
from temporallens.precision import default_device

AGREEMENT = {"fve": 0.005, "l0": 0.05}
"""Between devices: of FVE the difference, of L0 that relative to the first."""
TOGETHER = 0.002
"""Of FVE, between numbers of processes."""


class Sizes(NamedTuple):
    """Of the model, and of what is learned from it."""

    width: int
    hidden: int
    layers: int
    heads: int
    head: int
    features: int
    steps: int
    tokens: int


WHOLE = Sizes(width=2304, hidden=9216, layers=8, heads=8, head=256, features=16_384, steps=400, tokens=400_000)
SMALL = Sizes(width=128, hidden=256, layers=3, heads=4, head=32, features=512, steps=60, tokens=30_000)


def write_gemma(folder: Path, sizes: Sizes) -> Path:
    """Save a random Gemma 2 with the tokenizer of a shipped model."""
    if (folder / "config.json").exists():
        return folder
    with quiet_transformers():
        from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

        tokenizer = AutoTokenizer.from_pretrained(model_folder("smollm2-135m"))
        config = Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=sizes.width,
            intermediate_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads // 2,
            head_dim=sizes.head,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
        torch.manual_seed(0)
        Gemma2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def arms_of_every_kind(features: int, k: int) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    for kind, arm in ARMS.items():
        if kind not in UNTRAINED:
            arms[kind] = {"kind": kind, "features": features} | ({"k": k} if "k" in arm.model_fields else {})
    arms["known"] = arms["batchtopk"] | {"expectation": {"token": "pair", "past": ["previous", "attention"]}}
    return arms


def study(name: str, model: Path, sizes: Sizes, **changes: Any) -> dict[str, Any]:
    """A study of the model's last layer but one."""
    entry = {"model": str(model), "layer": sizes.layers - 2, "text": "sotu", "max_tokens": sizes.tokens, "context_length": 128}
    plain = {"kind": "batchtopk", "features": sizes.features, "k": 32}
    training = {"steps": sizes.steps, "batch_size": 1024, "learning_rate": 0.002, "held_out": 0.2, "log_every": 20}
    return {
        "name": name,
        "activations": {"gemma": entry},
        "arms": {"batchtopk": plain, "positional": plain | {"kind": "positional", "groups": 8}},
        "training": training,
        "evaluation": {},
    } | changes


def run(out: Path, settings: dict[str, Any], processes: int = 1, on_processor: bool = False) -> dict[str, dict[str, float]]:
    """Do a study, and give what it found of each dictionary. Raises RuntimeError where it ends badly."""
    out.mkdir(parents=True, exist_ok=True)
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if on_processor else {})
    command = [sys.executable, *launcher, "-m", "temporallens", "run", str(path), "--out", str(out)]
    if subprocess.run(command, env=environment, check=False).returncode:
        raise RuntimeError(f"the study in {out} ended badly")
    return {one.arm: {"fve": one.fve, "l0": one.l0, "tokens_per_second": one.tokens_per_second} for one in load_results(out).runs}


def compared(expected: dict[str, dict[str, float]], found: dict[str, dict[str, float]], limits: dict[str, float]) -> dict[str, Any]:
    """The largest differences between dictionaries of the same names, and the names of those beyond the limits."""
    differences = {
        arm: {"fve": abs(found[arm]["fve"] - one["fve"]), "l0": abs(found[arm]["l0"] - one["l0"]) / max(one["l0"], 1e-9)}
        for arm, one in expected.items()
    }
    beyond = [arm for arm, own in differences.items() if not all(own[name] <= limit for name, limit in limits.items())]
    return {"differences": differences, "beyond": beyond}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/devices"))
    parser.add_argument("--small", action="store_true", help="a small model and short trainings")
    parser.add_argument("--processes", type=int, default=1, help="that train on the stream together, one GPU each")
    asked = parser.parse_args()
    out, sizes = asked.out, SMALL if asked.small else WHOLE
    device = torch.cuda.get_device_name() if default_device() == "cuda" else "the processor"
    small = write_gemma(out / "small-model", SMALL)
    every = study("every-arm", small, SMALL, arms=arms_of_every_kind(256, 16))
    every["activations"]["gemma"] |= {"compute_dtype": "float32"}  # which is all that some processors have
    every["training"] |= {"batches": "rows"}  # as arms that look at whole rows want it
    agreement = compared(run(out / "processor", every, on_processor=True), run(out / "device", every), AGREEMENT)
    model = write_gemma(out / "model", sizes)
    rows = {"rows": 8 if asked.small else 32}
    sections = {"splicing": rows, "fidelity": rows, "positions": {}, "bits": {}}
    stored = run(out / "stored", study("gemma-stored", model, sizes, evaluation=sections))
    streaming = study("gemma-streamed", model, sizes)
    streaming["activations"]["gemma"] |= {"stream": True, "stored_every": 4}
    streamed = run(out / "streamed", streaming)
    shared = compared(streamed, run(out / "shared", streaming, asked.processes), {"fve": TOGETHER}) if asked.processes > 1 else None
    found = {"device": device, "agreement": agreement, "stored": stored, "streamed": streamed, "shared": shared}
    write_json(out / "devices.json", found)
    beyond = agreement["beyond"] + (shared["beyond"] if shared else [])
    largest = max(own["fve"] for own in agreement["differences"].values())
    speed = ", ".join(f"{arm} {one['tokens_per_second']:,.0f} tokens/s" for arm, one in stored.items())
    together = f"; {asked.processes} processes gave what one gave" if shared and not shared["beyond"] else ""
    said = f"differ: {', '.join(beyond)}" if beyond else f"agree, FVE to {largest:.4f}"
    print(f"{device}: {len(agreement['differences'])} dictionaries {said}; Gemma 2 of width {sizes.width} went through, {speed}{together}")
    sys.exit(1 if beyond else 0)


if __name__ == "__main__":
    main()
