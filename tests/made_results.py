"""Results as a finished study leaves them, made without one: everything here is what `load_results` would accept."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from temporallens.activations.clocks import CLOCKS
from temporallens.evaluation.beforehand import BEFORE, INDEX, LAST, MEAN, PAST, RUNNING, TOKEN, Beforehand, Explained
from temporallens.evaluation.comparison import Comparison, RunScores, compare
from temporallens.evaluation.history import History
from temporallens.evaluation.results import ActivationsResult, RunResult, TimedResults, TimedRun
from temporallens.evaluation.scan import ClockScan, Scan

ENTRY = "smollm2-middle"
POSITIONS = 128
ARMS: dict[str, Any] = {
    "standard": {"kind": "standard", "features": 1152, "sparsity": 0.04},
    "batchtopk": {"kind": "batchtopk", "features": 1152, "k": 32},
    "positional": {"kind": "positional", "features": 1152, "k": 32, "temperature_start": 5.0, "temperature_end": 0.1},
}
STUDY: dict[str, Any] = {
    "name": "quickstart",
    "scans": [{"model": "smollm2-135m", "context_length": 128}],
    "activations": {ENTRY: {"model": "smollm2-135m", "layer": 12, "context_length": 128}},
    "arms": ARMS,
    "levels": {},
    "training": {"steps": 1000, "batch_size": 1024, "learning_rate": 0.001, "held_out": 0.1, "data_seed": 0},
    "seeds": [0],
    "one_seed": {"arms": [], "activations": []},
    "notes": {},
}


def make_run(family: str = "batchtopk", /, seed: int = 0, **changes: Any) -> TimedRun:
    """A run on held-out documents whose index 0 is left out; masked where its arm is `positional`."""
    masked = family == "positional"
    openness = [1.0, *(1 - (0.45 if p == 1 else 0.09 if p < 4 else 0.02) for p in range(1, POSITIONS))]
    run = {
        "activations": ENTRY,
        "arm": family,
        "family": family,
        "level": None,
        "kind": family,
        "seed": seed,
        "features": 1152,
        "training_steps": 1000,
        "tokens_seen": 1_024_000,
        "final_loss": 139.27,
        "mse_loss": 128.4,
        "sparsity_loss": 10.9 if family == "standard" else 0.0,
        "fve": {"standard": 0.65, "batchtopk": 0.7782}.get(family, 0.7722),
        "fve_within_position": 0.7701,
        "fve_first": None,
        "l0": {"standard": 61.2, "batchtopk": 32.0}.get(family, 32.1),
        "dead_features": 12,
        "openness": 0.977 if masked else None,
        "openness_by_position": openness if masked else None,
        "position_loss": [None, *[130.0] * (POSITIONS - 1)],
        "position_fve": [None, *[0.77] * (POSITIONS - 1)],
        "position_l0": [None, *[32.0] * (POSITIONS - 1)],
        "position_count": [0, *[190] * (POSITIONS - 1)],
        "held_out_tokens": 24_130,
        "world": None,
        "fields": None,
        "measures": {},
        "seconds": 41.8,
        "tokens_per_second": 24_500.0,
    }
    return TimedRun.model_validate(run | changes)


def make_entry(**changes: Any) -> ActivationsResult:
    policies = {"rows": "split", "bos": True, "padding": None, "clock": "index", "context_length": 128, "norm_multiple": 10.0}
    entry = {
        "model": "smollm2-135m",
        "layer": 12,
        "width": 576,
        "rows": 250_112,
        "sequences": 1954,
        "documents": 26,
        "held_out_documents": 3,
        "positions": POSITIONS,
        "clock": "index",
        "policies": policies,
        "eta2": 0.0123,
        "eta2_floor": 0.0021,
        "excluded": {"first": 1954, "norm": 77, "special": 0},
        "norm": [25137.0, 514.0, *[140.0] * 126],
    }
    return ActivationsResult.model_validate(entry | changes)


def make_scan(
    model: str = "smollm2-135m",
    layers: int = 8,
    length: int = 128,
    clocks: Sequence[str] = ("index", "sentence"),
    seed: int = 0,
    beforehand: Beforehand | None = None,
) -> Scan:
    """Of a causal model with a sink at index 0; late values are those of all tokens."""
    random = np.random.default_rng(seed)
    depth = np.linspace(0, 1, layers)
    values = np.arange(length)
    found = {}
    for place, name in enumerate(clocks):
        eta2 = 0.03 * depth * np.exp(-2 * depth * (1 - 0.4 * place)) + 0.001
        early = np.exp(-values / (1 + 20 * depth[:, None])) * random.uniform(0.7, 1.3, (layers, length)) + 0.002
        early[:, 0] = 0
        share, floor = early / early.sum(1, keepdims=True), [0.002] * layers
        found[name] = ClockScan(values.tolist(), eta2.tolist(), floor, share.tolist(), eta2.tolist(), floor)
    norm = 30 + 200 * depth[:, None] + 5 * random.standard_normal((layers, length))
    norm[:, 0] *= 1 + 110 * depth
    norm[:, 1] *= 1 + 2.5 * depth
    sinks = np.zeros((layers, length))
    sinks[1:, 0] = 1
    sinks[1:, 1:] = random.binomial(256, 0.0008, (layers - 1, length - 1)) / 256
    sinks[1:, 1] = 0.02
    return Scan(
        model=model,
        revision=None,
        text="sotu",
        dtype="float32",
        layers=["embed", *(str(layer) for layer in range(layers - 1))],
        clocks=found,
        norm=norm.tolist(),
        sinks=sinks.tolist(),
        sequences=256,
        tokens=256 * length,
        context_length=length,
        seed=0,
        excluded={"norm_multiple": 10.0},
        beforehand=beforehand,
    )


def make_beforehand(layers: int = 8, token: float = 0.6, encoder: bool = False) -> Beforehand:
    """Tokens explain so much, each clock .01, the token before .04 more and the past .03 more."""

    def explained(share: float) -> Explained:
        return Explained([share] * layers, [share - 0.004] * layers, [share + 0.004] * layers, [0.0, *[None] * (layers - 1)])

    alone = dict.fromkeys(CLOCKS, 0.01) | {TOKEN: token, BEFORE: 0.12, PAST: 0.2, LAST: 0.19, MEAN: 0.03, RUNNING: 0.02}
    added = dict.fromkeys(CLOCKS, 0.01) | {BEFORE: 0.04, PAST: 0.03}
    together = {TOKEN: token, INDEX: token + 0.01, BEFORE: token + 0.05, PAST: token + 0.08}
    parts = [{name: explained(share) for name, share in part.items()} for part in (alone, added, together)]
    lags, lengths = [1, 2, 4, 8], [1, 2, 4, 8]
    own, null = [[0.5, 0.25, 0.1, None]] * layers, [[0.0] * 4] * layers
    rank, mixed = [[1.0, 1.8, 3.0, 5.0]] * layers, [[1.0, 1.9, 3.6, 6.5]] * layers
    return Beforehand(*parts, History(lags, own, null, lengths, rank, mixed), encoder, 200, 50, 25000, 6200)


def make_comparison(runs: Sequence[RunResult], levels: Sequence[float] = ()) -> Comparison:
    """What the evaluation says of these runs at equal L0."""
    scores = [RunScores(run.family, run.kind, run.seed, run.l0, run.fve, run.fve_within_position) for run in runs]
    return compare(scores, levels)


def make_results(levels: Sequence[float] = (), **changes: Any) -> TimedResults:
    """Three arms of one seed on one layer, or what `changes` say."""
    content = {
        "format": "temporallens.results/3",
        "name": "quickstart",
        "study": STUDY,
        "study_fingerprint": "ab" * 32,
        "environment": {"python": "3.11.7", "torch": "2.13.0", "threads": 2, "processor": None},
        "scans": {scan.model: scan for scan in (make_scan(), make_scan("minilm-l6", 7))},
        "activations": {ENTRY: make_entry()},
        "runs": [make_run(arm) for arm in ARMS],
        "gains": {},
    } | changes
    runs: list[TimedRun] = content["runs"]
    compared = {name: make_comparison([run for run in runs if run.activations == name], levels) for name in content["activations"]}
    return TimedResults.model_validate({"comparison": compared} | content)
