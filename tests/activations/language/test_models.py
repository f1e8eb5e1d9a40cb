"""Residual streams: equal to transformers' own hidden states, whatever is cut off above and on whichever side rows are padded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, Gemma3Config, Gemma3ForConditionalGeneration

from temporallens.activations.language.models import LanguageModel
from temporallens.errors import TemporalLensError
from tiny_models import CONTEXT, FAMILIES, LAYERS, TEXTS, WIDTH, tiny_model

ALL = ["embed", *range(LAYERS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_model(family, root / family) for family in FAMILIES}


def _rows(model: LanguageModel, lengths: list[int], side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    text = (model.encode(" ".join(TEXTS)) * 2)[: max(lengths)]
    tokens = torch.full((len(lengths), max(lengths)), model.padding_token)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, length in enumerate(lengths):
        start = 0 if side == "right" else max(lengths) - length
        tokens[row, start : start + length] = torch.tensor(text[:length])
        mask[row, start : start + length] = True
    return tokens, mask


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_are_the_hidden_states_of_the_whole_model(family: str, folders: dict[str, Path]) -> None:
    model = LanguageModel.load(str(folders[family]))
    tokens, mask = _rows(model, [20, 20])
    whole = AutoModel.from_pretrained(folders[family]).eval()
    with torch.no_grad():
        expected = whole(tokens, output_hidden_states=True).hidden_states
    streams = model.residuals(tokens, mask, ALL)
    for layer, state in zip(ALL[:-1], expected[:-1], strict=True):  # the last hidden state is normed, block outputs are not
        torch.testing.assert_close(streams[layer], state)
    assert list(streams) == ALL
    assert streams[0].shape == (2, 20, WIDTH)
    assert not torch.allclose(streams[2], streams[3])


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_model_equals_whole_model_and_holds_nothing_above(family: str, folders: dict[str, Path]) -> None:
    whole = LanguageModel.load(str(folders[family]))
    tokens, mask = _rows(whole, [17, 9])
    for layer in ("embed", 0, 2):
        cut = LanguageModel.load(str(folders[family]), up_to=layer)
        kept = 1 if layer == "embed" else layer + 1
        assert len(cut._stack.blocks) == kept
        assert cut.layers == LAYERS
        stream = cut.residuals(tokens, mask, [layer])[layer]
        assert torch.equal(stream[mask], whole.residuals(tokens, mask, ALL)[layer][mask])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_changes_nothing(family: str, folders: dict[str, Path]) -> None:
    model = LanguageModel.load(str(folders[family]))
    lengths = [20, 13, 5, 1]
    right, right_mask = _rows(model, lengths)
    left, left_mask = _rows(model, lengths, side="left")
    from_right, from_left = model.residuals(right, right_mask, ALL), model.residuals(left, left_mask, ALL)
    for layer in ALL:
        torch.testing.assert_close(from_right[layer][right_mask], from_left[layer][left_mask], atol=1e-5, rtol=1e-4)
    for row, length in enumerate(lengths):
        alone = model.residuals(right[row : row + 1, :length], right_mask[row : row + 1, :length], [3])[3]
        torch.testing.assert_close(from_right[3][row, :length], alone[0], atol=1e-5, rtol=1e-4)


def test_what_is_known_of_a_model(folders: dict[str, Path]) -> None:
    causal, encoder = LanguageModel.load(str(folders["llama"]), up_to=0), LanguageModel.load(str(folders["bert"]), up_to=0)
    assert (causal.layers, causal.width, causal.context_length) == (LAYERS, WIDTH, CONTEXT)
    assert (causal.is_encoder, encoder.is_encoder) == (False, True)
    assert (causal.bos, causal.closing, causal.separator) == (causal.tokenizer.bos_token_id, None, causal.tokenizer.eos_token_id)
    assert (encoder.bos, encoder.closing) == (encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id)
    assert len(causal.tokenizer_sha256) == 64
    assert causal.tokenizer_sha256 != encoder.tokenizer_sha256
    assert causal.revision is not None
    assert causal.revision == LanguageModel.load(str(folders["llama"])).revision
    assert not any(parameter.requires_grad for parameter in causal._stack.network.parameters())


def test_bfloat16_stays_bfloat16(folders: dict[str, Path]) -> None:
    model = LanguageModel.load(str(folders["gemma3"]), dtype="bfloat16")
    tokens, mask = _rows(model, [6, 4])
    assert model.dtype == torch.bfloat16
    assert model.residuals(tokens, mask, [1])[1].dtype == torch.bfloat16


def test_text_stack_of_a_multimodal_model(tmp_path: Path, folders: dict[str, Path]) -> None:
    text = json.loads((folders["gemma3"] / "config.json").read_text())
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["gemma3"] / name, tmp_path / name)
    cut = LanguageModel.load(str(tmp_path), up_to=1)
    tokens, mask = _rows(cut, [8, 8])
    with torch.no_grad():
        expected = model.eval().model.language_model(tokens, output_hidden_states=True).hidden_states
    assert (cut.layers, len(cut._stack.blocks)) == (LAYERS, 2)
    torch.testing.assert_close(cut.residuals(tokens, mask, [1])[1], expected[2])


def test_layer_out_of_range(folders: dict[str, Path]) -> None:
    with pytest.raises(TemporalLensError, match="layer 31 is out of range: llama has layers 0 to 3"):
        LanguageModel.load(str(folders["llama"]), up_to=31)
    model = LanguageModel.load(str(folders["llama"]), up_to=1)
    tokens, mask = _rows(model, [4])
    with pytest.raises(TemporalLensError, match="layer 2 was not loaded: llama was loaded up to layer 1"):
        model.residuals(tokens, mask, [2])
    with pytest.raises(TemporalLensError, match="context length 65 is too long: llama has 64 positions"):
        model.check_context(CONTEXT + 1)


def test_directories_that_are_no_models(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(TemporalLensError, match=r"has no config\.json"):
        LanguageModel.load(str(tmp_path))
    bare = tmp_path / "bare"
    shutil.copytree(folders["gpt2"], bare)
    (bare / "model.safetensors").unlink()
    with pytest.raises(TemporalLensError, match="without weights"):
        LanguageModel.load(str(bare))
    (bare / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(TemporalLensError, match=r"pickled weights \(pytorch_model.bin\)"):
        LanguageModel.load(str(bare))
    shutil.copy(folders["gpt2"] / "model.safetensors", bare)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(TemporalLensError, match="no tokenizer"):
        LanguageModel.load(str(bare))


def test_weights_that_do_not_fit(tmp_path: Path, folders: dict[str, Path]) -> None:
    shutil.copytree(folders["llama"], tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"num_hidden_layers": LAYERS + 1}))
    with pytest.raises(TemporalLensError, match=r"incomplete: layers\.4\.\S+ is missing"):
        LanguageModel.load(str(tmp_path / "model"))
    config.write_text(json.dumps(content | {"model_type": "no-such-type"}))
    with pytest.raises(TemporalLensError, match="cannot read the configuration"):
        LanguageModel.load(str(tmp_path / "model"))


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(TemporalLensError, match=r"model smollm2-135 was found neither .*did you mean 'smollm2-135m'\?"):
        LanguageModel.load("smollm2-135")
    for name in ("./nowhere", str(tmp_path / "nowhere"), "nowhere.gguf"):
        with pytest.raises(TemporalLensError, match="no such file or directory"):
            LanguageModel.load(name)
    (tmp_path / "note.txt").write_text("no model")
    with pytest.raises(TemporalLensError, match="is not a model"):
        LanguageModel.load(str(tmp_path / "note.txt"))
