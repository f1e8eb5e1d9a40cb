"""What tokens say of activations: the tables against sums by hand, rows left out, and dictionaries that have them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import temporallens as tl
from temporallens.activations.context import UNKNOWN, Context, context_of, context_of_tokens
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.expectations.fitting import Chunk, count_tokens, fit_expectation, fit_maps, stored_chunks, sum_rows
from temporallens.dictionaries.expectations.past import SHARPNESS, links_of
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.dictionaries.expectations.tables import Expectation, load_expectation
from temporallens.dictionaries.kinds import ARMS
from temporallens.dictionaries.steps import Progress
from temporallens.errors import TemporalLensError
from temporallens.training import left_out
from temporallens.training.finishing import TrainedArm
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.trainer import train_arms
from temporallens.training.views import View

VOCABULARY, WIDTH, SEQUENCES, LENGTH = 7, 5, 12, 9
TOLERANCE = 0.02  # tables are bfloat16


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, VOCABULARY, (SEQUENCES, LENGTH))
    x = generator.normal(size=(VOCABULARY, WIDTH))[tokens] + generator.normal(size=(SEQUENCES, LENGTH, WIDTH))
    x[:, 1:] += generator.normal(size=(VOCABULARY, VOCABULARY, WIDTH))[tokens[:, :-1], tokens[:, 1:]]
    return x.astype(np.float32), tokens


@pytest.fixture(scope="module")
def store(arrays: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> tl.ActivationStore:
    x, tokens = arrays
    return tl.ActivationStore.from_arrays(x, tmp_path_factory.mktemp("expectations") / "store", tokens=tokens)


def embeddings() -> Tensor:
    return torch.randn(VOCABULARY, 3, generator=torch.Generator().manual_seed(1))


def fitted(store: tl.ActivationStore, entries: np.ndarray | None = None, **policy: object) -> Expectation:
    mean = store.moments.pooled_mean().float().expand(store.positions, -1)
    chosen = np.arange(store.sequences) if entries is None else entries
    asked = ExpectationPolicy(**policy)  # type: ignore[arg-type]
    return fit_expectation(stored_chunks(store, chosen, asked), mean, asked, embeddings, store.folder)


def kept(store: tl.ActivationStore) -> tuple[Tensor, Context]:
    """Training rows about their mean, and their tokens."""
    rows = store.read(np.arange(store.sequences))
    usable = (rows.excluded == 0).nonzero()[:, 0]
    return rows.x[usable] - store.moments.pooled_mean().float(), context_of(rows).rows(usable)


def by_hand(
    y: np.ndarray, token: np.ndarray, before: np.ndarray, shrinkage: tuple[float, float], of: int, without: int | None
) -> np.ndarray:
    """Shrunk means of tokens and then of pairs, over all rows but one, for row `of`; in float64."""
    others = np.arange(len(y)) != (-1 if without is None else without)
    alike = others & (token == token[of])
    single = y[alike].sum(0) / (alike.sum() + shrinkage[0])
    pair = alike & (before == before[of])
    if before[of] == UNKNOWN:
        return np.asarray(single)
    return np.asarray(single + (y[pair] - single).sum(0) / (pair.sum() + shrinkage[1]))


@pytest.mark.parametrize("left_out", [False, True])
def test_tables_of_tokens_and_pairs_are_shrunk_means(store: tl.ActivationStore, left_out: bool) -> None:
    expectation, (y, context) = fitted(store, token="pair", embedding=False), kept(store)
    said = expectation.left_out(y, context) if left_out else expectation.known(context)
    token, before, rows = context.token.numpy(), context.token_before.numpy(), y.double().numpy()
    for row in range(len(rows)):
        wanted = by_hand(rows, token, before, expectation.shrinkage, row, row if left_out else None)
        np.testing.assert_allclose(said[row].numpy(), wanted, atol=TOLERANCE)


def criterion(rows: Tensor, y: Tensor, penalty: float) -> tuple[float, Tensor]:
    """Of generalised cross-validation, and what the ridge regression of this penalty says of its own rows."""
    hat = rows @ torch.linalg.solve(rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=rows.dtype), rows.T)
    return float((y - hat @ y).square().sum() / (len(y) - hat.trace()) ** 2), hat @ y


@pytest.mark.parametrize("both", [False, True])
def test_maps_of_embeddings_are_a_ridge_regression_of_rows(store: tl.ActivationStore, both: bool) -> None:
    policy = ExpectationPolicy(token="pair" if both else "table")
    chunks = stored_chunks(store, np.arange(store.sequences), policy)
    y, context = kept(store)
    counted = count_tokens(chunks, policy, embeddings, store.folder)
    counts = counted.counts
    mean = store.moments.pooled_mean().double().expand(store.positions, -1)
    maps = fit_maps(counted.equations, sum_rows(chunks, mean, policy, VOCABULARY, counted.pairs))
    table = embeddings().double() - (counts.double() @ embeddings().double()) / len(y)
    before = torch.where((context.token_before == UNKNOWN)[:, None], 0.0, table[context.token_before.clamp(min=0)])
    rows = torch.cat([table[context.token], before], 1) if both else table[context.token]
    said = maps.token[context.token]
    if both:
        said = said + torch.where((context.token_before == UNKNOWN)[:, None], 0.0, maps.previous[context.token_before.clamp(min=0)])
    path = [criterion(rows, y.double(), penalty) for penalty in torch.logspace(-4, 5, 2000).tolist()]
    nearest = min(path, key=lambda found: float((found[1] - said).square().sum()))
    torch.testing.assert_close(said, nearest[1], atol=0.001, rtol=0)
    assert nearest[0] < 1.001 * min(found[0] for found in path)
    assert maps.square == pytest.approx(float((y.double() - said).square().sum()), rel=1e-6)


def test_shrinkage_is_the_variance_within_over_that_between(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    tokens = generator.integers(0, 200, (60, 40))
    x = 0.5 * generator.normal(size=(200, WIDTH))[tokens] + generator.normal(size=(60, 40, WIDTH))
    world = tl.ActivationStore.from_arrays(x.astype(np.float32), tmp_path / "store", tokens=tokens)
    assert fitted(world, embedding=False).shrinkage[0] == pytest.approx(1 / 0.5**2, rel=0.2)
    assert fitted(world, embedding=False, permuted=True).shrinkage[0] > 40


def test_the_commonest_pairs_are_kept(store: tl.ActivationStore) -> None:
    every, few = fitted(store, token="pair", embedding=False), fitted(store, token="pair", embedding=False, pairs=4)
    assert few.pair_count.min() >= every.pair_count.sort(descending=True).values[3]
    assert len(few.pair_key) == 4
    assert set(few.pair_key.tolist()) <= set(every.pair_key.tolist())


def test_permuted_tokens_say_next_to_nothing(store: tl.ActivationStore) -> None:
    y, context = kept(store)
    told, permuted = fitted(store, embedding=False), fitted(store, embedding=False, permuted=True)
    left = [float((y - found.known(context)).square().sum() / y.square().sum()) for found in (told, permuted)]
    assert left[0] < 0.8 < left[1]
    torch.testing.assert_close(permuted.left_out(y, context), permuted.known(context))  # its tables do not hold a row as its own token's


def test_saved_tables_are_read_back_and_linked(store: tl.ActivationStore, tmp_path: Path) -> None:
    expectation = fitted(store, token="pair")
    expectation.save(tmp_path / "one.safetensors")
    found = load_expectation(tmp_path / "one.safetensors", WIDTH)
    found.save(tmp_path / "two.safetensors")
    assert found.digest == expectation.digest == load_expectation(tmp_path / "two.safetensors", WIDTH).digest
    assert (tmp_path / "one.safetensors").stat().st_ino == (tmp_path / "two.safetensors").stat().st_ino
    with pytest.raises(TemporalLensError, match="of width 6"):
        load_expectation(tmp_path / "one.safetensors", 6)


@pytest.fixture(scope="module")
def trained(store: tl.ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> TrainedArm:
    arm = tl.BatchTopK(features=16, k=2, expectation=ExpectationPolicy(token="pair", embedding=False))
    return tl.train(store, arm, 30, tmp_path_factory.mktemp("trained") / "arm", batch_size=32, held_out=0.2)


def test_a_trained_dictionary_gives_back_what_it_takes_off(trained: TrainedArm, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    x, tokens = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])
    dictionary = trained.dictionary
    nothing = torch.zeros(SEQUENCES, LENGTH, dictionary.features)
    assert dictionary.expectation is not None
    known = dictionary.decode(nothing, tokens=tokens) - dictionary.decode(nothing, tokens=torch.full_like(tokens, UNKNOWN))
    before = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=UNKNOWN)
    context = Context(tokens.flatten(), before.flatten())
    torch.testing.assert_close(known.flatten(0, 1), dictionary.expectation.known(context))
    codes = dictionary.encode(x, tokens=tokens)
    torch.testing.assert_close(codes, dictionary.encode(x - known, tokens=torch.full_like(tokens, UNKNOWN)))
    loaded = tl.load_dictionary(trained.folder)
    torch.testing.assert_close(loaded(x, tokens=tokens), dictionary(x, tokens=tokens), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (None, "pass tokens, the ids in the shape"),
        (torch.zeros(SEQUENCES, LENGTH), "whole numbers"),
        (torch.zeros(SEQUENCES, 3, dtype=torch.int64), "do not fit activations of shape"),
        (torch.full((SEQUENCES, LENGTH), -2), "ids from 0"),
    ],
)
def test_other_tokens_are_refused(trained: TrainedArm, arrays: tuple[np.ndarray, np.ndarray], tokens: Tensor | None, sentence: str) -> None:
    with pytest.raises(TemporalLensError, match=sentence):
        trained.dictionary.encode(torch.from_numpy(arrays[0]), tokens=tokens)


def test_a_token_beyond_the_vocabulary(store: tl.ActivationStore) -> None:
    beyond = Context(torch.tensor([VOCABULARY]), torch.tensor([UNKNOWN]))
    with pytest.raises(TemporalLensError, match="beyond the vocabulary of 7"):
        fitted(store).known(beyond)
    assert not fitted(store, embedding=False).known(beyond).any()  # nothing is known of a token that training did not see


def test_stores_without_tokens_or_model_are_refused(
    arrays: tuple[np.ndarray, np.ndarray], store: tl.ActivationStore, tmp_path: Path
) -> None:
    untold = tl.ActivationStore.from_arrays(arrays[0], tmp_path / "untold")
    with pytest.raises(TemporalLensError, match="holds no tokens"):
        fitted(untold, embedding=False)
    arm = tl.BatchTopK(features=16, k=2, expectation=ExpectationPolicy())
    with pytest.raises(TemporalLensError, match="no embedding to read"):
        tl.train(store, arm, 5, tmp_path / "arm", batch_size=16)


def test_an_expectation_changes_nothing_where_there_is_none() -> None:
    assert "expectation" not in tl.BatchTopK().model_dump()


KINDS = ("previous", "mean", "same_token", "induction", "attention")


def attended(deviations: list[Tensor]) -> Tensor:
    """What followed deviations like the last of these, where they count (after the first row) and have one before them."""
    total, slots = torch.zeros(WIDTH), 1.0
    for s in range(1, len(deviations)):
        weight = float(torch.exp(SHARPNESS * torch.cosine_similarity(deviations[-1], deviations[s - 1], dim=0)).detach())
        total, slots = total + weight * deviations[s], slots + weight
    return total / slots


def by_steps(dictionary: Dictionary, x: Tensor, tokens: Tensor, static: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstructions of one sequence, row after row."""
    policy, past_map = dictionary.config.expectation, dictionary.past_map
    assert policy is not None and past_map is not None and dictionary.past_centre is not None
    deviations, mean, codes, out = [], torch.zeros(WIDTH), [], []
    for t in range(len(x)):
        same = [s for s in range(t) if tokens[s] == tokens[t]]
        followed = [s + 1 for s in range(t - 1) if tokens[s] == tokens[t - 1]]
        zero = torch.zeros(WIDTH)
        looked = {
            "previous": deviations[t - 1] if t else zero,
            "mean": mean,
            "same_token": deviations[same[-1]] if same else zero,
            "induction": deviations[followed[-1]] if followed else zero,
            "attention": attended(deviations),
        }
        said = torch.cat([looked[kind] for kind in policy.past]) @ past_map
        z = dictionary.codes((x[t] - static[t] - said)[None], None)
        back = dictionary.reconstruct(z)[0] + said
        deviations.append((back - dictionary.past_centre) if t else zero)  # the first row of a sequence is not looked back at
        mean = policy.decay * mean + (1 - policy.decay) * deviations[-1]
        codes.append(z[0])
        out.append(back + static[t])
    return torch.stack(codes), torch.stack(out)


@pytest.mark.parametrize("token", [None, "table"])
def test_the_past_is_walked_in_closed_loop(
    store: tl.ActivationStore, arrays: tuple[np.ndarray, np.ndarray], tmp_path: Path, token: str | None
) -> None:
    policy = ExpectationPolicy(token=token, embedding=False, past=KINDS)  # type: ignore[arg-type]
    arm = tl.BatchTopK(features=16, k=2, expectation=policy)
    dictionary = tl.train(store, arm, 30, tmp_path / "arm", batch_size=32, held_out=0.2).dictionary
    assert dictionary.past_map is not None
    dictionary.past_map.copy_(0.2 * torch.randn(dictionary.past_map.shape, generator=torch.Generator().manual_seed(0)))
    x, tokens = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])
    codes, back = dictionary.encode(x, tokens=tokens), dictionary(x, tokens=tokens)
    known = dictionary.known(dictionary.context(x, tokens))
    static = torch.zeros_like(x) if known is None else known.view_as(x)
    for sequence in range(3):
        wanted = by_steps(dictionary, x[sequence], tokens[sequence], static[sequence])
        torch.testing.assert_close(codes[sequence], wanted[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(back[sequence], wanted[1], atol=1e-5, rtol=1e-4)
    with pytest.raises(TemporalLensError, match="whole sequences"):
        dictionary.encode(x[0], tokens=tokens[0])


def test_a_past_that_says_something_is_found_and_does_not_run_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.normal(size=(WIDTH, WIDTH)))[0]
    x = generator.normal(size=(60, 40, WIDTH))
    for t in range(1, 40):
        x[:, t] = 0.95 * x[:, t - 1] @ turn + 0.3 * x[:, t]
    tokens = np.zeros((60, 40), dtype=np.int64)
    made = tl.ActivationStore.from_arrays(x.astype(np.float32), tmp_path / "store", tokens=tokens, norm_multiple=None)
    kept, rows = made.read(np.arange(48, 60)), torch.from_numpy(x[48:]).float()

    def fve(name: str, **past: Any) -> float:
        arm = tl.BatchTopK(features=16, k=2, expectation=ExpectationPolicy(embedding=False, **past))
        trained = tl.train(made, arm, 60, tmp_path / name, batch_size=64, held_out=0.2).dictionary
        left = (rows - trained(rows, tokens=torch.zeros(12, 40, dtype=torch.int64)))[:, 1:].detach()
        return float(1 - left.square().sum() / (kept.x - kept.x.mean(0)).square().sum())

    with_past = fve("past", past=("previous", "attention"))
    assert with_past > fve("none") + 0.05
    monkeypatch.setattr(left_out, "_solved", lambda dictionary, chunks: [torch.full_like(dictionary.past_map, size) for size in (0.5, 9.0)])
    assert fve("nonsense", past=("previous", "attention")) == pytest.approx(fve("none again"), abs=1e-6)


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_bits(
    store: tl.ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = TrainingPolicy(steps=24, batch_size=32, checkpoint_every=10, log_every=5, held_out=0.2, snapshots=1)
    expectation = ExpectationPolicy(token="pair", embedding=False, past=("previous", "same_token"))
    runs = [ArmRun("known", tl.BatchTopK(features=16, k=2, expectation=expectation), 0)]
    runs.append(ArmRun("masked", tl.Positional(features=16, k=2, expectation=expectation, centre="position"), 0))
    whole = train_arms(store, runs, policy, tmp_path / "whole")
    original = Trainee.step

    def failing(self: Trainee, view: View, progress: Progress) -> None:
        if progress.step == 15:
            raise MemoryError
        original(self, view, progress)

    monkeypatch.setattr(Trainee, "step", failing)
    with pytest.raises(MemoryError):
        train_arms(store, runs, policy, tmp_path / "cut")
    monkeypatch.setattr(Trainee, "step", original)
    for name, run in train_arms(store, runs, policy, tmp_path / "cut").items():
        for file in ("sae_weights.safetensors", "expectation.safetensors", "snapshots/step-000012/sae_weights.safetensors"):
            assert (run.folder / file).read_bytes() == (whole[name].folder / file).read_bytes(), (name, file)
    assert not list((tmp_path / "cut").glob("checkpoint-*"))


REFUSING = ("pretrained", "tfa", "tokenized")


@pytest.mark.parametrize("kind", REFUSING)
def test_arms_that_know_tokens_themselves_or_are_trained_already_refuse_one(kind: str) -> None:
    with pytest.raises(ValidationError, match="expectation"):
        ARMS[kind].model_validate({"expectation": {}})


@pytest.mark.parametrize("kind", [kind for kind in ARMS if kind not in REFUSING])
def test_every_other_arm_can_have_an_expectation(store: tl.ActivationStore, tmp_path: Path, kind: str) -> None:
    level = {ARMS[kind].level: 2} if ARMS[kind].level in ("k", "l0") else {}
    arm = ARMS[kind].model_validate({"features": 16, "expectation": {"embedding": False}} | level)
    trained = tl.train(store, arm, 6, tmp_path / "arm", batch_size=32, held_out=0.2, log_every=3).dictionary
    x, tokens = store.read(np.arange(2)).x.view(2, LENGTH, WIDTH), store.read(np.arange(2)).token.view(2, LENGTH)
    assert trained.expectation is not None and trained(x, tokens=tokens).shape == x.shape
    assert not torch.equal(trained(x, tokens=tokens), trained(x, tokens=tokens.flip(1)))


def test_the_control_looks_back_in_the_next_sequence() -> None:
    context = context_of_tokens(torch.tensor([[1, 2, 1, 2], [3, 3, 3, 3], [5, 6, 5, 6]]), torch.Size((3, 4)), torch.device("cpu"))
    own, other = (links_of(context, ("previous", "same_token", "induction"), of_others) for of_others in (False, True))
    # 12: nothing, behind the twelve rows
    assert own.looked_at["same_token"].tolist() == [12, 12, 0, 1, 12, 4, 5, 6, 12, 12, 8, 9]
    assert own.looked_at["induction"].tolist() == [12, 12, 12, 1, 12, 12, 5, 6, 12, 12, 12, 9]
    assert other.looked_at["previous"].tolist() == [12, 4, 5, 6, 12, 8, 9, 10, 12, 0, 1, 2]
    assert other.looked_at["same_token"].tolist() == [12, 4, 5, 6, 12, 12, 8, 9, 12, 12, 0, 1]
    assert own.sequence.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and other.sequence.tolist() == [1] * 4 + [2] * 4 + [0] * 4


def looking_back(store: tl.ActivationStore, folder: Path, **policy: Any) -> Dictionary:
    """A dictionary whose maps of the past, drawn at random, say much."""
    arm = tl.BatchTopK(features=16, k=2, expectation=ExpectationPolicy(embedding=False, **policy))
    dictionary = tl.train(store, arm, 6, folder / "arm", batch_size=32, held_out=0.2).dictionary
    assert dictionary.past_map is not None
    dictionary.past_map.copy_(0.2 * torch.randn(dictionary.past_map.shape, generator=torch.Generator().manual_seed(0)))
    return dictionary


def test_the_past_of_no_rows_is_nothing(store: tl.ActivationStore, tmp_path: Path) -> None:
    dictionary = looking_back(store, tmp_path, past=KINDS)
    for sequences, length in ((0, LENGTH), (2, 0)):
        x, tokens = torch.zeros(sequences, length, WIDTH), torch.zeros(sequences, length, dtype=torch.int64)
        assert dictionary(x, tokens=tokens).shape == x.shape


def test_the_past_is_differentiable(store: tl.ActivationStore, arrays: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    dictionary = looking_back(store, tmp_path, token=None, past=KINDS).double()
    x, tokens = torch.from_numpy(arrays[0][:2]).double().requires_grad_(), torch.from_numpy(arrays[1][:2])

    def loss(given: Tensor) -> Tensor:
        return dictionary(given, tokens=tokens).square().sum()

    step = 1e-6 * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = (loss(x + step) - loss(x - step)) / 2
    torch.testing.assert_close((torch.autograd.grad(loss(x), x)[0] * step).sum(), wanted, atol=0, rtol=1e-5)


def test_a_sequence_that_is_alone_has_no_other_past(
    store: tl.ActivationStore, arrays: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    dictionary = looking_back(store, tmp_path, past=KINDS, past_of="other")
    x, tokens = torch.from_numpy(arrays[0][:1]), torch.from_numpy(arrays[1][:1])
    assert dictionary.past_map is not None
    alone = dictionary(x, tokens=tokens)
    dictionary.past_map.zero_()
    torch.testing.assert_close(alone, dictionary(x, tokens=tokens), atol=0, rtol=0)


@pytest.mark.parametrize("options", [{}, {"exclude_first": False}, {"tokens": None}])
def test_rows_of_a_store_look_back_as_those_of_its_tokens_do(
    arrays: tuple[np.ndarray, np.ndarray], tmp_path: Path, options: dict[str, Any]
) -> None:
    x, tokens = arrays
    made = tl.ActivationStore.from_arrays(x, tmp_path / "store", **{"tokens": tokens, "norm_multiple": None} | options)
    dictionary = looking_back(made, tmp_path, token=None, past=("previous", "mean", "attention"))
    rows = made.read(np.arange(SEQUENCES))
    ids = rows.token.long().view(SEQUENCES, LENGTH)  # -1 where the store has none
    stored = dictionary.encode(rows.x, rows.position, context_of(rows))
    torch.testing.assert_close(stored.view(SEQUENCES, LENGTH, -1), dictionary.encode(torch.from_numpy(x), tokens=ids), atol=1e-5, rtol=1e-4)


def test_what_is_left_of_the_only_row_of_a_token_is_no_rounding_error() -> None:
    token = torch.cat([torch.arange(40).repeat(20), torch.arange(40, 60)])
    x = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(0))[token]  # the token says everything
    y, context = x - x.mean(0), Context(token, torch.full_like(token, UNKNOWN))
    chunk, policy = Chunk(y, torch.zeros_like(token), context), ExpectationPolicy(embedding=False)
    found = fit_expectation(lambda: [chunk], torch.zeros(1, WIDTH), policy, embeddings, "a world")
    only = token >= 40
    assert float(found.left_out(y, context)[only].norm() / y[only].norm()) < 0.05  # without the row nothing is known of its token


def test_padding_lies_before_or_behind_all_that_is_known() -> None:
    tokens = [[5, -1, 6, -1, -1], [-1, -1, 7, 8, 9], [-1, -1, -1, -1, -1]]
    usable = context_of_tokens(tokens, torch.Size((3, 5)), torch.device("cpu")).usable
    assert usable is not None
    assert usable.view(3, 5).tolist() == [
        [False, True, True, False, False],
        [False, False, True, True, True],
        [False, True, True, True, True],
    ]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64, np.int16])
def test_ids_may_be_of_any_whole_type(trained: TrainedArm, arrays: tuple[np.ndarray, np.ndarray], kind: type) -> None:
    x, tokens = torch.from_numpy(arrays[0]), arrays[1]
    wanted = trained.dictionary.encode(x, tokens=tokens)
    for given in (tokens.astype(kind), torch.from_numpy(tokens.astype(kind)), tokens.astype(kind)[::-1, ::-1][::-1, ::-1]):
        torch.testing.assert_close(trained.dictionary.encode(x, tokens=given), wanted, atol=0, rtol=0)


def test_what_is_masked_of_ids_is_not_known(trained: TrainedArm, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    x, tokens = torch.from_numpy(arrays[0]), arrays[1]
    found = trained.dictionary.encode(x, tokens=np.ma.masked_equal(tokens.astype(np.uint16), 3))
    torch.testing.assert_close(found, trained.dictionary.encode(x, tokens=np.where(tokens == 3, UNKNOWN, tokens)), atol=0, rtol=0)


@pytest.mark.parametrize("tokens", ["abc", [[1], [1, 2]], [None] * SEQUENCES, np.full((SEQUENCES, LENGTH), 2**63, dtype=np.uint64)])
def test_what_are_no_ids_is_refused_in_a_sentence(trained: TrainedArm, arrays: tuple[np.ndarray, np.ndarray], tokens: Any) -> None:
    with pytest.raises(TemporalLensError, match="tokens should be whole numbers"):
        trained.dictionary.encode(torch.from_numpy(arrays[0]), tokens=tokens)


def test_a_context_of_other_rows_is_refused(trained: TrainedArm, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    x = torch.from_numpy(arrays[0][0])
    for rows in (1, LENGTH + 1):  # one row's would be that of all
        known = Context(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64))
        with pytest.raises(TemporalLensError, match=f"a context of {rows} rows does not fit"):
            trained.dictionary.encode(x, tokens=known)


def test_codes_may_be_of_any_precision(trained: TrainedArm, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    codes = trained.dictionary.encode(torch.from_numpy(arrays[0]), tokens=arrays[1])
    wanted = trained.dictionary.decode(codes, tokens=arrays[1])
    torch.testing.assert_close(trained.dictionary.decode(codes.double(), tokens=arrays[1]), wanted, atol=0, rtol=0)
