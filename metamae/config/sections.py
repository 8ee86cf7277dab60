"""The sections of a configuration: frozen dataclasses whose defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metamae.config.checks import check_fields, positive, require
from metamae.errors import ConfigError, suggest

LEARNABLE = ("step_size", "contrast_weight", "nearby_ratio", "mask_ratio", "temperature")
"""Settings that ``learn.settings`` may name."""


NORMALISED_FROM = 4
"""Values that a token needs for a mean and a deviation of its own."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Transformer encoder; the defaults are the paper's (section 3.1).

    Attributes:
        width: Width of a token's embedding, a multiple of 4 and of ``heads``.
        depth: Number of transformer blocks.
        heads: Attention heads of a block.
        mlp_ratio: Width of a block's MLP, as a multiple of ``width``.
        dropout: Share of values that training drops, in attention and MLP.
        content_scale: Leave a token's embedded content as ``published``, small beside its position
            where a token holds few values; or bring it to the norm of ``positions``.
    """

    width: int = 256
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 2.0
    dropout: float = 0.0
    content_scale: Literal["published", "positions"] = "published"

    def __post_init__(self) -> None:
        """Check sizes."""
        check_fields(self, "encoder")
        _check_transformer("encoder", self.width, self.heads, self.depth, self.mlp_ratio)
        require(0 <= self.dropout < 1, "encoder.dropout in [0, 1)", self.dropout)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Transformer decoder; the paper chooses the depth per data set (Table 8).

    Attributes:
        width: Width of a token in the decoder, a multiple of 4 and of ``heads``.
        depth: Number of transformer blocks.
        heads: Attention heads of a block.
        mlp_ratio: Width of a block's MLP, as a multiple of ``width``.
        attention: ``self``, the paper's, or ``cross``: mask tokens read from the latents only,
            which is cheaper.
        query_fraction: Share of an example's masked tokens that the outer loss is taken on, drawn
            anew in every step; the cross decoder computes no others.
        normalise_targets: Reconstruct each token standardised by its own mean and deviation, where
            it holds four real values or more, of a signal or an image.
        mix_blocks: Each block of the ``cross`` decoder reads its own learned mix of the outputs of
            all encoder blocks, not the last one's (CrossMAE).
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 2.0
    attention: Literal["self", "cross"] = "self"
    query_fraction: float = 1.0
    normalise_targets: bool = False
    mix_blocks: bool = False

    def __post_init__(self) -> None:
        """Check sizes."""
        check_fields(self, "decoder")
        _check_transformer("decoder", self.width, self.heads, self.depth, self.mlp_ratio)
        within = 0 < self.query_fraction <= 1
        require(within, "decoder.query_fraction in (0, 1]", self.query_fraction)
        crossed = self.attention == "cross" or not self.mix_blocks
        expected = "decoder.attention=cross where decoder.mix_blocks=true"
        require(crossed, expected, self.attention)
        reading = self.depth > 0 or not self.mix_blocks
        require(reading, "decoder.depth >= 1 where decoder.mix_blocks=true", self.depth)


def _check_transformer(name: str, width: int, heads: int, depth: int, mlp_ratio: float) -> None:
    require(width > 0 and width % 4 == 0, f"{name}.width to be a positive multiple of 4", width)
    require(heads > 0 and width % heads == 0, f"{name}.heads to divide {name}.width", heads)
    require(depth >= 0, f"{name}.depth >= 0", depth)
    require(mlp_ratio > 0, f"{name}.mlp_ratio > 0", mlp_ratio)
    hidden = width * mlp_ratio >= 1
    require(hidden, f"{name}.mlp_ratio that gives a unit or more to width {width}", mlp_ratio)


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Shares of masked tokens, and of nearby tokens drawn into the support (section 2.2).

    Attributes:
        mask_ratio: Share of an example's tokens that is masked.
        nearby_ratio: Chance that a masked token beside a visible one joins the support.
        ratio_range: Two ratios between which that of every step is drawn, instead of
            ``mask_ratio`` (R2MAE); empty for none.
        rule: Which tokens are masked in training: ``random`` ones; those that a few tokens attend
            to most in the encoder's first block (``attention``, SMA); those whose loss a head ranks
            highest (``hard``, hard patches); those that a sampler does not draw (``adaptive``,
            AdaMAE).
        rule_share: Share of the masked tokens that the rule chooses at the first step and at the
            last, in proportion between; the others are random. Empty for the rule's own: 0 and 1
            of ``attention``, 0 and 0.5 of ``hard``, 1 and 1 of
            ``adaptive``.
        attention_rows: Share of an example's tokens whose attention ``attention`` sums, drawn anew
            in every step.
    """

    mask_ratio: float = 0.5
    nearby_ratio: float = 0.1
    ratio_range: tuple[float, ...] = ()
    rule: Literal["random", "attention", "hard", "adaptive"] = "random"
    rule_share: tuple[float, ...] = ()
    attention_rows: float = 0.1

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "masking")
        require(0 < self.mask_ratio < 1, "masking.mask_ratio between 0 and 1", self.mask_ratio)
        nearby = 0 <= self.nearby_ratio <= 1
        require(nearby, "masking.nearby_ratio in [0, 1]", self.nearby_ratio)
        ends = self.ratio_range
        ordered = not ends or (len(ends) == 2 and 0 < ends[0] < ends[1] < 1)
        expected = "masking.ratio_range of two rising ratios between 0 and 1, or empty"
        require(ordered, expected, ends)
        shares = self.rule_share
        fit = not shares or (len(shares) == 2 and all(0 <= share <= 1 for share in shares))
        require(fit, "masking.rule_share of two shares in [0, 1], or empty", shares)
        chosen = not shares or self.rule != "random"
        require(chosen, "masking.rule_share empty where masking.rule=random", shares)
        rows = 0 < self.attention_rows <= 1
        require(rows, "masking.attention_rows in (0, 1]", self.attention_rows)


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig:
    """Latent refinement: ``z' = z - step_size * gradient`` (Eq. 2).

    Attributes:
        step_size: How far an inner step goes; 0 refines nothing.
        steps: Number of inner steps.
        differentiation: How gradients flow through them: ``unrolled`` and ``checkpointed`` are
            exact, the second with less memory over many steps; ``docs/adapter.md`` compares all.
        chunk_size: Refine that many examples at a time, 0 the whole batch; with ``checkpointed`` it
            bounds memory.
        learned: ``none`` for a fixed step size, or the axes that get their own learned one.
        support_mean: Divide an example's support loss by its own number of support tokens
            (``task``), or by the mean number over the batch (``batch``), as published.
        reduction: Share of the support loss that a refinement is to take off, whatever the data's
            units: the step size starts at ``step_size`` and a slow controller holds it there.
            0 keeps the step size.
    """

    step_size: float = 0.5
    steps: int = 1
    differentiation: Literal["unrolled", "first_order", "checkpointed", "finite_difference"] = (
        "unrolled"
    )
    chunk_size: int = 0
    learned: Literal["none", "scalar", "channel", "step", "channel_step"] = "none"
    support_mean: Literal["task", "batch"] = "task"
    reduction: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "adaptation")
        require(self.step_size >= 0, "adaptation.step_size >= 0", self.step_size)
        learnable = self.step_size > 0 or self.learned == "none"
        require(learnable, "adaptation.step_size > 0 where it is learned", self.step_size)
        require(self.steps >= 1, "adaptation.steps >= 1", self.steps)
        require(self.chunk_size >= 0, "adaptation.chunk_size >= 0", self.chunk_size)
        whole = self.chunk_size == 0 or self.support_mean == "task"
        require(whole, "adaptation.chunk_size=0 with support_mean=batch", self.chunk_size)
        require(0 <= self.reduction < 1, "adaptation.reduction in [0, 1)", self.reduction)
        held = self.reduction == 0 or (self.step_size > 0 and self.learned == "none")
        expected = "adaptation.step_size > 0 and learned=none where reduction is held"
        require(held, expected, f"{self.step_size} and {self.learned}")


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Task-contrastive loss (Eq. 3-4): its weight, temperature and projector.

    It needs an inner step: with ``adaptation.step_size=0`` both views of an example are equal, and
    what is left only pushes the examples of a batch apart.

    Attributes:
        weight: Its weight beside the query loss; 0 leaves it out.
        temperature: Divides similarities; the lower, the more the nearest negatives count.
        hidden: Width of the projector's hidden layer.
        out: Width of what is contrasted.
        view: What an example is contrasted with: the method's ``own``, that is a second mask of
            ``mae_contrast`` and the latent before refinement of ``metamae``; or the same tokens of
            the example after randomised ``quantization``.
        bins: Bins of every channel of a quantised example.
        term: How both views are compared: NT-Xent of the paper, or without negatives ``vicreg`` or
            ``isotropy``, whose values are larger: they want smaller weights. ``temperature`` is
            that of NT-Xent alone.
    """

    weight: float = 1.0
    temperature: float = 0.5
    hidden: int = 1024
    out: int = 128
    view: Literal["own", "quantization"] = "own"
    bins: int = 8
    term: Literal["nt_xent", "vicreg", "isotropy"] = "nt_xent"

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "contrast")
        require(self.weight >= 0, "contrast.weight >= 0", self.weight)
        require(positive(self.temperature), "contrast.temperature > 0", self.temperature)
        require(self.hidden >= 1, "contrast.hidden >= 1", self.hidden)
        require(self.out >= 1, "contrast.out >= 1", self.out)
        require(self.bins >= 2, "contrast.bins >= 2", self.bins)
        seen = self.view == "own" or self.weight > 0
        require(seen, "contrast.weight > 0 where contrast.view is not own", self.weight)
        used = self.term == "nt_xent" or self.weight > 0
        require(used, "contrast.weight > 0 where contrast.term is not nt_xent", self.weight)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Pretraining: AdamW, at a constant rate as published.

    Attributes:
        steps: Optimisation steps.
        batch_size: Examples of a batch.
        learning_rate: Of AdamW, after warm-up.
        weight_decay: Of AdamW.
        schedule: Keep the rate ``constant``, or let it fall along a ``cosine``
            (:func:`metamae.training.schedule.learning_rate`).
        warmup_steps: Steps over which the rate rises to its value.
        clip_norm: Bound on the norm of the gradient; 0 sets none.
        accumulate: Batches whose mean gradient makes a step: ``batch_size`` times ``accumulate``
            examples a step, contrasted within each batch alone.
        micro_batch: Compute a batch in pieces of at most that many examples, in less memory and
            with the result of the whole batch, its contrast included; 0 does not divide it.
        prefetch: Prepare batches ahead in a thread; ``auto`` where that pays
            (:class:`metamae.training.feeding.Feed`).
        autocast: Compute in ``bfloat16`` where torch's autocast allows it; weights stay float32.
        compile: Trace the whole loss by ``torch.compile``: minutes at first, then every step is
            faster; ``auto`` where the run is long enough to gain by it (``Config.compiles``).
        cuda_graphs: Replay the compiled loss as recorded graphs, where the device is CUDA.
        compile_memory: Share of what a compiled step would keep for its backward pass that it may
            keep; the rest is computed again.
        log_every: Steps between two lines of the log.
        checkpoint_every: Steps between two checkpoints.
        parallel: What several processes share: ``ddp`` keeps all weights in each of them, ``fsdp``
            divides weights, gradients and moments among them (``docs/scale.md``).
    """

    steps: int = 100_000
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    clip_norm: float = 0.0
    accumulate: int = 1
    micro_batch: int = 0
    prefetch: Literal["auto", "on", "off"] = "auto"
    autocast: Literal["off", "bfloat16"] = "off"
    compile: Literal["off", "on", "auto"] = "auto"
    cuda_graphs: Literal["off", "on"] = "off"
    compile_memory: float = 1.0
    log_every: int = 10
    checkpoint_every: int = 1000
    parallel: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "training")
        require(self.steps >= 0, "training.steps >= 0", self.steps)
        for name in ("batch_size", "accumulate", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"training.{name} >= 1", getattr(self, name))
        require(self.micro_batch >= 0, "training.micro_batch >= 0", self.micro_batch)
        require(positive(self.learning_rate), "training.learning_rate > 0", self.learning_rate)
        require(self.weight_decay >= 0, "training.weight_decay >= 0", self.weight_decay)
        require(self.warmup_steps >= 0, "training.warmup_steps >= 0", self.warmup_steps)
        bounded = 0 <= self.clip_norm < float("inf")
        require(bounded, "a finite training.clip_norm >= 0", self.clip_norm)
        share = 0 < self.compile_memory <= 1
        require(share, "training.compile_memory in (0, 1]", self.compile_memory)
        traced = self.compile != "off" or self.cuda_graphs == "off"
        require(traced, "training.compile=on or auto where training.cuda_graphs=on", self.compile)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Linear probe on frozen features: Adam with L2 decay; the last epoch is reported.

    The defaults are the published protocol.

    Attributes:
        epochs: Passes over the labelled training rows.
        batch_size: Rows of a batch.
        learning_rate: Of Adam.
        weight_decay: L2 decay.
        standardise: Scale features by the mean and deviation of the training rows first (not
            published; an aid for short budgets).
    """

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    standardise: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "probe")
        require(self.epochs >= 1, "probe.epochs >= 1", self.epochs)
        require(self.batch_size >= 1, "probe.batch_size >= 1", self.batch_size)
        require(positive(self.learning_rate), "probe.learning_rate > 0", self.learning_rate)
        require(self.weight_decay >= 0, "probe.weight_decay >= 0", self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What is predicted of a masked token.

    Attributes:
        kind: Its ``values``, as in the paper, or the states that a ``teacher`` has of it: an
            average of the encoder over time, which sees the unmasked example.
        blocks: Last blocks of the teacher whose states are averaged; all where there are fewer.
        decay: Share of itself that the teacher keeps in a step.
        masks: Masks of an example in a step, from each of which the same target is predicted; the
            loss is their mean, and a step costs as many times the encoder and decoder.
    """

    kind: Literal["values", "teacher"] = "values"
    blocks: int = 4
    decay: float = 0.996
    masks: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "target")
        require(self.masks >= 1, "target.masks >= 1", self.masks)
        require(self.blocks >= 1, "target.blocks >= 1", self.blocks)
        require(0 <= self.decay < 1, "target.decay in [0, 1)", self.decay)


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """Settings of MetaMAE that an outer level learns on held-out unlabelled data.

    Every ``unroll_steps`` steps, after ``warmup_steps``, Adam moves them along a hypergradient of
    the reference loss: the query loss of held-out examples at reference ratios, plus
    ``reference_contrast`` times the contrast (where the method has one). See
    ``docs/multilevel.md``.

    Attributes:
        settings: Which MetaMAE learns, among :data:`LEARNABLE`; they start at their configured
            values. Methods beside it have none and train as ever.
        hypergradient: ``darts``, by finite differences, or ``sama``, through the update of the
            optimiser.
        learning_rate: Of Adam on the settings.
        unroll_steps: Training steps between two moves of the settings.
        warmup_steps: Training steps before the first move.
        held_out: Share of the pretraining examples that the reference loss is taken on.
        reference_ratios: Mask ratios of the reference loss.
        reference_nearby: Nearby ratio of the reference loss.
        reference_contrast: Weight of the contrast in the reference loss.
        mask_spread: Deviation of a training step's mask ratio around its learned mean.
    """

    settings: tuple[str, ...] = ()
    hypergradient: Literal["darts", "sama"] = "sama"
    learning_rate: float = 0.05
    unroll_steps: int = 4
    warmup_steps: int = 20
    held_out: float = 0.1
    reference_ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    reference_nearby: float = 0.1
    reference_contrast: float = 0.2
    mask_spread: float = 0.1

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_fields(self, "learn")
        for name in self.settings:
            if name not in LEARNABLE:
                raise ConfigError(
                    f"expected settings to learn among {', '.join(LEARNABLE)}, "
                    f"{suggest(name, LEARNABLE)}"
                )
        distinct = len(set(self.settings)) == len(self.settings)
        require(distinct, "learn.settings without repetition", self.settings)
        require(positive(self.learning_rate), "learn.learning_rate > 0", self.learning_rate)
        require(self.unroll_steps >= 1, "learn.unroll_steps >= 1", self.unroll_steps)
        require(self.warmup_steps >= 0, "learn.warmup_steps >= 0", self.warmup_steps)
        require(0 < self.held_out < 1, "learn.held_out between 0 and 1", self.held_out)
        inside = all(0 < ratio < 1 for ratio in self.reference_ratios)
        fit = bool(self.reference_ratios) and inside
        require(fit, "learn.reference_ratios between 0 and 1", self.reference_ratios)
        nearby = 0 <= self.reference_nearby <= 1
        require(nearby, "learn.reference_nearby in [0, 1]", self.reference_nearby)
        weight = self.reference_contrast
        require(weight >= 0, "learn.reference_contrast >= 0", weight)
        require(positive(self.mask_spread), "learn.mask_spread > 0", self.mask_spread)
