"""How every arm of a study is trained: one frozen section, the same for all, so that arms differ in nothing else."""

from typing import Literal

from pydantic import Field

from temporallens.settings import Seed, Settings

LoggerName = Literal["jsonl", "tensorboard", "wandb", "trackio"]


class TrainingPolicy(Settings):
    """The `training:` section of a study."""

    steps: int = Field(2000, ge=1)
    """Optimizer steps; each sees one batch."""

    batch_size: int = Field(1024, ge=1)
    """Activations in a batch."""

    batches: Literal["tokens", "rows"] = Field("tokens", exclude_if=lambda batches: batches == "tokens")
    """Whether a batch is made of shuffled tokens, or of as many whole rows of text as have no more than `batch_size` tokens, the excluded
    ones counted: what arms that read whole rows need. It is the same for all arms, so that they see the same activations."""

    learning_rate: float = Field(3e-4, gt=0)
    """Of Adam, at its highest; the lab notes use 3e-4."""

    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero."""

    decay: float = Field(0.2, ge=0, lt=1)
    """Share of the steps, at the end, over which the learning rate falls to zero."""

    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the documents that is never trained on."""

    data_seed: Seed = 0
    """Divides the documents and orders the batches; the same for every arm and seed."""

    dead_after: int = Field(100_000, ge=1)
    """Tokens without firing after which a feature counts as dead and AuxK takes it up."""

    auxiliary: float = Field(1 / 32, ge=0)
    """Weight of the AuxK loss (Gao et al. 2024)."""

    encoder_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the product that nominates codes: bfloat16 where the processor multiplies it natively ("auto"). Codes, gradients and
    weights are float32 either way, and the selection is exact (`docs/performance.md`)."""

    log_every: int = Field(10, ge=1)
    """Steps from one line of the history to the next."""

    checkpoint_every: int = Field(200, ge=1)
    """Steps from one checkpoint to the next: the work that an interruption can cost."""

    snapshots: int = Field(0, ge=0, le=100)
    """Dictionaries that are kept along the way, at equal distances, to see how features come about. The one before a mask hardens is
    always kept."""

    loggers: tuple[LoggerName, ...] = Field((), exclude=True)
    """Where lines of the history go while it trains, with FVE on held-out documents every `checkpoint_every` steps: `jsonl`, `tensorboard`,
    `wandb` or `trackio`, the last three extras of this package. They change nothing, so that no fingerprint holds them; what is trained
    already is not logged."""

    def rate(self, step: int) -> float:
        """Share of the learning rate at this step: linear warm-up, constant, linear decay."""
        rising = (step + 1) / (self.warmup * self.steps) if self.warmup else 1.0
        falling = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return min(1.0, rising, falling)
