"""How a model is trained: one frozen model of settings, with their defaults and units beside them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class Recipe(BaseModel):
    """How a model is trained. The defaults suit small convolutional and hybrid nets on small images.

    Every field is a piece of its own; all of them go together. `nas.evaluation.recipes` has those of the papers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=30, ge=1, description="passes over the training images")
    batch_size: int = Field(
        default=64, ge=2, description="images a step of all processes; a last incomplete batch is left out"
    )
    accumulate: int = Field(default=1, ge=1, description="parts of a step that a process computes one by one")
    multi_scale: tuple[PositiveInt, ...] = Field(
        default=(), description="sides in pixels, drawn anew for every batch; batches of small images are larger"
    )
    optimizer: str = Field(default="adamw", description="a name that timm.optim knows")
    lr: float = Field(default=3e-3, gt=0, description="highest learning rate, not scaled by the batch size")
    final_lr: float = Field(default=0.01, ge=0, le=1, description="share of lr where warm-up begins and cosine ends")
    warmup_fraction: float = Field(default=0.15, ge=0, lt=1, description="share of all steps with rising learning rate")
    weight_decay: float = Field(default=0.05, ge=0, description="not applied to biases, norms and other vectors")
    host_lr: float = Field(
        default=1.0, ge=0, description="share of lr for all but prediction modules (DynamicViT); 1 for one rate"
    )
    host_frozen: int = Field(default=0, ge=0, description="first epochs in which only prediction modules learn")
    start: Literal["fresh", "teacher"] = Field(default="fresh", description="where the first weights come from")
    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="share of the target spread over all classes")
    flip: bool = Field(default=True, description="mirror half of the images, where the data allow it (not digits)")
    shift: int = Field(default=0, ge=0, description="pixels by which images move at most; hurts short training")
    rand_augment: str = Field(
        default="",
        pattern=r"^(rand(-[a-z]+[0-9.]+)*)?$",
        description="timm's RandAugment, such as rand-m9-mstd0.5-inc1; empty is off",
    )
    random_erasing: float = Field(default=0.0, ge=0, le=1, description="share of images with a rectangle of noise")
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup, 0 is off")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of CutMix, 0 is off")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="for whoever builds the model, not used by train()")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="in front of the classifier")
    branch_dropout: float = Field(default=0.0, ge=0, lt=1, description="behind attention and MLP of pre-norm blocks")
    distill_hard: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the teacher's answer in the loss; of two heads, the last learns it",
    )
    distill_soft: float = Field(default=0.0, ge=0, description="weight of the divergence from the teacher's answer")
    temperature: float = Field(default=1.0, gt=0, description="of both answers in distill_soft")
    distill_tokens: float = Field(default=0.0, ge=0, description="weight of the distance to the teacher's kept tokens")
    ratio: float = Field(
        default=10.0, ge=0, description="weight of keep ratios that are missed, where `keep` draws them"
    )
    keep: Literal["count", "draw"] = Field(
        default="count",
        description="tokens that are kept in training: as many as at inference; or drawn one by one with `ratio` as "
        "weight of a loss, for hosts that are trained already (DynamicViT)",
    )
    ema_decay: float | None = Field(default=None, gt=0, lt=1, description="a step, of averaged weights: the result")
    clip: float | None = Field(default=None, gt=0, description="limit of gradients; 0.01 is usual with agc")
    clip_mode: Literal["norm", "value", "agc"] = Field(default="norm", description="of what the limit is taken")
    amp: Literal["auto", "none", "bf16", "fp16"] = Field(
        default="auto", description="autocast; auto: bf16 where it is faster"
    )
    channels_last: bool = Field(default=True, description="memory format; much faster on CPUs")
    validate_every: int = Field(default=1, ge=1, description="epochs between validations; the last one always counts")

    @property
    def distills(self) -> bool:
        """Whether a loss needs a teacher."""
        return bool(self.distill_hard or self.distill_soft or self.distill_tokens)
