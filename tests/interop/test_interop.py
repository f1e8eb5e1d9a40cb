"""Interop: our dictionaries behind the face that sae_bench expects, and our results in the layout that it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.parity import difference
from torch import Tensor
from typer.testing import CliRunner

import temporallens as tl
from temporallens.cli import app
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.position_mean import PositionMean
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.kinds import Arm
from temporallens.dictionaries.saving import save_dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.probing.saebench import SparseProbing, SparseProbingPolicy, divide, fitting_sizes, sparse_probing
from temporallens.evaluation.texts.labelled import LabelledSet
from tiny_models import WIDTH, tiny_model

LAYER, CONTEXT, FEATURES, LENGTH = 2, 16, 40, 9
ARMS: dict[str, Arm] = {
    "batchtopk": BatchTopK(features=FEATURES, k=4),
    "positional": Positional(features=FEATURES, k=4, groups=4),
    "position_mean": PositionMean(features=FEATURES, k=4),
}
TOP_LEVEL = [
    "eval_type_id",
    "eval_config",
    "eval_id",
    "datetime_epoch_millis",
    "eval_result_metrics",
    "eval_result_details",
    "sae_bench_commit_hash",
    "sae_lens_id",
    "sae_lens_release_id",
    "sae_lens_version",
    "sae_cfg_dict",
    "eval_result_unstructured",
]
EVAL_CONFIG = [
    "random_seed",
    "dataset_names",
    "probe_train_set_size",
    "probe_test_set_size",
    "context_length",
    "sae_batch_size",
    "llm_batch_size",
    "llm_dtype",
    "model_name",
    "k_values",
    "lower_vram_usage",
]
FIELDS = ["test", "top_1_test", "top_2_test", "top_5_test", "top_10_test", "top_20_test", "top_50_test", "top_100_test"]


def dictionary(kind: str) -> Dictionary:
    generator = torch.Generator().manual_seed(1)
    made = ARMS[kind].make(WIDTH, CONTEXT, generator)
    with torch.no_grad():
        for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
            if name in {"mask.logits", "position_offset"}:
                tensor.normal_(std=3, generator=generator)
            if name == "threshold":
                tensor.fill_(0.2)
    return made.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "arm" / "run"
    source = {"kind": "model", "model": "tiny", "layer": LAYER, "revision": None}
    metadata = {"source": source, "policies": {"bos": True, "clock": "index"}, "training": {"tokens_seen": 1234}}
    save_dictionary(dictionary("positional"), folder, ARMS["positional"], CONTEXT, metadata)
    return folder


def activations(seed: int = 0, texts: int = 3) -> Tensor:
    return 2 * torch.randn(texts, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


def padded(x: Tensor, side: str) -> Tensor:
    """Rows of LENGTH + 5 tokens as sae_bench hands them over: BOS and padding zero."""
    out = torch.zeros(len(x), LENGTH + 5, WIDTH)
    out[:, -LENGTH:] = x if side == "left" else 0
    if side == "right":
        out[:, 1 : LENGTH + 1] = x
    return out


def test_it_has_what_the_package_reads_of_an_sae(saved: Path) -> None:
    sae = tl.interop.saebench.wrap(saved)
    assert sae.W_enc.shape == (WIDTH, FEATURES) and sae.W_dec.shape == (FEATURES, WIDTH)
    assert sae.b_enc.shape == (FEATURES,) and sae.b_dec.shape == (WIDTH,)
    assert all(isinstance(weight, torch.nn.Parameter) for weight in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    torch.testing.assert_close(sae.W_dec.data.norm(dim=1), torch.ones(FEATURES))
    assert (sae.device, sae.dtype) == (torch.device("cpu"), torch.float32)
    cfg = sae.cfg
    assert (cfg.model_name, cfg.hook_layer, cfg.hook_name) == ("tiny", LAYER, f"blocks.{LAYER}.hook_resid_post")
    assert (cfg.d_in, cfg.d_sae, cfg.context_size, cfg.training_tokens) == (WIDTH, FEATURES, CONTEXT, 1234)
    cfg.metadata, cfg.architecture_str = object(), cfg.architecture  # as the package does before it evaluates
    assert json.loads(json.dumps(cfg.to_dict()))["temporallens"]["arm"]["kind"] == "positional"


@pytest.mark.parametrize("kind", ARMS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_codes_are_those_of_the_true_positions_on_either_side(kind: str, side: str) -> None:
    made, x = dictionary(kind), activations()
    sae = tl.interop.saebench.wrap(made, "tiny", LAYER)
    positions = torch.arange(1, LENGTH + 1).expand(len(x), -1)
    given = padded(x, side)
    live = (given != 0).any(-1)
    assert torch.allclose(sae.encode(given)[live], made.encode(x, positions).flatten(0, 1), atol=1e-6)
    assert torch.allclose(sae(given)[live], made(x, positions).flatten(0, 1), atol=1e-5)
    assert (made.encode(x, positions) > 0).any()


@pytest.mark.parametrize("kind", ARMS)
def test_packed_input_stands_at_its_index_and_an_eos_in_the_middle_moves_nothing(kind: str) -> None:
    made, x = dictionary(kind), activations()
    sae = tl.interop.saebench.wrap(made, "tiny", LAYER)
    assert torch.equal(sae.encode(x), made.encode(x))
    assert torch.equal(sae.decode(sae.encode(x)), made(x))
    holed = padded(x, "left")
    whole = sae.encode(holed)
    holed[:, 8] = 0
    assert torch.equal(sae.encode(holed)[:, 9:], whole[:, 9:])


@pytest.mark.parametrize("kind", ARMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_rows_give_no_nan_in_any_dtype(kind: str, dtype: torch.dtype) -> None:
    sae = tl.interop.saebench.wrap(dictionary(kind), "tiny", LAYER).to(device="cpu", dtype=dtype)
    x = torch.zeros(2, LENGTH, WIDTH, dtype=dtype)
    assert torch.isfinite(sae.encode(x)).all() and torch.isfinite(sae(x)).all()


@pytest.mark.parametrize("kind", ARMS)
def test_a_cast_reaches_what_is_shown_and_not_what_computes(kind: str) -> None:
    made, x = dictionary(kind), activations()
    sae = tl.interop.saebench.wrap(made, "tiny", LAYER)
    assert sae.to(device="cpu", dtype=torch.bfloat16) is sae
    assert sae.dtype == sae.W_enc.dtype == sae.b_dec.dtype == torch.bfloat16 and sae.cfg.dtype == "bfloat16"
    assert all(tensor.dtype != torch.bfloat16 for tensor in sae.dictionary.state_dict().values())
    given = padded(x, "left").bfloat16()
    assert sae.positions(given).dtype == torch.int64
    codes = sae.encode(given)
    assert codes.dtype == sae.decode(codes).dtype == sae(given).dtype == torch.bfloat16
    assert torch.equal(codes, tl.interop.saebench.wrap(made, "tiny", LAYER).encode(given.float()).bfloat16())


def test_lost_positions_are_refused_unless_a_policy_was_set(saved: Path) -> None:
    x = activations().flatten(0, 1)
    with pytest.raises(TemporalLensError, match=r"needs the positions of \[N, D\] activations"):
        tl.interop.saebench.wrap(saved).encode(x)
    for policy in (3, "mean"):
        sae = tl.interop.saebench.wrap(saved, position_policy=policy)
        own = tl.load_dictionary(saved)
        own.position_policy = policy
        assert torch.equal(sae.encode(x), own.encode(x))
        assert sae.cfg.to_dict()["position_policy"] == policy
    assert tl.interop.saebench.wrap(dictionary("batchtopk"), "tiny", LAYER).encode(x).shape == (len(x), FEATURES)


def test_a_policy_does_not_reach_the_dictionary_that_was_wrapped() -> None:
    made = dictionary("positional")
    tl.interop.saebench.wrap(made, "tiny", LAYER, position_policy=2)
    assert made.position_policy is None


def probing(sets: dict[str, list[str]], k_values: tuple[int, ...]) -> SparseProbing:
    """Results with a different number in every place."""
    metrics = [f"{what}_{part}" for what in ("llm", "sae") for part in ("test_accuracy", *(f"top_{k}_test_accuracy" for k in k_values))]
    numbers = iter(range(1, 1000))
    accuracies = {name: {metric: {one: next(numbers) / 1000 for one in classes} for metric in metrics} for name, classes in sets.items()}
    policy = SparseProbingPolicy(k_values=k_values)
    return SparseProbing(policy, "tiny", LAYER, accuracies)


def test_the_json_has_every_key_in_its_place(saved: Path) -> None:
    found = probing({"x/one": ["a", "b"], "two": ["0", "1", "2"]}, (1, 5, 3))
    result = tl.interop.saebench.sparse_probing_json(found, tl.interop.saebench.wrap(saved).cfg, "release")
    assert list(result) == TOP_LEVEL and list(result["eval_config"]) == EVAL_CONFIG
    assert result["eval_config"]["k_values"] == [1, 5, 3] and result["eval_config"]["dataset_names"] == ["x/one", "two"]
    names = {what: [f"{what}_{field}_accuracy" for field in FIELDS] for what in ("llm", "sae")}
    assert list(result["eval_result_metrics"]) == ["llm", "sae"]
    assert all(list(result["eval_result_metrics"][what]) == names[what] for what in names)
    assert [detail["dataset_name"] for detail in result["eval_result_details"]] == ["x/one_results", "two_results"]
    assert all(list(detail) == ["dataset_name", *names["llm"], *names["sae"]] for detail in result["eval_result_details"])
    assert list(result["eval_result_unstructured"]) == ["x/one_results", "two_results"]
    assert result["eval_result_unstructured"]["two_results"] == found.accuracies["two"]
    assert (result["eval_type_id"], result["sae_lens_id"], result["sae_lens_release_id"]) == ("sparse_probing", "custom_sae", "release")


def test_averages_count_every_set_once_and_nothing_is_made_up(saved: Path) -> None:
    found = probing({"one": ["a", "b"], "two": ["0", "1", "2"]}, (1, 3))
    result = tl.interop.saebench.sparse_probing_json(found, tl.interop.saebench.wrap(saved).cfg, "release")
    for what in ("llm", "sae"):
        for metric, value in result["eval_result_metrics"][what].items():
            if metric not in found.accuracies["one"]:
                assert value is None and all(detail[metric] is None for detail in result["eval_result_details"])
                continue
            means = [sum(found.accuracies[name][metric].values()) / len(found.accuracies[name][metric]) for name in ("one", "two")]
            assert [detail[metric] for detail in result["eval_result_details"]] == means
            assert value == sum(means) / 2
    assert result["eval_result_metrics"]["sae"]["sae_top_1_test_accuracy"] is not None
    assert "sae_top_3_test_accuracy" not in result["eval_result_metrics"]["sae"]
    assert "sae_top_3_test_accuracy" in result["eval_result_unstructured"]["one_results"]


def test_parity_sees_every_number(saved: Path) -> None:
    found = probing({"one": ["a", "b"], "two": ["0", "1", "2"]}, (1,))
    ours = tl.interop.saebench.sparse_probing_json(found, tl.interop.saebench.wrap(saved).cfg, "release")
    same = difference(ours, json.loads(json.dumps(ours)))
    assert same == (4 + 2 * 4 + 5 * 4, 0, 0.0)
    for place in [
        ("eval_result_metrics", "llm", "llm_test_accuracy"),
        ("eval_result_unstructured", "two_results", "sae_test_accuracy", "2"),
    ]:
        theirs = json.loads(json.dumps(ours))
        inner = theirs
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] += 0.25
        assert difference(ours, theirs)[1:] == (1, pytest.approx(0.25))
        del inner[place[-1]]
        with pytest.raises(SystemExit, match="lacks, or has in another order"):
            difference(ours, theirs)
    with pytest.raises(SystemExit, match="our keys are"):
        difference(ours, dict(reversed(list(ours.items()))))


SETS = [LabelledSet("weather", [f"rain {n} wind {word}" for n in range(30) for word in ("sun", "road")], ["dry", "wet"] * 30)]
POLICY = SparseProbingPolicy(probe_train_set_size=30, probe_test_set_size=20, context_length=CONTEXT, llm_batch_size=4, k_values=(1, 5))


def test_a_saved_dictionary_is_probed_into_a_file(saved: Path, tmp_path: Path) -> None:
    model = str(tiny_model("llama", tmp_path / "model"))
    path = tl.interop.saebench.probe_folder(saved, SETS, POLICY, tmp_path / "out", model=model)
    assert path == tmp_path / "out" / "arm_run_custom_sae_eval_results.json"
    result = json.loads(path.read_text())
    assert list(result) == TOP_LEVEL and result["sae_lens_release_id"] == "arm/run"
    own = sparse_probing(tl.load_dictionary(saved), model, LAYER, SETS, POLICY, tmp_path / "own")
    assert result["eval_result_unstructured"] == {"weather_results": own.accuracies["weather"]}
    assert result["eval_config"]["model_name"] == model and result["sae_cfg_dict"]["hook_layer"] == LAYER


def test_the_command_probes_tables_with_the_parts_that_they_name(saved: Path, tmp_path: Path) -> None:
    model = str(tiny_model("llama", tmp_path / "model"))
    one = SETS[0]
    parts = ["train" if place % 3 else "test" for place in range(len(one.texts))]
    rows = "".join(f"{text},{label},{part}\n" for text, label, part in zip(one.texts, one.labels, parts, strict=True))
    (tmp_path / "weather.csv").write_text("text,label,split\n" + rows)
    options = ["--sets", str(tmp_path / "weather.csv"), "--part", "split", "--k", "2", "--batch-size", "4", "--context-length", "16"]
    shown = CliRunner().invoke(app, ["probe", str(saved), "--model", model, "--out", str(tmp_path / "out"), *options])
    assert shown.exit_code == 0, shown.output
    *table, path = shown.stdout.splitlines()
    result = json.loads(Path(path).read_text())
    assert f"{result['eval_result_metrics']['sae']['sae_top_2_test_accuracy']:.3f}" in next(line for line in table if "features of" in line)
    assert result["eval_config"]["k_values"] == [2] and result["eval_config"]["context_length"] == 16
    metrics = result["eval_result_unstructured"]["weather_results"]
    assert set(metrics["sae_top_2_test_accuracy"]) == {"dry", "wet"}
    of_twenty = [20 * value for value in metrics["sae_test_accuracy"].values()]  # ten test texts of either class
    assert of_twenty == pytest.approx([round(value) for value in of_twenty], abs=1e-5)


@pytest.mark.parametrize(
    ("command", "options", "sentence"),
    [
        ("evaluate", [], "is a dictionary, not a study; 'temporallens probe "),
        ("probe", ["--layer", "two"], "'two' names no place in a model: a number is the residual stream"),
        ("probe", ["--sets", "nowhere.csv"], "there is no labelled set 'nowhere.csv'"),
    ],
)
def test_the_command_says_what_is_wrong(saved: Path, command: str, options: list[str], sentence: str) -> None:
    shown = CliRunner().invoke(app, [command, str(saved), *options])
    assert shown.exit_code == 2 and sentence in shown.stderr


def test_sizes_are_saebench_s_or_what_the_smallest_class_allows() -> None:
    assert fitting_sizes(SETS) == {"probe_train_set_size": 48, "probe_test_set_size": 12}  # 30 texts in a class
    many = LabelledSet("many", [f"text {n}" for n in range(5200)], ["a", "b"] * 2600)
    assert fitting_sizes([many]) == {"probe_train_set_size": 4000, "probe_test_set_size": 1000}
    divide(SETS[0], SparseProbingPolicy(**fitting_sizes(SETS)))


def test_what_does_not_fit_is_refused_in_a_sentence(saved: Path, tmp_path: Path) -> None:
    def probe(folder: Path = saved, **options: Any) -> None:
        tl.interop.saebench.probe_folder(folder, SETS, POLICY, tmp_path / "out", **options)

    with pytest.raises(TemporalLensError, match="was trained on layer 2 of tiny, not on layer 3; leave the layer out"):
        probe(layer=3)
    with pytest.raises(TemporalLensError, match="does not say which model and layer it was trained on: name both"):
        tl.interop.saebench.wrap(dictionary("positional"))
    with pytest.raises(TemporalLensError, match="the position_policy is -1: it should be a position"):
        tl.interop.saebench.wrap(saved, position_policy=-1)
    clocked = tmp_path / "clocked"
    metadata = {"source": {"kind": "model", "model": "tiny", "layer": LAYER}, "policies": {"clock": "sentence"}}
    save_dictionary(dictionary("positional"), clocked, ARMS["positional"], CONTEXT, metadata)
    with pytest.raises(TemporalLensError, match="counts positions by the clock 'sentence'"):
        probe(clocked)
    assert not (tmp_path / "out").exists()
