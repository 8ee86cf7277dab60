"""`Implicit`: closed forms, limits of long loops, its two solvers, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import (
    CurvatureWarning,
    Implicit,
    LatentAdapter,
    LearnedStepSize,
    SecondDerivativeError,
    Unrolled,
)


def random(*shape: int, seed: int = 0, requires_grad: bool = False) -> Tensor:
    """A seeded float64 normal tensor; different seeds for different roles in a test."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.requires_grad_(requires_grad)


def matrices(root: Tensor) -> Tensor:
    """One symmetric positive definite matrix per task, of very different conditioning."""
    scales = torch.tensor([[1.0, 1.0, 1.0], [1.0, 3.0, 10.0], [0.3, 1.0, 30.0]]).to(root)
    turned = torch.matrix_exp(root - root.mT)
    return turned @ torch.diag_embed(scales) @ turned.mT


def quadratic(root: Tensor, centre: Tensor) -> Callable[[Tensor], Tensor]:
    """``0.5 (z - c)' A_b (z - c) - z . c``, whose optimum depends on A: ``c + A^-1 c``."""

    def loss(z: Tensor) -> Tensor:
        offset = z - centre
        curved = 0.5 * torch.einsum("bi,bij,bj->b", offset, matrices(root), offset)
        return curved - (z * centre).sum(1)

    return loss


def optimum(root: Tensor, centre: Tensor) -> Tensor:
    """Where it is."""
    return centre + torch.linalg.solve(matrices(root), centre)


def outer(latent: Tensor) -> Tensor:
    """An outer loss whose cotangent differs in every entry."""
    weights = torch.arange(1.0, latent.numel() + 1, dtype=latent.dtype).view_as(latent)
    return (weights * latent.sin()).sum()


SOLVERS = [
    Implicit("cg", iterations=3, tolerance=0.0),
    Implicit("cg", iterations=100, tolerance=1e-12),
    Implicit("neumann", iterations=3000, scale=1 / 30),
]


# --- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", SOLVERS, ids=repr)
def test_a_quadratic_has_the_derivatives_of_its_optimum(policy: Implicit) -> None:
    """In the centre and in the matrices; conjugate gradients need as many products as axes."""
    root, centre = random(3, 3, 3, requires_grad=True), random(3, 3, seed=1, requires_grad=True)
    expected = torch.autograd.grad(outer(optimum(root, centre)), [root, centre])

    start = optimum(root, centre).detach()
    refined = LatentAdapter(0.01, differentiation=policy)(start, quadratic(root, centre)).latent
    torch.testing.assert_close(refined.detach(), start)
    received = torch.autograd.grad(outer(refined), [root, centre])
    torch.testing.assert_close(received, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("policy", SOLVERS[:2], ids=repr)
def test_the_proximal_term_gives_the_derivative_of_imaml(policy: Implicit) -> None:
    """z* = (A + mu)^-1 (A c + c + mu z0): gradients in the start, the centre and the matrices."""
    mu = 2.0
    policy = Implicit("cg", iterations=policy.iterations, tolerance=policy.tolerance, proximal=mu)
    root, centre = random(3, 3, 3, requires_grad=True), random(3, 3, seed=1, requires_grad=True)
    start = random(3, 3, seed=2, requires_grad=True)
    inputs = [start, root, centre]
    matrix = matrices(root)
    right = (matrix @ centre.unsqueeze(2)).squeeze(2) + centre + mu * start
    exact = torch.linalg.solve(matrix + mu * torch.eye(3, dtype=torch.float64), right)
    expected = torch.autograd.grad(outer(exact), inputs)

    adapter = LatentAdapter(0.06, steps=400, differentiation=policy)
    refined = adapter(start, quadratic(root, centre)).latent
    torch.testing.assert_close(refined, exact, rtol=1e-9, atol=1e-9)
    received = torch.autograd.grad(outer(refined), inputs)
    torch.testing.assert_close(received, expected, rtol=1e-7, atol=1e-8)
    assert (received[0] != 0).all()


@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_damping_is_added_to_the_diagonal(solver: Any) -> None:
    """dz*/db = (A + damping)^-1 for a loss with optimum A^-1 b."""
    root, shift = random(3, 3, 3), random(3, 3, seed=1, requires_grad=True)
    matrix = matrices(root)
    damped = matrix + 5.0 * torch.eye(3, dtype=torch.float64)
    start = torch.linalg.solve(matrix, shift).detach()
    policy = Implicit(solver, iterations=400, tolerance=1e-12, damping=5.0, scale=1 / 35)

    def loss(z: Tensor) -> Tensor:
        return 0.5 * torch.einsum("bi,bij,bj->b", z, matrix, z) - (z * shift).sum(1)

    refined = LatentAdapter(0.01, differentiation=policy)(start, loss).latent
    cotangent = random(3, 3, seed=3)
    (received,) = torch.autograd.grad(refined, shift, grad_outputs=cotangent)
    torch.testing.assert_close(received, torch.linalg.solve(damped, cotangent))


def test_the_sign_and_size_of_the_simplest_case() -> None:
    """L = k (z - c)^2: the optimum is c, whatever k and wherever the search began."""
    curvature = torch.tensor([[0.5], [4.0]], requires_grad=True)
    centre = torch.tensor([[3.0], [-1.0]], requires_grad=True)
    adapter = LatentAdapter(0.1, steps=200, differentiation=Implicit())
    start = torch.zeros(2, 1, requires_grad=True)
    refined = adapter(start, lambda z: (curvature * (z - centre).square()).sum(1)).latent
    torch.testing.assert_close(refined, centre, rtol=1e-4, atol=1e-4)
    (refined * torch.tensor([[1.0], [10.0]])).sum().backward()
    torch.testing.assert_close(centre.grad, torch.tensor([[1.0], [10.0]]))
    torch.testing.assert_close(curvature.grad, torch.zeros(2, 1), rtol=0, atol=1e-3)
    assert start.grad is None


# --- limits ---------------------------------------------------------------------------------------


def nonlinear(theta: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """A small decoder, strongly convex where it matters."""
    weight_in, weight_out, target = theta

    def loss(z: Tensor) -> Tensor:
        error = torch.tanh(z @ weight_in) @ weight_out - target
        return 0.2 * error.square().sum(1) + z.square().sum(1)

    return loss


def nonlinear_inputs() -> tuple[Tensor, ...]:
    shapes = [(3, 4), (4, 2), (2, 2)]
    return tuple(random(*s, seed=10 + i, requires_grad=True) for i, s in enumerate(shapes))


@pytest.mark.parametrize(
    "policy",
    [
        Implicit("cg", iterations=50, tolerance=1e-12),
        Implicit("neumann", iterations=600, scale=0.05),
    ],
    ids=repr,
)
def test_many_unrolled_steps_have_the_same_limit(policy: Implicit) -> None:
    """For a nonlinear loss; the start no longer matters to either."""
    gradients = []
    for differentiation in (Unrolled(), policy):
        theta, start = nonlinear_inputs(), random(2, 3, requires_grad=True)
        adapter = LatentAdapter(0.05, steps=600, differentiation=differentiation)
        refined = adapter(start, nonlinear(theta)).latent
        gradients.append(
            torch.autograd.grad(
                outer(refined), [start, *theta], allow_unused=True, materialize_grads=True
            )
        )
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-7)
    assert gradients[0][1].abs().max() > 1e-2


def test_the_neumann_series_is_a_loop_unrolled_at_the_optimum() -> None:
    """w = eta sum_{k <= K} (I - eta H)^k v has the K + 1 terms of as many steps of that size."""
    theta = nonlinear_inputs()
    found = LatentAdapter(0.05, steps=900)(random(2, 3), nonlinear(theta)).latent.detach()
    for products in (1, 2, 7):
        gradients = []
        for policy, steps in (
            (Unrolled(), products + 1),
            (Implicit("neumann", iterations=products, scale=0.05), 1),
        ):
            adapter = LatentAdapter(0.05, steps=steps, differentiation=policy)
            refined = adapter(found, nonlinear(theta)).latent
            gradients.append(torch.autograd.grad(outer(refined), theta))
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-7, atol=1e-9)


# --- the solvers ----------------------------------------------------------------------------------


class Counted:
    """Products with given matrices over two leaves, counted."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.calls = matrix, 0

    def __call__(self, p: list[Tensor]) -> list[Tensor]:
        self.calls += 1
        whole = torch.cat([leaf.reshape(len(leaf), -1) for leaf in p], dim=1)
        image = (self.matrix @ whole.unsqueeze(2)).squeeze(2)
        return [image[:, :1].view_as(p[0]), image[:, 1:].view_as(p[1])]


def right_hand_side() -> tuple[list[Tensor], Tensor]:
    whole = random(3, 3, seed=4)
    return [whole[:, 0], whole[:, 1:].reshape(3, 2, 1)], whole


def test_conjugate_gradients_stop_at_the_tolerance() -> None:
    """And never later than the number of iterations; two leaves of a task are one vector."""
    matrix = matrices(random(3, 3, 3))
    v, whole = right_hand_side()
    exact = torch.linalg.solve(matrix, whole)
    for iterations, tolerance, calls in ((50, 1e-10, 3), (2, 0.0, 2), (50, 2.0, 1)):
        product = Counted(matrix)
        w = Implicit(iterations=iterations, tolerance=tolerance).solve(product, v)
        assert product.calls == calls
        assert [x.shape for x in w] == [x.shape for x in v]
        solution = torch.cat([x.reshape(3, -1) for x in w], dim=1)
        if tolerance == 1e-10:
            torch.testing.assert_close(solution, exact)
        residual = (matrix @ solution.unsqueeze(2)).squeeze(2) - whole
        assert (residual.norm(dim=1) <= max(tolerance, 1.0) * whole.norm(dim=1)).all()


def test_a_task_that_is_done_waits_for_the_others() -> None:
    """The identity needs one product, the worst matrix three; neither disturbs the other."""
    matrix = matrices(random(3, 3, 3))
    v, _ = right_hand_side()
    together = Implicit(iterations=3, tolerance=1e-8).solve(Counted(matrix), v)
    for task in range(3):
        rows = [x[task : task + 1] for x in v]
        one = slice(task, task + 1)
        alone = Implicit(iterations=3, tolerance=1e-8).solve(Counted(matrix[one]), rows)
        torch.testing.assert_close([x[one] for x in together], alone)


def test_a_zero_cotangent_costs_nothing() -> None:
    """No product, no NaN; for one task among others too."""
    product = Counted(matrices(random(3, 3, 3)))
    v, _ = right_hand_side()
    zeros = [torch.zeros_like(x) for x in v]
    assert all(torch.equal(x, z) for x, z in zip(Implicit().solve(product, zeros), zeros))  # noqa: B905
    assert product.calls == 0
    v[0][1], v[1][1] = 0.0, 0.0
    solution = Implicit().solve(product, v)
    assert all(x.isfinite().all() for x in solution)
    assert solution[0][1] == 0
    assert torch.equal(solution[1][1], torch.zeros(2, 1, dtype=torch.float64))


def test_an_indefinite_hessian_stops_without_nan() -> None:
    """Saddle, maximum and plateau beside a minimum, whose gradient stays right."""
    curvature = torch.tensor(
        [[1.0, 2.0, 4.0], [1.0, -2.0, 0.5], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]],
        dtype=torch.float64,
    )
    centre = random(4, 3, requires_grad=True)
    adapter = LatentAdapter(0.1, differentiation=Implicit(iterations=30, tolerance=1e-10))

    def loss(z: Tensor) -> Tensor:
        return (0.5 * curvature * (z - centre).square()).sum(1)

    refined = adapter(centre.detach(), loss).latent
    cotangent = random(4, 3, seed=1)
    with pytest.warns(CurvatureWarning, match=r"a curvature of -1 in 3 of 4 tasks .*damping"):
        (received,) = torch.autograd.grad(refined, centre, grad_outputs=cotangent)
    assert received.isfinite().all()
    torch.testing.assert_close(received[0], cotangent[0])
    assert torch.equal(received[2:], torch.zeros(2, 3, dtype=torch.float64))
    chunked = LatentAdapter(0.1, differentiation=Implicit(iterations=30), chunk_size=2)
    refined = chunked(
        centre.detach(),
        lambda z, tasks: (0.5 * curvature[tasks] * (z - centre[tasks]).square()).sum(1),
    ).latent
    with pytest.warns(CurvatureWarning) as told:
        torch.autograd.grad(refined, centre, grad_outputs=cotangent)
    numbers = sorted(str(one.message).split("(index ")[1].split(")")[0] for one in told)
    assert numbers == ["[1]", "[2, 3]"], "of the batch, not of the chunk"

    damped = LatentAdapter(0.1, differentiation=Implicit(damping=3.0, tolerance=1e-10))
    refined = damped(centre.detach(), loss).latent
    (received,) = torch.autograd.grad(refined, centre, grad_outputs=cotangent)
    torch.testing.assert_close(received, cotangent * curvature / (curvature + 3.0))


# --- promises -------------------------------------------------------------------------------------


def test_start_and_step_sizes_get_no_gradient() -> None:
    """An optimum depends on neither."""
    size = LearnedStepSize(0.1, channels=3).double()
    start, centre = random(2, 3, requires_grad=True), random(2, 3, seed=1, requires_grad=True)
    adapter = LatentAdapter(size, steps=3, differentiation=Implicit())
    refined = adapter(start, lambda z: (z - centre).square().sum(1)).latent
    gradients = torch.autograd.grad(
        refined.sum(), [start, *size.parameters(), centre], allow_unused=True
    )
    assert gradients[:2] == (None, None)
    torch.testing.assert_close(gradients[2], torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("steps", [0, 2])
def test_losses_of_a_proximal_loop_measure_one_quantity(steps: int) -> None:
    """With or without the proximal term, but the row of `final_loss` like the ones before."""
    loss = lambda z: (z - 1.0).square().sum(1)  # noqa: E731
    start = random(2, 3)
    adapter = LatentAdapter(0.1, differentiation=Implicit(proximal=5.0))
    path = [adapter(start, loss, steps=n).latent for n in range(steps + 1)]
    plain = torch.stack([loss(z) for z in path])
    pull = torch.stack([2.5 * (z - start).square().sum(1) for z in path])
    received = adapter(start, loss, steps=steps, final_loss=True).losses
    assert torch.allclose(received, plain) or torch.allclose(received, plain + pull)


@pytest.mark.parametrize("policy", [Implicit(damping=1.0), Implicit("neumann", scale=0.05)])
def test_dropout_is_replayed(policy: Implicit) -> None:
    """The gradient depends on the seed alone, not on the state at the time of `backward()`."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    gradients = []
    for seed, later in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(seed)
        refined = LatentAdapter(0.05, steps=3, differentiation=policy)(
            random(2, 3), lambda z: (decoder(z) - 1).square().sum(1) + z.square().sum(1)
        ).latent
        torch.manual_seed(later)
        gradients.append(torch.autograd.grad(outer(refined), decoder[3].weight)[0])
        following = torch.rand(3)
        torch.manual_seed(later)
        assert torch.equal(following, torch.rand(3))
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2])


def intermediate() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    weight = random(3, 3, seed=1, requires_grad=True)
    memory = torch.tanh(random(2, 3, seed=2) @ weight)
    return (lambda z: (z - memory).square().sum(1) + 0.1 * (z * memory).cos().sum(1)), weight


def shared_ancestor() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    weight = random(3, 3, seed=1, requires_grad=True)
    memory = torch.tanh(random(2, 3, seed=2) @ weight)
    return (lambda z: (z - memory).square().sum(1) + (z @ weight).square().sum(1)), weight


def tied_transpose() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    weight = random(3, 3, seed=1, requires_grad=True)
    transposed = weight.T
    return (
        lambda z: (z @ (0.1 * weight) @ transposed - 1).square().sum(1) + z.square().sum(1)
    ), weight


@pytest.mark.parametrize("make", [intermediate, shared_ancestor, tied_transpose])
def test_captured_results_and_shared_ancestors(
    make: Callable[[], tuple[Callable[[Tensor], Tensor], Tensor]],
) -> None:
    """Every path from the weights to the loss counts once."""
    gradients = []
    for policy in (Unrolled(), Implicit(iterations=50, tolerance=1e-12)):
        loss, weight = make()
        adapter = LatentAdapter(0.02, steps=700, differentiation=policy)
        refined = adapter(torch.zeros(2, 3, dtype=torch.float64), loss).latent
        gradients.append(torch.autograd.grad(outer(refined), weight))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-7)


# --- refusals -------------------------------------------------------------------------------------


def test_fused_attention_is_refused_in_the_backward_pass() -> None:
    """The forward pass needs first derivatives only, and works."""
    weight = random(8, 8, seed=1, requires_grad=True)

    def loss(z: Tensor) -> Tensor:
        heads = (z @ weight).unsqueeze(1)
        return F.scaled_dot_product_attention(heads, heads, heads).square().sum((1, 2, 3))

    refined = LatentAdapter(0.01, steps=2, differentiation=Implicit())(random(2, 4, 8), loss).latent
    with pytest.raises(SecondDerivativeError, match=r"plain_attention.*FiniteDifference\(\)"):
        refined.sum().backward()


@pytest.mark.parametrize(
    "make",
    [
        lambda weight: lambda z: z.sum(1) + weight.square().sum(1),
        lambda weight: lambda z: (z * weight).sum(1),
    ],
    ids=["slope of 1", "slope of a parameter"],
)
def test_a_loss_linear_in_the_latent_is_refused(make: Any) -> None:
    """It has no optimum; a gradient of zero would hide that."""
    weight = random(2, 3, requires_grad=True)
    adapter = LatentAdapter(0.1, differentiation=Implicit())
    refined = adapter(random(2, 3), make(weight)).latent
    with pytest.raises(ValueError, match="expected a curved support loss, got one that is linear"):
        refined.sum().backward()


def test_a_linear_loss_with_a_proximal_term_is_curved() -> None:
    """z* = z0 - c / mu."""
    slope, start = random(2, 3, requires_grad=True), random(2, 3, seed=1, requires_grad=True)
    adapter = LatentAdapter(0.25, steps=100, differentiation=Implicit(proximal=2.0))
    refined = adapter(start, lambda z: (z * slope).sum(1)).latent
    torch.testing.assert_close(refined, start - slope / 2)
    gradients = torch.autograd.grad(refined.sum(), [start, slope])
    ones = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(gradients, (ones, -ones / 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "gmres"}, "expected solver 'cg' or 'neumann', got 'gmres'"),
        ({"iterations": 0}, "expected at least 1 iteration, got 0"),
        ({"tolerance": -1.0}, "expected tolerance, damping and proximal >= 0"),
        ({"damping": -1.0}, "expected tolerance, damping and proximal >= 0"),
        ({"proximal": -1.0}, "expected tolerance, damping and proximal >= 0"),
        ({"proximal": float("nan")}, "expected tolerance, damping and proximal >= 0"),
        ({"solver": "neumann"}, r"positive scale .*got None.*Implicit\('neumann', scale=...\)"),
        ({"solver": "neumann", "scale": 0.0}, "expected a positive scale .*got 0.0"),
        ({"solver": "neumann", "scale": float("nan")}, "expected a positive scale .*got nan"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Implicit(**settings)


def test_it_cannot_be_differentiated_twice_itself() -> None:
    """Its backward pass is numbers, and says so."""
    centre = random(2, 3, requires_grad=True)
    refined = LatentAdapter(0.1, steps=5, differentiation=Implicit())(
        random(2, 3), lambda z: (z - centre).pow(2).sum(1)
    ).latent
    (gradient,) = torch.autograd.grad(refined.sin().sum(), centre, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
