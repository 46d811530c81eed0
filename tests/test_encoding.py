"""What the networks see of arrays: finite, standardized, masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pymc_amortized.networks import ArrayLayout, AxisLayout, DataEncoder, DataLayout, ParameterStandardizer
from pymc_amortized.networks.encoding.array_encoder import ENCODERS
from pymc_amortized.numerics.kinds import KINDS
from pymc_amortized.row_density.columns import COLUMNS


def test_standardizer_inverts_with_its_jacobian() -> None:
    rng = np.random.default_rng(0)
    theta = np.stack([rng.normal(3, 2, 4000), rng.standard_cauchy(4000), np.zeros(4000)], 1)
    standardizer = ParameterStandardizer.fit(theta)
    assert standardizer.heavy.tolist() == [False, True, False]
    values = torch.as_tensor(theta[:50])
    z, log_det = standardizer(values)
    back, log_det_back = standardizer.inverse(z)
    assert z.dtype == torch.float32 and back.dtype == log_det.dtype == torch.float64
    torch.testing.assert_close(back, values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det_back, log_det, atol=1e-5, rtol=1e-5)
    assert z[:, 0].abs().max() < 5 and z[:, 1].abs().max() < 50
    step = 1e-3
    shifted = (standardizer.inverse(z + step)[0] - standardizer.inverse(z - step)[0]) / (2 * step)
    torch.testing.assert_close(-shifted.log().sum(-1), log_det, atol=2e-2, rtol=0)


def test_standardizer_stays_finite() -> None:
    theta = np.array([[1e293], [-1e293], [0.0], [1.0], [-1.0], [0.5]] * 100)
    standardizer = ParameterStandardizer.fit(theta)
    z, log_det = standardizer(torch.tensor([[1e308], [-1e308], [0.1], [0.0]], dtype=torch.float64))
    assert torch.isfinite(z).all() and torch.isfinite(log_det).all()
    assert all(torch.isfinite(out).all() for out in standardizer.inverse(torch.tensor([[1e30], [-1e30], [50.0]])))


def encode(layout: ArrayLayout, values: np.ndarray, at: np.ndarray | None = None) -> Tensor:
    axes = [AxisLayout(a, n, "set") for a, n in zip(layout.axes, layout.shape, strict=True) if a]
    encoder = DataEncoder.fit(DataLayout((layout,), tuple(axes)), {layout.name: values})
    out = encoder({layout.name: torch.as_tensor(values if at is None else at)})[layout.name]
    assert out.dtype == torch.float32 and torch.isfinite(out).all()
    assert out.shape == (
        len(values if at is None else at),
        *layout.shape,
        encoder.channels(layout.name),
    )
    return out


def test_light_tails_give_one_standard_channel() -> None:
    values = np.random.default_rng(0).normal(1e6, 30, (2000, 4, 2))
    out = encode(ArrayLayout("y", (4, 2), "real", axes=("row", None)), values)
    assert out.shape[-1] == 1
    assert abs(out.mean()) < 0.05 and abs(out.std() - 1) < 0.05


def test_every_kind_of_data_has_an_encoder_and_every_column_is_of_a_kind() -> None:
    assert set(ENCODERS) == set(KINDS) and set(COLUMNS) <= set(KINDS)


def test_heavy_tails_keep_bulk_and_tail() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2000, 3))
    values[::50] = 10.0 ** rng.uniform(0, 293, (40, 3))
    out = encode(ArrayLayout("y", (3,), "real"), values)
    assert out.shape[-1] == 2
    bulk = np.abs(values) < 2
    assert 0.5 < out[..., 0][torch.as_tensor(bulk)].std() < 1.5
    tail = out[..., 1][torch.as_tensor(~bulk)]
    assert len(tail.unique()) > 0.9 * len(tail)  # 1e100 and 1e200 are not the same


def test_large_counts() -> None:
    counts = np.floor(10.0 ** np.random.default_rng(0).uniform(-1, 7, (2000, 5))).astype(np.int64)
    out = encode(ArrayLayout("y", (5,), "count"), counts)
    assert out.shape[-1] == 2 and out.abs().max() < 20
    light = np.random.default_rng(0).poisson(4, (2000, 5))
    assert encode(ArrayLayout("y", (5,), "count"), light).shape[-1] == 1


@pytest.mark.parametrize("kind", ["real", "count"])
@pytest.mark.parametrize("tail", [False, True])
def test_any_value_is_finite(kind: str, tail: bool) -> None:
    values = np.random.default_rng(0).normal(size=(1000, 1)) ** (9 if tail else 1)
    at = np.array([[1.7e308], [-1.7e308], [0.0], [1e-308], [np.inf]])
    encode(ArrayLayout("y", (1,), kind), values, at)


def test_constants_and_zero_inflation() -> None:
    assert (encode(ArrayLayout("y", (2,), "real"), np.full((100, 2), 3.0)) == 0).all()
    values = np.where(np.random.default_rng(0).random((2000, 1)) < 0.9, 0.0, 5.0)
    assert 0.5 < encode(ArrayLayout("y", (1,), "real"), values).max() < 10


def test_binary_and_scalars() -> None:
    values = (np.random.default_rng(0).random(2000) < 0.2).astype(np.int8)
    out = encode(ArrayLayout("y", (), "binary"), values)
    assert abs(out.mean()) < 1e-3 and abs(out.std() - 1) < 1e-2


def test_categories_are_one_hot() -> None:
    values = np.array([[0, 2], [1, 1], [2, 0]])
    encoder = DataEncoder.fit(DataLayout((ArrayLayout("y", (2,), "categorical"),)), {"y": values})
    assert encoder.layout.arrays[0].categories == 3
    out = encoder({"y": torch.as_tensor(values)})["y"]
    assert torch.equal(out, nn.functional.one_hot(torch.as_tensor(values), 3).float())
    unknown = encoder({"y": torch.tensor([[-1, 7]])})["y"]
    assert (unknown == 0).all()
    assert encoder.outside({"y": np.array([[0, 2]])})["y"].distance == 0.0
    assert encoder.outside({"y": np.array([[0, 4]])})["y"].distance == pytest.approx(1.0)


def test_outside_is_in_units_of_the_range() -> None:
    encoder = DataEncoder.fit(DataLayout((ArrayLayout("y", (1,), "real"),)), {"y": np.array([[0.0], [10.0], [4.0]])})
    assert encoder.outside({"y": np.array([[3.0]])})["y"].distance == 0
    assert encoder.outside({"y": np.array([[3.0], [-20.0], [15.0]])})["y"].distance == pytest.approx([0.0, 2.0, 0.5])
    assert np.isinf(encoder.outside({"y": np.array([[np.nan]])})["y"].distance)


def test_each_element_is_held_against_its_own_range() -> None:
    simulated = np.stack([np.full(50, 7.0), np.linspace(-9, 9, 50)], axis=1)[:, :, None].repeat(2, 2)
    encoder = DataEncoder.fit(DataLayout((ArrayLayout("y", (2, 2), "real"),)), {"y": simulated})
    data = np.stack([simulated[0], simulated[0]])
    data[0, 0, 1], data[1, 1, 0] = 0.0, 27.0
    far = encoder.outside({"y": data})["y"]
    assert far.distance.tolist() == [1.0, 1.0] and far.element.tolist() == [[0, 1], [1, 0]]
    assert (far.value.tolist(), far.low.tolist(), far.high.tolist()) == ([0.0, 27.0], [7.0, -9.0], [7.0, 9.0])


def test_names_may_be_anything() -> None:
    names = ["a.b", "train", "values", "group::y"]
    data = {name: np.random.default_rng(0).normal(size=(50, 2)) for name in names}
    encoder = DataEncoder.fit(DataLayout(tuple(ArrayLayout(name, (2,), "real") for name in names)), data)
    assert list(encoder({k: torch.as_tensor(v) for k, v in data.items()})) == names


def test_bad_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="kind of 'y' is 'text'"):
        ArrayLayout("y", (1,), "text")
    with pytest.raises(ValueError, match="1 axes"):
        ArrayLayout("y", (), "real", axes=("row",))
    with pytest.raises(ValueError, match="an axis twice"):
        ArrayLayout("y", (2, 2), "real", axes=("row", "row"))
    with pytest.raises(ValueError, match="unknown"):
        DataLayout((ArrayLayout("y", (2,), "real", axes=("row",)),))
    with pytest.raises(ValueError, match="has length 2, but it is of length 3"):
        DataLayout((ArrayLayout("y", (2,), "real", axes=("row",)),), (AxisLayout("row", 3, "set"),))
    with pytest.raises(ValueError, match="index 'g'"):
        DataLayout((), (AxisLayout("row", 3, "set", index="g", groups=2),))
    with pytest.raises(ValueError, match="kind of axis"):
        AxisLayout("row", 3, "rows")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="lack"):
        DataEncoder.fit(DataLayout((ArrayLayout("y", (1,), "real"),)), {})
    with pytest.raises(ValueError, match="'y' has shape"):
        DataEncoder.fit(DataLayout((ArrayLayout("y", (1,), "real"),)), {"y": np.zeros((5, 2))})


def test_what_is_absent_counts_in_no_statistic() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (2000, 6, 2))
    axes = (AxisLayout("row", 6, "set", sized=True),)
    layout = DataLayout((ArrayLayout("y", (6, 2), "real", ("row", None), missing=True),), axes)
    sizes = {"row": rng.integers(0, 7, 2000)}
    values[rng.random(values.shape) < 0.2] = np.nan
    beyond = np.arange(6) >= sizes["row"][:, None]
    values[beyond] = 1e9
    encoder = DataEncoder.fit(layout, {"y": values}, sizes)
    encoded = encoder({"y": torch.as_tensor(values)}, sizes)
    mask, out = encoded["mask:row"], encoded["y"]
    assert out.shape == (2000, 6, 2, 2) and torch.isfinite(out).all()
    assert np.array_equal(mask == 0, beyond)
    present = out[..., 1] > 0
    assert np.array_equal(present, ~np.isnan(values) & ~beyond[..., None])
    assert (out[..., 0][~present] == 0).all()
    assert abs(out[..., 0][present].mean()) < 0.05 and abs(out[..., 0][present].std() - 1) < 0.05
    assert not encoder.outside({"y": values}, sizes)["y"].distance.any()
    cut = encoder({"y": torch.as_tensor(values[:, :3])}, {"row": np.minimum(sizes["row"], 3)})
    assert torch.equal(cut["y"], out[:, :3]) and torch.equal(cut["mask:row"], mask[:, :3])


def test_an_index_of_groups_counts_from_one() -> None:
    axes = (AxisLayout("row", 3, "set", index="g", groups=4),)
    layout = DataLayout((ArrayLayout("g", (3,), "count", ("row",)),), axes)
    encoder = DataEncoder.fit(layout, {"g": np.array([[0, 1, 2]])})
    assert encoder({"g": torch.tensor([[3, 0, -1]])})["g"][..., 0].tolist() == [[4.0, 1.0, 0.0]]
    assert encoder.outside({"g": np.array([[0, 3, 2]])})["g"].distance == 0.0
    assert encoder.outside({"g": np.array([[0, 4, 2]])})["g"].distance > 0
