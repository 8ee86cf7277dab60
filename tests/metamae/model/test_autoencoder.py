"""The masked autoencoder: which tokens each loss counts, and what the decoder is given."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from metamae.config.sections import DecoderConfig, EncoderConfig
from metamae.inputs import Image, Inputs, Tabular, Tokens
from metamae.model.autoencoder import MaskedAutoencoder, token_loss
from metamae.model.decoder import CrossDecoder, Decoder
from metamae.model.masking import Masking, Split
from metamae.model.tokenizer import select

ROW = Tabular(name="row", columns=6)
WORDS = Tokens(name="words", length=6, vocabulary=7)
IMAGE = Image(name="photo", channels=2, height=4, width=6, patch=(2, 2))
BATCH = {
    "row": torch.randn(2, 6, generator=torch.Generator().manual_seed(1)).double(),
    "words": torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 2, 0, 1, 3]]),
    "photo": torch.randn(2, 2, 4, 6, generator=torch.Generator().manual_seed(2)).double(),
}

# Two examples of 6 tokens. Example 0 draws token 2 as nearby, example 1 tokens 1 and 3.
SPLIT = Split(
    support_idx=torch.tensor([[0, 1], [2, 5]]),
    query_idx=torch.tensor([[2, 3, 4, 5], [0, 1, 3, 4]]),
    nearby=torch.tensor([[True, False, False, False], [False, True, True, False]]),
)
# Two such inputs of 6 tokens each, split alike.
JOINT_SPLIT = Split(
    support_idx=torch.cat([SPLIT.support_idx, SPLIT.support_idx + 6], dim=1),
    query_idx=torch.cat([SPLIT.query_idx, SPLIT.query_idx + 6], dim=1),
    nearby=torch.cat([SPLIT.nearby, SPLIT.nearby.flip(0)], dim=1),
)


@pytest.mark.parametrize("attention", ["self", "cross"])
@pytest.mark.parametrize("inputs", [(ROW,), (WORDS,), (ROW, WORDS)], ids=["row", "words", "both"])
def test_the_loss_on_scored_tokens_is_that_of_these_tokens(inputs: Inputs, attention: str) -> None:
    """Chosen from the whole; its mean over all equal choices is the loss on all of them."""
    network = network_of(inputs, attention=attention, query_fraction=0.5)
    split = SPLIT if len(inputs) == 1 else JOINT_SPLIT
    targets = network.tokenizer.targets({spec.name: BATCH[spec.name] for spec in inputs})
    batch = {spec.name: BATCH[spec.name] for spec in inputs}
    latent = network.encode(network.visible_tokens(batch, split))
    predictions, losses = network.predict(latent, split), {}
    for number, spec in enumerate(inputs):
        index = split.query_idx.split(network.masking.query_counts, 1)[number] - 6 * number
        losses[spec.name] = token_loss(predictions[spec.name][1], select(targets[spec.name], index))
    pairs = list(combinations(range(4), 2))
    taken = []
    for first in pairs:
        places = torch.tensor([first, first[::-1]]).sort(1).values
        scored = torch.cat([places + 4 * n for n in range(len(inputs))], dim=1)
        found = network.query_loss(latent, targets, replace(split, scored=scored))
        expected = torch.stack([loss.gather(1, places).mean(1) for loss in losses.values()])
        torch.testing.assert_close(found, expected.mean(0))
        taken.append(found)
    torch.testing.assert_close(
        torch.stack(taken).mean(0), network.query_loss(latent, targets, split)
    )


def network_of(
    inputs: Inputs,
    *,
    support_mean: str = "task",
    mask_ratio: float = 2 / 3,
    attention: Any = "self",
    query_fraction: float = 1.0,
) -> MaskedAutoencoder:
    """A tiny float64 network, seeded, away from zero biases and unit norms."""
    torch.manual_seed(0)
    network = MaskedAutoencoder(
        inputs,
        EncoderConfig(width=16, depth=1, heads=2),
        DecoderConfig(width=8, depth=1, heads=2, attention=attention),
        Masking(inputs, mask_ratio, query_fraction=query_fraction),
        support_mean=support_mean,
    ).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


class Problem:
    """A network with its batch, targets and latent."""

    def __init__(self, inputs: Inputs, support_mean: str = "task") -> None:
        self.network = network_of(inputs, support_mean=support_mean)
        self.split = SPLIT if len(inputs) == 1 else JOINT_SPLIT
        batch = {spec.name: BATCH[spec.name] for spec in inputs}
        self.targets = self.network.tokenizer.targets(batch)
        visible = self.network.visible_tokens(batch, self.split)
        self.latent = self.network.encode(visible)

    def losses(self) -> tuple[Tensor, Tensor]:
        """Support and query loss, ``(B,)`` each."""
        arguments = (self.latent, self.targets, self.split)
        return self.network.support_loss(*arguments), self.network.query_loss(*arguments)


@pytest.mark.parametrize("values", [1, 3])
def test_loss_of_a_real_token_is_the_mean_squared_error_of_its_values(values: int) -> None:
    """One value of one token at a time."""
    prediction, target = torch.randn(2, 2, 3, values)
    losses = token_loss(prediction, target)
    assert losses.shape == (2, 3)
    for b in range(2):
        for t in range(3):
            errors = [(prediction[b, t, v] - target[b, t, v]).item() ** 2 for v in range(values)]
            assert losses[b, t].item() == pytest.approx(sum(errors) / values, rel=1e-5)


def test_loss_of_a_symbol_is_its_cross_entropy() -> None:
    """Over the vocabulary; as many tokens as symbols, so that a wrong axis would go unnoticed."""
    logits, symbols = torch.randn(2, 4, 4), torch.randint(4, (2, 4))
    losses = token_loss(logits, symbols)
    assert losses.shape == (2, 4)
    for b in range(2):
        for t in range(4):
            scores = logits[b, t].tolist()
            expected = math.log(sum(map(math.exp, scores))) - scores[symbols[b, t]]
            assert losses[b, t].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_predictions_are_float32(dtype: torch.dtype) -> None:
    """Half precision sums lose small tokens; float64 stays float64."""
    prediction = torch.randn(1, 2, 3).to(dtype)
    for target in (torch.zeros(1, 2, 3), torch.tensor([[0, 1]])):
        losses = token_loss(prediction, target)
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, token_loss(prediction.float(), target))
        assert token_loss(prediction.double(), target.to(target.dtype)).dtype == torch.float64


def test_select_picks_tokens_of_each_example() -> None:
    """Own indices per example, for indices ``(B, L)`` and values ``(B, L, D)`` alike."""
    tokens, index = torch.arange(12).reshape(2, 3, 2), torch.tensor([[2, 0], [1, 1]])
    assert select(tokens, index).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    assert select(tokens[..., 0], index).tolist() == [[4, 0], [8, 8]]


@pytest.mark.parametrize("support_mean", ["task", "batch"])
@pytest.mark.parametrize("inputs", [(ROW,), (WORDS,), (IMAGE,), (IMAGE, WORDS)])
def test_losses_are_means_over_the_right_tokens(inputs: Inputs, support_mean: str) -> None:
    """Every term written out: visible + nearby over their count, masked over theirs."""
    problem = Problem(inputs, support_mean)
    support_loss, query_loss = problem.losses()
    predictions = problem.network.predict(problem.latent, problem.split)
    expected_support, expected_query = torch.zeros(2).double(), torch.zeros(2).double()
    for number, spec in enumerate(inputs):
        nearby = problem.split.nearby[:, 4 * number : 4 * number + 4]
        counts = [2 + int(nearby[b].sum()) for b in range(2)]
        for b in range(2):
            count = counts[b] if support_mean == "task" else sum(counts) / 2
            target = problem.targets[spec.name][b]
            visible, masked = (prediction[b] for prediction in predictions[spec.name])
            for place, token in enumerate(SPLIT.support_idx[b]):
                loss = token_loss(visible[None, None, place], target[None, None, token])
                expected_support[b] += loss.item() / count / len(inputs)
            for place, token in enumerate(SPLIT.query_idx[b]):
                loss = token_loss(masked[None, None, place], target[None, None, token])
                expected_query[b] += loss.item() / 4 / len(inputs)
                if nearby[b, place]:
                    expected_support[b] += loss.item() / count / len(inputs)
    torch.testing.assert_close(support_loss.detach(), expected_support, rtol=1e-10, atol=0)
    torch.testing.assert_close(query_loss.detach(), expected_query, rtol=1e-10, atol=0)


def test_the_two_support_means_agree_when_counts_are_equal_and_only_then() -> None:
    """A batch mean ties an example's step to the luck of the others."""
    task, batch = Problem((ROW,)), Problem((ROW,), "batch")
    one, other = task.losses()[0], batch.losses()[0]
    torch.testing.assert_close(other, one * torch.tensor([3, 4]) / 3.5)
    for problem in (task, batch):
        nearby = torch.tensor([[True, False, False, False], [False, True, False, False]])
        problem.split = Split(SPLIT.support_idx, SPLIT.query_idx, nearby)
    assert torch.equal(task.losses()[0], batch.losses()[0])


# token of example 0 -> whether its target matters to (support loss, query loss)
COUNTED = {0: (True, False), 1: (True, False), 2: (True, True), 3: (False, True), 5: (False, True)}


@pytest.mark.parametrize("token", COUNTED)
@pytest.mark.parametrize("spec", [ROW, WORDS, IMAGE], ids=lambda spec: spec.name)
def test_each_loss_sees_its_own_targets_only(spec: Tabular | Tokens | Image, token: int) -> None:
    """Visible: support only. Drawn nearby: both. Far or not drawn: query only. Never example 1."""
    problem = Problem((spec,))
    before = problem.losses()
    target = problem.targets[spec.name].clone()
    target[0, token] = (target[0, token] + 1) % 7 if spec is WORDS else target[0, token] + 1
    problem.targets = {spec.name: target}
    after = problem.losses()
    for old, new, counts in zip(before, after, COUNTED[token], strict=True):
        assert (old[0] != new[0]).item() is counts
        assert old[1] == new[1]


def test_the_encoder_never_sees_a_masked_value() -> None:
    """Changing query tokens of the batch leaves the latent as it was."""
    network, changed = network_of((ROW,)), BATCH["row"].clone()
    changed.scatter_(1, SPLIT.query_idx, 9.0)
    latents = [
        network.encode(network.visible_tokens({"row": x}, SPLIT)) for x in (BATCH["row"], changed)
    ]
    assert torch.equal(latents[0], latents[1])


@pytest.mark.parametrize("inputs", [(ROW,), (IMAGE, WORDS)])
def test_the_decoder_is_given_positions_mask_tokens_and_types(inputs: Inputs) -> None:
    """[class, support, query]; positions of the true places; none, and no type, for the class."""
    problem = Problem(inputs)
    decoder, split, seen = problem.network.decoder, problem.split, []
    decoder.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    decoder(problem.latent, split, slice(1, None))
    (given,) = seen
    embedded = decoder.embed(problem.latent)
    for b in range(2):
        order = torch.cat([split.support_idx[b], split.query_idx[b]])
        content = torch.cat(
            [embedded[b, 1:], decoder.mask_token[0].expand(split.query_idx.shape[1], -1)]
        )
        expected = content + decoder.positions[order]
        if decoder.type_vectors is not None:
            expected = expected + decoder.type_vectors[order // 6]
        torch.testing.assert_close(given[b, 1:], expected)
        torch.testing.assert_close(given[b, 0], embedded[b, 0])


def test_decoder_depth_zero_is_linear_and_norm() -> None:
    """A published ablation: masked tokens then depend on their place alone."""
    torch.manual_seed(0)
    network = MaskedAutoencoder(
        (ROW,),
        EncoderConfig(width=16, depth=1, heads=2),
        DecoderConfig(width=8, depth=0, heads=2),
        Masking((ROW,), 2 / 3),
    ).double()
    latent = network.encode(network.visible_tokens({"row": BATCH["row"]}, SPLIT))
    support, query = network.predict(latent, SPLIT)["row"]
    assert support.shape == (2, 2, 1)
    assert torch.equal(query[0, 1], query[1, 2])  # both are token 3


def test_the_embedding_table_learns_as_input_and_as_output() -> None:
    """Tied weights: its gradient is the head's plus that of the visible tokens' embeddings."""
    network, batch = network_of((WORDS,)), {"words": BATCH["words"]}
    table, targets = network.tokenizer.symbol_table(0), network.tokenizer.targets(batch)
    visible = network.visible_tokens(batch, SPLIT)

    def gradients(support: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
        loss = network.query_loss(network.encode(support), targets, SPLIT).sum()
        return torch.autograd.grad(loss, of)

    total, by_visible = gradients(visible, table, visible)
    (by_head,) = gradients(visible.detach(), table)
    by_input = torch.zeros_like(table)
    for b in range(2):
        for place, token in enumerate(SPLIT.support_idx[b]):
            by_input[batch["words"][b, token]] += by_visible[b, place]
    torch.testing.assert_close(total, by_head + by_input, rtol=1e-10, atol=1e-12)
    assert by_head.abs().min() > 0  # every symbol is in the softmax
    assert by_input[1].any()
    assert not by_input[6].any()  # a symbol that occurs nowhere


@pytest.mark.parametrize("inputs", [(ROW,), (IMAGE, WORDS)])
def test_features_are_the_mean_of_all_tokens_without_the_class_token(inputs: Inputs) -> None:
    """From the unmasked example: another masking changes nothing."""
    network = network_of(inputs).eval()
    batch = {spec.name: BATCH[spec.name] for spec in inputs}
    latent = network.encoder(network.tokenizer(batch))
    tokens = sum(spec.tokens for spec in inputs)
    assert latent.shape[1] == 1 + tokens
    expected = sum(latent[:, 1 + t] for t in range(tokens)) / tokens
    torch.testing.assert_close(network.features(batch), expected)
    torch.testing.assert_close(network.token_features(batch), latent[:, 1:])
    masked_less = network_of(inputs, mask_ratio=0.2)
    masked_less.load_state_dict(network.state_dict())
    assert torch.equal(masked_less.eval().features(batch), network.features(batch))


def test_predictions_follow_the_counts_of_each_input() -> None:
    """Inputs of different sizes: 6 patches of 8 values, 6 words of 7 symbols."""
    problem = Problem((IMAGE, WORDS))
    predictions = problem.network.predict(problem.latent, problem.split)
    shapes = {name: [tuple(p.shape) for p in pair] for name, pair in predictions.items()}
    assert shapes == {"photo": [(2, 2, 8), (2, 4, 8)], "words": [(2, 2, 7), (2, 4, 7)]}


@pytest.mark.parametrize("kind", [Decoder, CrossDecoder])
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("inputs", [(ROW,), (IMAGE, WORDS)])
def test_decoding_only_what_is_read_is_exact(
    inputs: Inputs, depth: int, kind: type[Decoder | CrossDecoder]
) -> None:
    """The last block computes the tokens of a loss alone; values and gradients stay the same."""
    problem = Problem(inputs)
    config = DecoderConfig(width=8, depth=depth, heads=2)
    decoder = kind(config, inputs, problem.latent.shape[-1]).double()
    weights = [*decoder.parameters()]
    latent = problem.latent.detach().requires_grad_()
    whole = decoder(latent, problem.split, slice(0, None))
    rows = torch.tensor([[5, 1, 1], [0, 2, 6]])
    for part, expected in (
        (decoder(latent, problem.split, rows), select(whole, rows)),
        (decoder(latent, problem.split, slice(3, None)), whole[:, 3:]),
    ):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-13)
        probe = torch.randn(expected.shape, dtype=torch.float64)
        for ours, theirs in zip(
            torch.autograd.grad((part * probe).sum(), [latent, *weights], allow_unused=True),
            torch.autograd.grad(
                (expected * probe).sum(), [latent, *weights], retain_graph=True, allow_unused=True
            ),
            strict=True,
        ):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_mask_tokens_of_a_cross_decoder_do_not_see_each_other() -> None:
    """Moving one query token changes its own state and no other, unlike with self-attention."""
    problem, config = Problem((ROW,)), DecoderConfig(width=8, depth=2, heads=2)
    moved = SPLIT.query_idx.clone()
    moved[:, 0] = SPLIT.query_idx[:, 1]
    other = Split(SPLIT.support_idx, moved, SPLIT.nearby)
    for kind, alone in ((Decoder, False), (CrossDecoder, True)):
        torch.manual_seed(0)
        decoder = kind(config, (ROW,), problem.latent.shape[-1]).double()
        before, after = (decoder(problem.latent, s, slice(3, None)) for s in (SPLIT, other))
        assert not torch.equal(before[:, 0], after[:, 0])
        assert torch.allclose(before[:, 1:], after[:, 1:], rtol=0, atol=1e-14) is alone
