"""`temporallens inspect`: a dictionary that is trained already, judged on a small model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import temporallens as tl
from temporallens.cli import app
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.errors import TemporalLensError
from temporallens.evaluation.results import load_results
from temporallens.interop.exporting import export
from temporallens.study.inspection import DOCUMENTS, SECTIONS, inspection, reach_named
from temporallens.study.pretrained import check_pretrained
from temporallens.study.run import run_study
from temporallens.study.stages import stages_of
from tiny_models import tiny_model

TEXT = "A line of words about the weather and the harvest of the year. "


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        (folder / f"{number}.txt").write_text(" ".join(f"{TEXT}{number} {part}" for part in range(12)))
    return folder


@pytest.fixture(scope="module")
def trained(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspected")
    model = tiny_model("llama", root / "tiny")
    store = tl.harvest(str(model), 1, str(texts), out=root / "store", context_length=32, norm_multiple=None)
    return tl.train(store, tl.BatchTopK(features=32, k=4), 20, root / "theirs", batch_size=64).folder


def test_a_dictionary_says_itself_where_it_belongs(trained: Path, texts: Path) -> None:
    study = inspection([str(trained)], text=str(texts), tokens=2_000).study
    (entry,) = study.activations.values()
    assert (entry.layer, entry.context_length) == (1, 32)
    assert {name for name in SECTIONS if getattr(study.evaluation, name) is not None} == set(SECTIONS)


def test_a_model_of_this_machine_stands_in_the_study_by_its_whole_path(
    trained: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.parent)
    store = tl.harvest("tiny", 1, str(texts), out=tmp_path / "store", context_length=32, norm_multiple=None)
    known = tl.train(store, tl.BatchTopK(features=32, k=4), 5, tmp_path / "theirs", batch_size=64).folder
    study = inspection([str(known)], text=str(texts), tokens=2_000).study
    (entry,) = study.activations.values()
    assert entry.model == str(trained.parent / "tiny")
    check_pretrained(study, stages_of(study, ""))


@pytest.mark.slow
def test_two_are_judged_beside_each_other_in_one_report(trained: Path, texts: Path, tmp_path: Path) -> None:
    study = inspection([str(trained), str(trained)], text=str(texts), tokens=4_000)
    assert list(study.study.arms) == ["theirs", "theirs-2"]
    assert study.study.evaluation.drift is not None
    evaluation = dict.fromkeys(("clusters", "features", "splicing", "drift", "positions"))
    less = study.study.model_copy(update={"evaluation": study.study.evaluation.model_copy(update=evaluation)})
    run_study(study._replace(study=less), tmp_path / "out")
    results = load_results(tmp_path / "out")
    assert [run.kind for run in results.runs] == ["pretrained", "pretrained"]
    assert results.runs[0].fve == results.runs[1].fve
    report = (tmp_path / "out" / "report.html").read_text()
    assert "<dt>Are some positions explained worse than others?</dt>" in report
    assert "<dd>theirs-2: A feature lives where" in report  # where its features live
    assert report.count("Not measured: the study left positions out.") == 2
    assert report.count("Pushed by 8 tokens, ") + report.count("profile behind 8 tokens.") == 2  # a quarter of what rows of 32 have
    assert report.index("<dl") < report.index("On held-out documents")
    assert "theirs-2" in report and "were trained elsewhere, and were taken as found" in report


def test_names_of_any_length_and_number_are_told_apart(trained: Path, texts: Path, tmp_path: Path) -> None:
    places = [
        shutil.copytree(trained, tmp_path / name) for name in ("a/s-3", "b/s", "c/s", "d/ö\u00fc", "e/" + "n" * 200, "f/" + "n" * 200)
    ]
    study = inspection([str(place) for place in places], text=str(texts), tokens=2_000).study
    assert list(study.arms) == ["s-3", "s", "s-4", "dictionary", "n" * 40, f"{'n' * 40}-6"]
    assert len(study.name) <= 80


def test_a_target_is_for_transcoders(trained: Path, texts: Path) -> None:
    with pytest.raises(
        TemporalLensError, match="gives back what it takes, and --target says where it gives something else: leave that out"
    ):
        inspection([str(trained)], text=str(texts), target="blocks.1.hook_mlp_out")


def test_what_does_not_fit_is_refused_before_a_plan_is_printed(trained: Path, texts: Path, tmp_path: Path) -> None:
    narrow, model = Path(__file__).parents[1] / "interop" / "fixtures" / "saelens-topk", trained.parent / "tiny"
    found = CliRunner().invoke(app, ["inspect", str(narrow), "--model", str(model), "--text", str(texts), "--dry-run"])
    assert found.exit_code == 2 and "for activations of width 6, and those of activations.tiny-3 have 32" in found.output
    found = CliRunner().invoke(
        app, ["inspect", str(trained), "--text", str(texts), "--tokens", "2000", "--out", str(tmp_path / "out"), "--dry-run"]
    )
    assert found.exit_code == 0 and "harvest/tiny-1" in found.output and not (tmp_path / "out").exists()


def test_rows_are_those_of_training_as_far_as_they_can_be(trained: Path) -> None:
    model = "smollm2-135m"

    def asked(**given: Any) -> Any:
        return inspection([str(trained)], model=model, **given).study

    longer = asked(trained_context=512)
    (entry,) = longer.activations.values()
    assert (entry.context_length, longer.arms["theirs"].origin.context_length) == (512, 512)
    assert (longer.evaluation.fidelity.rows, longer.evaluation.splicing.rows) == (32, 8)
    assert longer.evaluation.fidelity.shifts == asked(trained_context=128).evaluation.fidelity.shifts == (8, 32)
    assert [asked(trained_context=length).evaluation.fidelity.shifts for length in (64, 12, 4)] == [(4, 16), (1, 3), (1,)]
    drift = longer.evaluation.drift
    assert (drift.context_length, drift.documents * drift.context_length) == (1024, 1 << 14)
    beyond = asked(trained_context=4096)
    (entry,) = beyond.activations.values()
    assert (entry.context_length, beyond.evaluation.drift) == (1024, None)
    less = asked(without=["drift", "splicing"]).evaluation
    assert less.drift is None and less.splicing is None and less.closing is not None
    with pytest.raises(TemporalLensError, match="inspect measures no section 'drifts': it can be without positions, octaves, sinks"):
        asked(without=["drifts"])


def test_rows_come_from_many_documents_where_there_are_many(trained: Path, texts: Path, tmp_path: Path) -> None:
    for number in range(DOCUMENTS):
        (tmp_path / f"{number}.txt").write_text(TEXT)
    few, many = (inspection([str(trained)], text=str(folder), tokens=10 * DOCUMENTS * 32).study for folder in (texts, tmp_path))
    assert [entry.rows_per_document for study in (few, many) for entry in study.activations.values()] == [None, 10]


def test_what_no_file_says_is_asked_for(tmp_path: Path, trained: Path) -> None:
    config = json.loads((trained / "cfg.json").read_text())
    config["metadata"] = {"sae_lens_version": "6.0.0"}
    untold = tmp_path / "untold"
    untold.mkdir()
    (untold / "sae_weights.safetensors").write_bytes((trained / "sae_weights.safetensors").read_bytes())
    kept = ("architecture", "d_in", "d_sae", "dtype", "apply_b_dec_to_input", "normalize_activations", "metadata")
    (untold / "cfg.json").write_text(json.dumps({key: config[key] for key in kept}))
    with pytest.raises(TemporalLensError, match="does not say which model and layer it is of: give --model and --layer"):
        inspection([str(untold)])
    assert inspection([str(untold)], model="smollm2-135m", layer="blocks.3.hook_mlp_out").study.activations


def test_a_dictionary_that_needs_tokens_is_refused(trained: Path, texts: Path, tmp_path: Path) -> None:
    store = trained.parent / "store"
    arm = tl.BatchTopK(features=32, k=4, expectation=ExpectationPolicy(embedding=False))
    known = tl.train(store, arm, 5, tmp_path / "known", batch_size=64).folder
    with pytest.raises(TemporalLensError, match="needs positions or tokens"):
        inspection([str(known)])


def test_a_model_that_a_file_names_and_nobody_has_is_asked_for(trained: Path, texts: Path, tmp_path: Path) -> None:
    folder = export(trained, "saelens", tmp_path / "theirs")
    model = json.loads((trained / "cfg.json").read_text())["metadata"]["temporallens"]["source"]["model"]
    written = (folder / "cfg.json").read_text()
    assert model not in written  # what is exported names no folder of this machine
    (folder / "cfg.json").write_text(written.replace(f'"{Path(model).name}"', '"my tiny one"'))
    named = inspection([str(folder)], text=str(texts), tokens=2_000).study
    with pytest.raises(TemporalLensError, match=r"the files name the model 'my tiny one', and there is no model at .*; give --model"):
        reach_named(named)
    reach_named(inspection([str(folder)], model, text=str(texts), tokens=2_000).study)
