"""A study with a dictionary that was trained elsewhere: it is measured like the others, and refused where it does not belong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from temporallens.dictionaries.saving import load_dictionary as load_ours
from temporallens.errors import TemporalLensError
from temporallens.evaluation.results import load_results
from temporallens.layout import RunFolder, RunId
from temporallens.study.plan import plan_study
from temporallens.study.reading import read_study
from temporallens.study.run import run_study
from tiny_models import WIDTH, tiny_model
from tiny_studies import documents

FIXTURES = Path(__file__).parents[1] / "interop" / "fixtures"
STUDY = """\
name: judged
threads: 1
activations:
  world:
    {{source: world, width: 6, features: 24, positions: 16, sequences: 200, start: 3, periods: [4], active: 2, highest_rate: 0.2,
      coherence: 0.9}}
arms:
  batchtopk: {{kind: batchtopk, features: 16, k: 2}}
  positional: {{kind: positional, features: 16, k: 2, groups: 3}}
  theirs: {{kind: pretrained, path: {path}}}
  named: {{kind: pretrained, path: {named}, encoder: W_enc, decoder: W_dec, k: 3}}
levels: {{k: [2, 4]}}
seeds: [0, 1]
training: {{steps: 12, batch_size: 64, learning_rate: 0.005, log_every: 6, held_out: 0.25}}
evaluation: {{runs: all, positions: {{}}, clusters: {{}}, features: {{}}}}
"""


def written(folder: Path, **replaced: str) -> Path:
    case = shutil.copytree(FIXTURES / "saelens-jumprelu", folder / "theirs", dirs_exist_ok=True)
    text = STUDY.format(path=case, named=case / "sae_weights.safetensors")
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


@pytest.mark.slow
def test_a_dictionary_that_is_trained_already_takes_part_in_everything_but_training(tmp_path: Path) -> None:
    study, out = written(tmp_path), tmp_path / "out"
    lines = {line.stage.name: line for line in plan_study(read_study(study), out).lines}
    assert "train/world/theirs-seed0" in lines and "train/world/theirs-seed1" not in lines
    assert lines["train/world/theirs-seed0"].tokens is None
    run_study(read_study(study), out)
    results = load_results(out)
    runs = {run.id.name: run for run in results.runs}
    assert sorted(name for name in runs if name.startswith(("theirs", "named"))) == ["named-seed0", "theirs-seed0"]
    theirs = runs["theirs-seed0"]
    assert (theirs.kind, theirs.features, theirs.training_steps, theirs.tokens_seen) == ("pretrained", 16, 0, 0)
    assert theirs.mse_loss == theirs.final_loss > 0 and theirs.measures.keys() >= {"positions", "clusters"}
    assert runs["named-seed0"].l0 == 3.0
    compared = results.comparison["world"]
    assert compared.l0 == sorted({2.0, 3.0, 4.0, theirs.l0})  # each at its own
    assert {(row.family, row.l0): row.fve.value for row in compared.reached}["theirs", theirs.l0] == theirs.fve
    assert any((row.family, row.baseline, row.l0) == ("named", "batchtopk", 3.0) for row in compared.against)
    saved = load_ours(RunFolder(out).arm(RunId("world", "theirs", 0)))
    expected = load_file(FIXTURES / "saelens-jumprelu" / "expected.safetensors")
    assert torch.equal(saved.encode(expected["x"]), expected["codes"])
    assert (out / "report.html").exists() and any(path.name.endswith("theirs-seed0.png") for path in (out / "figures").iterdir())
    said: list[str] = []
    run_study(read_study(study), out, say=said.append)
    assert all("skipped" in line for line in said)
    path = tmp_path / "theirs" / "sae_weights.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(path).items()}, path)  # another file under the same name
    said.clear()
    run_study(read_study(study), out, up_to="train", say=said.append)
    assert sorted(line for line in said if line.endswith("done")) == ["read/world/named-seed0: done", "read/world/theirs-seed0: done"]


@pytest.mark.parametrize(
    ("replaced", "sentence"),
    [
        ({"width: 6,": "width: 8,"}, "arms.theirs is .*, for activations of width 6, and those of activations.world have 8"),
        ({"path: {path}}}": "revision: a}}"}, "a path is empty"),
        ({"encoder: W_enc, decoder: W_dec, k: 3": "k: 3"}, "has no k, and k = 3 was requested"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(replaced: dict[str, str], sentence: str, tmp_path: Path) -> None:
    case = tmp_path / "theirs"
    names = {"path": case, "named": case / "sae_weights.safetensors"}
    study = written(tmp_path, **{old.format(**names): new.format(**names) for old, new in replaced.items()})
    with pytest.raises(TemporalLensError, match=sentence):
        run_study(read_study(study), tmp_path / "out")
    assert not (tmp_path / "out").exists()


MODEL_STUDY = """\
name: judged
activations:
  low: {{model: {model}, text: {text}, layer: {layer}, context_length: 16, batch_size: 4, dtype: float32}}
arms: {{theirs: {{kind: pretrained, path: {path}{origin}}}}}
training: {{steps: 2, batch_size: 32, log_every: 2, held_out: 0.4}}
"""


def of_a_model(folder: Path, metadata: dict[str, object], layer: int, origin: str = "") -> Path:
    """A study of a model in a folder called `tiny`, with a dictionary of its width that says `metadata`."""
    model, case = folder / "tiny", folder / "theirs"
    case.mkdir(exist_ok=True)
    if not model.exists():
        tiny_model("llama", model)
    (folder / "text.jsonl").write_text(documents(12))
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(WIDTH, 20, generator=generator)
    save_file({"W_enc": weights, "W_dec": weights.T.contiguous(), "b_enc": torch.zeros(20), "b_dec": torch.zeros(WIDTH)}, case / FILE)
    config = {"architecture": "standard", "d_in": WIDTH, "d_sae": 20, "metadata": {"sae_lens_version": "6.0.0", **metadata}}
    (case / "cfg.json").write_text(json.dumps(config))
    (folder / "study.yaml").write_text(
        MODEL_STUDY.format(model=model, text=folder / "text.jsonl", layer=layer, path=case, origin=f", origin: {origin}" if origin else "")
    )
    return folder / "study.yaml"


FILE = "sae_weights.safetensors"
HOOK = "blocks.1.hook_resid_post"


def test_another_model_layer_or_point_is_refused_unless_they_are_said_to_be_the_same(tmp_path: Path) -> None:
    for metadata, sentence in (
        ({"model_name": "owner/other", "hook_name": HOOK}, r"for the model owner/other, and activations.low is of .*tiny; if these"),
        ({"model_name": "owner/Tiny", "hook_name": "blocks.2.hook_resid_post"}, "for layer 2, and activations.low is layer 1"),
        ({"hook_name": "blocks.1.hook_mlp_out"}, "for layer blocks.1.hook_mlp_out, and activations.low is layer 1"),
    ):
        study = of_a_model(tmp_path, metadata, 1)
        with pytest.raises(TemporalLensError, match=sentence):
            run_study(read_study(study), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    study = of_a_model(
        tmp_path, {"model_name": "other", "hook_name": "blocks.1.hook_mlp_out"}, 1, f"{{model: {tmp_path / 'tiny'}, layer: 1}}"
    )
    run_study(read_study(study), tmp_path / "out", up_to="evaluate")
    study = of_a_model(tmp_path, {"model_name": "owner/Tiny", "hook_name": HOOK}, 1)
    run_study(read_study(study), tmp_path / "again", up_to="train")


def test_a_transcoder_is_refused(tmp_path: Path) -> None:
    study = written(tmp_path)
    shutil.copytree(FIXTURES / "saelens-transcoder", tmp_path / "theirs", dirs_exist_ok=True)
    with pytest.raises(
        TemporalLensError, match=r"a transcoder: it gives activations at blocks.3.hook_mlp_out, and activations.world has none"
    ):
        run_study(read_study(study), tmp_path / "out")
