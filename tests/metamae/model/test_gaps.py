"""Missing cells: part of the input, and of no loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metamae import DataError, InputError, build_method, make_config
from metamae.config import METHODS, override
from metamae.data.dataset import Partition, Task
from metamae.data.looking import look_at
from metamae.inputs import Inputs, LabelledBatch, Tabular, Tokens, scored
from tests.tiny import SIZES

INPUTS: Inputs = (
    Tabular(name="row", columns=5, gaps=True),
    Tokens(name="categories", length=3, vocabulary=9),
)


def make_rows(count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(count, 5, generator=generator)
    row[torch.rand(count, 5, generator=generator) < 0.3] = torch.nan
    return {"row": row, "categories": torch.randint(9, (count, 3), generator=generator)}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_from_rows_with_gaps(name: str) -> None:
    config = override(make_config("tabular", method=name), [*SIZES, "training.steps=1"][:-1])
    torch.manual_seed(0)
    method = build_method(config, INPUTS, Task.of_classes("ab") if name == "supervised" else None)
    rows = make_rows()
    if name != "random":
        batch = LabelledBatch(rows, torch.tensor([0, 1] * 3)) if name == "supervised" else rows
        loss = method(batch, method.draw(6, torch.Generator().manual_seed(1))).loss
        loss.backward()
        assert torch.isfinite(loss)
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.isfinite(method.features(rows)).all()


@pytest.mark.parametrize("name", ["mae", "metamae", "mae_linear"])
def test_no_gradient_comes_from_a_missing_cell(name: str) -> None:
    """Exactly none, into the cell or into what predicts it, through the inner step too."""
    config = override(make_config("tabular", method=name), SIZES)
    torch.manual_seed(0)
    method = build_method(config, INPUTS).double()
    rows = make_rows()
    row = rows["row"].double().requires_grad_()
    missing = row.isnan()
    method({**rows, "row": row}, method.draw(6, torch.Generator().manual_seed(1))).loss.backward()
    assert row.grad is not None
    assert (row.grad[missing] == 0).all()
    assert (row.grad[~missing] != 0).any()


@pytest.mark.parametrize("name", ["mae", "metamae", "mae_linear"])
def test_nothing_learns_to_predict_values_that_nobody_measured(name: str) -> None:
    """With every number missing, the rows of the head that predict numbers get no gradient."""
    config = override(make_config("tabular", method=name), SIZES)
    torch.manual_seed(0)
    method = build_method(config, INPUTS)
    rows = make_rows() | {"row": torch.full((6, 5), torch.nan)}
    method(rows, method.draw(6, torch.Generator().manual_seed(1))).loss.backward()
    head = method.heads[0][1] if name == "mae_linear" else method.network.heads[0]
    assert (head.weight.grad[0] == 0).all()
    assert (head.weight.grad[1] != 0).any(), "whether a number is there is learned"


def test_a_missing_cell_is_the_same_whatever_stood_there() -> None:
    """Values are erased before anything is computed of them: the pair is (0, 0)."""
    spec = INPUTS[0]
    full = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    other = full * 7 - 3
    missing = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.4
    other[~missing] = full[~missing]
    one, two = (spec.patchify(x.masked_fill(missing, torch.nan)) for x in (full, other))
    assert torch.equal(one, two)
    assert (one[missing] == 0).all()
    assert torch.equal(one[~missing][:, 0], full[~missing])


def test_the_loss_of_a_missing_value_is_left_out_and_of_its_absence_is_not() -> None:
    spec = INPUTS[0]
    target = spec.patchify(torch.tensor([[1.0, torch.nan, 2.0, torch.nan, 0.0]]))
    prediction = torch.full((1, 5, 2), 3.0, requires_grad=True)
    loss = (scored(spec, prediction, target) - target).square().mean(-1)
    # There: ((3 - x)^2 + (3 - 1)^2) / 2; missing: (0 + (3 - 0)^2) / 2.
    assert loss.tolist() == [[4.0, 4.5, 2.5, 4.5, 6.5]]
    loss.sum().backward()
    assert prediction.grad is not None
    assert prediction.grad[0, [1, 3], 0].tolist() == [0.0, 0.0]
    plain = Tabular(name="row", columns=5)
    assert scored(plain, prediction, prediction) is prediction


def test_tokens_of_a_row_with_gaps_turn_back_into_it() -> None:
    spec = Tabular(name="row", columns=5, gaps=True)
    row = make_rows()["row"]
    torch.testing.assert_close(spec.unpatchify(spec.patchify(row)), row, equal_nan=True)
    assert spec.describe_token() == "5 columns, some cells missing"


def test_gaps_are_only_where_they_are_declared() -> None:
    row = make_rows()["row"].numpy()
    plain = Partition({"row": row}, (Tabular(name="row", columns=5),))
    with pytest.raises(DataError, match="expected finite values in input 'row', got nan"):
        plain.batch(slice(None))
    gaps = Partition({"row": row}, INPUTS[:1])
    assert torch.equal(gaps.batch(slice(None))["row"].isnan(), make_rows()["row"].isnan())
    assert look_at(gaps) == []
    with pytest.raises(DataError, match=r"got -?inf"):
        Partition({"row": row * torch.inf}, INPUTS[:1]).batch(slice(None))
    with pytest.raises(InputError, match="floating point"):
        INPUTS[0].check(torch.ones(2, 5, dtype=torch.int64))
