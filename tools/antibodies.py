"""A pretrained model whose positions carry roles: AntiBERTy on human antibody heavy chains, numbered by AHo.

    python -m tools.antibodies [--out runs/antibodies-store] [--layer 4] [--sequences 2000]

AntiBERTy (Ruffolo et al., arXiv:2112.07782) is an encoder of 8 blocks, width 512, trained on antibody sequences; the wheel `antiberty`
0.1.3 ships it (MIT). The chains are the first of 50,000 that the wheel `abnativ` 2.0.9 ships with AHo's numbers (CC BY-NC-SA 4.0: not for
commercial use; they are read from the wheel and stay there). AHo (Honegger and Plueckthun 2001) gives residues of one place in the fold
one number, from 1 to 149, whatever was inserted or left out before them: a position in the sense of this project, and not the index that
the model counts by. Chains of one third loop (CDR3) are one document, for they may descend from one cell. Both wheels are fetched once, by
hash; weights are read without running what a pickle may hold. The first line says how many masked residues the model guesses right, which
is about 5 % for one that was read wrongly. `tools/antibodies.yaml` is the study that reads the store.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from temporallens.activations.language.shipped import Wheel, unpacked
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError

ANTIBERTY = Wheel("antiberty", "0.1.3", "30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a", "antiberty/trained_models")
ABNATIV = Wheel("abnativ", "2.0.9", "85582a5e801430b110d3770d6d76e9e8e6958b7378a83b531cda0d1a7cb77756", "abnativ/model/percentiles")
REGIONS = {"FR1": (1, 26), "CDR1": (27, 42), "FR2": (43, 56), "CDR2": (57, 76), "FR3": (77, 106), "CDR3": (107, 138), "FR4": (139, 149)}
"""First and last AHo number of the framework's regions and of the loops between them."""
COLUMNS = 149
BATCH = 32


class Chain(NamedTuple):
    """One heavy chain."""

    residues: str
    numbers: list[int]  # AHo's, one for each residue
    loop: str  # its CDR3


def chains(count: int) -> list[Chain]:
    """The first `count` of the shipped chains, each sequence once."""
    found: dict[str, Chain] = {}
    with (unpacked(ABNATIV) / "test_vh_v2_abnativ_seq_scores.csv").open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            if len(found) == count:
                break
            aligned = row["aligned_seq"]
            numbers = [number for number, residue in enumerate(aligned, 1) if residue != "-"]
            first, last = REGIONS["CDR3"]
            loop = aligned[first - 1 : last].replace("-", "")
            found.setdefault(row["input_seq"], Chain(aligned.replace("-", ""), numbers, loop))
    return list(found.values())


def names() -> list[str]:
    """Of positions 0 (which no residue has) to 149: each one's region."""
    found = ["-"] * (COLUMNS + 1)
    for region, (first, last) in REGIONS.items():
        found[first : last + 1] = [region] * (last + 1 - first)
    return found


class Model(NamedTuple):
    """AntiBERTy and its vocabulary."""

    network: BertForMaskedLM
    ids: dict[str, int]

    def encoded(self, part: Sequence[Chain]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids `[B, S + 2]` between CLS and SEP, and where there are any."""
        length = max(len(chain.residues) for chain in part) + 2
        tokens = torch.full((len(part), length), self.ids["[PAD]"])
        for row, chain in enumerate(part):
            ids = [self.ids["[CLS]"], *(self.ids[residue] for residue in chain.residues), self.ids["[SEP]"]]
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens, tokens != self.ids["[PAD]"]


def load() -> Model:
    """The pinned model in float32."""
    folder = unpacked(ANTIBERTY)
    weights = folder / "AntiBERTy_md_smooth"
    config = BertConfig(**json.loads((weights / "config.json").read_text("utf-8")))
    network = BertForMaskedLM(config)
    state = torch.load(weights / "pytorch_model.bin", map_location="cpu", weights_only=True)
    missing = network.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise TemporalLensError(f"the weights of {ANTIBERTY.pin} lack {missing[0]}")
    vocabulary = (folder / "vocab.txt").read_text("utf-8").splitlines()
    return Model(network.eval(), {token: number for number, token in enumerate(vocabulary)})


def guessed(model: Model, part: Sequence[Chain], generator: torch.Generator) -> float:
    """Share of residues that the model names where one in ten is masked."""
    tokens, present = model.encoded(part)
    masked = present & (torch.rand(tokens.shape, generator=generator) < 0.1) & (tokens > model.ids["[MASK]"])
    hidden = tokens.masked_fill(masked, model.ids["[MASK]"])
    said = model.network(input_ids=hidden, attention_mask=present.long()).logits.argmax(-1)
    return float((said == tokens)[masked].float().mean())


def residues(model: Model, part: Sequence[Chain], layer: int) -> Iterator[np.ndarray]:
    """The residual stream after block `layer`, `[S, D]` for each chain, without CLS and SEP."""
    tokens, present = model.encoded(part)
    states = model.network.bert(input_ids=tokens, attention_mask=present.long(), output_hidden_states=True).hidden_states[layer + 1]
    for chain, state in zip(part, states, strict=True):
        yield state[1 : len(chain.residues) + 1].numpy()


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the store, and return where it is."""
    parser = argparse.ArgumentParser(prog="python -m tools.antibodies", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/antibodies-store"), help="%(default)s unless said otherwise")
    for name, value in (("layer", 4), ("sequences", 2000)):
        parser.add_argument(f"--{name}", type=int, default=value, help="%(default)s")
    options = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    model, wanted = load(), chains(options.sequences)
    print(f"masked residues guessed right: {guessed(model, wanted[:256], torch.Generator().manual_seed(0)):.1%}", flush=True)
    length = max(len(chain.residues) for chain in wanted)
    x = np.zeros((len(wanted), length, model.network.config.hidden_size), np.float32)
    mask, positions, tokens = (np.zeros((len(wanted), length), kind) for kind in (bool, np.int64, np.int64))
    for first in range(0, len(wanted), BATCH):
        part = wanted[first : first + BATCH]
        for row, (chain, state) in enumerate(zip(part, residues(model, part, options.layer), strict=True), first):
            end = len(chain.residues)
            x[row, :end], mask[row, :end], positions[row, :end] = state, True, chain.numbers
            tokens[row, :end] = [model.ids[residue] for residue in chain.residues]
    loops = {loop: number for number, loop in enumerate(dict.fromkeys(chain.loop for chain in wanted))}
    store = ActivationStore.from_arrays(
        x,
        options.out,
        mask=mask,
        tokens=tokens,
        documents=np.array([loops[chain.loop] for chain in wanted]),
        positions=positions,
        position_names=names(),
        exclude_first=False,
        source=f"AntiBERTy after block {options.layer}, {len(wanted)} heavy chains, AHo's numbers",
    )
    print(f"{store.rows:,} residues of {store.sequences:,} chains in {store.documents:,} documents: {store.folder}")
    return store.folder


if __name__ == "__main__":
    try:
        main()
    except TemporalLensError as error:
        raise SystemExit(f"error: {error}") from None
