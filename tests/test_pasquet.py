"""Pasquet's net: parameters and shapes row by row, pools, dust; its files, and its averages."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_photoz import galaxies
from torch.nn import functional

from pipeline import photoz
from pipeline.learning import checkpoint
from pipeline.learning.augment import centre, e_bv_of
from pipeline.learning.embedding import embed
from pipeline.learning.encoder import Encoder, EncoderSpec, seeded
from pipeline.learning.pasquet import Inception, Pasquet, smoothed
from pipeline.learning.redshift import Bins, PhotozNet, save_model
from pipeline.survey import extinction

torch.set_num_threads(1)
SPEC = EncoderSpec("pasquet", 0.125, 16)
ROWS = {
    "conv0": (8_128, (64, 64, 64)),
    "inception0": (118_432, (240, 32, 32)),
    "inception1": (269_288, (340, 32, 32)),
    "inception2": (539_064, (476, 16, 16)),
    "inception3": (594_008, (476, 16, 16)),
    "inception4": (255_376, (348, 8, 8)),
    "dense0": (24_412_304, (1096,)),
    "dense1": (1_202_312, (1096,)),
}
"""Parameters and output of each layer at width 1, before the pool that may follow."""
FC = 197_460


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(seed=0):
    with seeded(seed):
        return Pasquet(0.125, side=16)


def count(module):
    return sum(each.numel() for each in module.parameters())


def test_parameters_and_shapes_are_those_of_the_published_table():
    net, seen = Pasquet(), {}
    for name, part in net.named_children():
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.shape[1:]}))
    with torch.no_grad():
        assert net(draw(1, 5, 64, 64), draw(1)).shape == (1, 1096)
    found = {name: (count(part), tuple(seen[name])) for name, part in net.named_children()}
    assert found == ROWS
    assert net.dense0.in_features == 348 * 8 * 8 + 1 == 22_273  # 22,272 pixels and the dust
    with seeded(0):
        whole = PhotozNet(Encoder(EncoderSpec("pasquet")), Bins())
    assert count(whole.fc) == FC and FC + ROWS["dense0"][0] + ROWS["dense1"][0] == 25_812_076
    assert count(whole) == sum(row[0] for row in ROWS.values()) + FC == 27_596_372


@pytest.mark.parametrize(
    ("block", "before", "narrow", "wide", "sizes"),
    [(0, 64, 48, 64, (3, 5)), (1, 240, 64, 92, (3, 5)), (2, 340, 92, 128, (3, 5)),
     (3, 476, 92, 128, (3, 5)), (4, 476, 92, 128, (3,))],
)  # fmt: skip
def test_a_block_has_a_reduction_of_its_own_in_each_branch(block, before, narrow, wide, sizes):
    # weights, a bias and a slope for each output channel: [1x1 S2], [1x1 S1, pool], and
    # [1x1 S1, k x k S2] for each size k
    reductions = 1 + len(sizes)
    weights = before * wide + reductions * before * narrow
    weights += sum(size**2 * narrow * wide for size in sizes)
    more = 2 * (reductions * narrow + (1 + len(sizes)) * wide)
    assert weights + more == ROWS[f"inception{block}"][0]
    assert narrow + (1 + len(sizes)) * wide == ROWS[f"inception{block}"][1][0]


def plain(layer, x):
    """A convolution and its PReLU, written out."""
    x = functional.conv2d(x, layer.conv.weight, layer.conv.bias, padding="same")
    return x.clamp(min=0) + layer.prelu.weight[:, None, None] * x.clamp(max=0)


def halved(x):
    return x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))


def test_layers_are_in_their_order():
    net = small().double()
    with torch.no_grad():  # slopes of 0 would hide what they are multiplied with
        for name, value in net.named_parameters():
            if "prelu" in name:
                value.copy_(draw(len(value), seed=3) - 0.5)
    x, dust = draw(2, 5, 16, 16, dtype=torch.float64), draw(2, dtype=torch.float64)
    y = halved(plain(net.conv0, x))
    for at in range(5):
        block = getattr(net, f"inception{at}")
        branches = [plain(block.one, y)]
        if at < 4:
            branches.append(plain(block.five, plain(block.five_reduced, y)))
        branches.append(plain(block.three, plain(block.three_reduced, y)))
        branches.append(smoothed(plain(block.pool_reduced, y)))
        y = torch.cat(branches, dim=1)
        y = halved(y) if at in (1, 3) else y
    assert y.shape[2:] == (2, 2)
    y = torch.cat([y.reshape(2, -1), dust[:, None]], dim=1)
    for layer in (net.dense0, net.dense1):
        y = (y @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(net(x, dust), y, rtol=1e-10, atol=1e-12)


def test_the_pool_of_a_branch_counts_only_pixels_that_there_are():
    x = draw(2, 3, 5, 6, dtype=torch.float64)
    found = smoothed(x)
    assert found.shape == x.shape
    for row in range(5):
        for column in range(6):
            window = x[:, :, row : row + 2, column : column + 2]  # a slice ends with the image
            torch.testing.assert_close(found[:, :, row, column], window.mean(dim=(2, 3)))


def test_the_last_block_has_no_branch_of_5x5():
    assert Inception(8, 8, 8, True).channels == 32 and Inception(8, 8, 8, False).channels == 24
    assert small().inception4.five is None


@pytest.mark.parametrize(("side", "left"), [(8, 1), (16, 2), (20, 3), (31, 4)])
def test_the_dense_layer_is_for_one_side(side, left):
    net = Pasquet(0.125, side=side)
    assert net.dense0.in_features == net.inception4.channels * left**2 + 1
    assert net(draw(2, 5, side, side), draw(2)).shape == (2, 136)


@pytest.mark.parametrize(("width", "dim"), [(0.25, 274), (0.001, 8), (0.5, 548)])
def test_width_multiplies_channels_and_dense_layers(width, dim):
    net = Pasquet(width, side=8)
    assert net.feature_dim == net.dense1.out_features == dim
    assert net.conv0.conv.out_channels == max(8, 64 * width)
    assert net(draw(1, 5, 8, 8), draw(1)).shape == (1, dim)


def test_weights_start_as_published_and_follow_from_the_seed():
    net, again = small(1), small(1)
    assert all(map(torch.equal, net.parameters(), again.parameters()))
    for name, value in net.named_parameters():
        if name.endswith("bias"):
            assert (value == torch.tensor(0.1)).all(), name
        elif "prelu" in name:
            assert not value.any(), name
    weight = net.dense0.weight
    limit = (6 / sum(weight.shape)) ** 0.5
    assert 0.99 * limit < weight.abs().max() <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dust_is_heard_and_gradients_reach_all_parameters(dtype):
    with seeded(2):
        net = PhotozNet(Encoder(SPEC), Bins()).to(dtype)
    x = draw(8, 5, 16, 16, dtype=dtype) - 0.5
    dust = draw(8, dtype=torch.float64).requires_grad_()
    logits = net(x, dust)
    assert logits.dtype == dtype and logits.shape == (8, 180)
    assert ((net(x, dust + 0.1) - logits).abs().amax(dim=1) > 1e-6).all()
    functional.cross_entropy(logits, torch.arange(8)).backward()
    assert dust.grad.abs().min() > 0
    for name, value in net.named_parameters():
        assert value.grad is not None and value.grad.any(), name


def test_an_image_knows_nothing_of_its_batch():
    net = small().double().train()
    x, dust = draw(4, 5, 16, 16, dtype=torch.float64), draw(4, dtype=torch.float64)
    torch.testing.assert_close(net(x, dust)[1:2], net(x[1:2], dust[1:2]), rtol=1e-12, atol=1e-14)


def test_half_precision_gives_nearly_the_same():
    with seeded(0):
        encoder = Encoder(SPEC)
    x, dust = draw(2, 5, 16, 16), draw(2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(x, dust)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), encoder(x, dust).detach(), rtol=0.05, atol=0.01)


def test_an_encoder_comes_back_from_its_file(tmp_path):
    with seeded(3):
        encoder = Encoder(SPEC)
    checkpoint.save_encoder(tmp_path / "encoder.pt", encoder, deredden=False)
    again, extra = checkpoint.load_encoder(tmp_path / "encoder.pt")
    assert again.spec == SPEC and extra == {"deredden": False}
    x, dust = draw(3, 5, 16, 16), draw(3)
    with torch.no_grad():
        assert torch.equal(again(x, dust), encoder.eval()(x, dust))


def test_e_bv_is_that_of_the_survey():
    mags = np.random.default_rng(0).uniform(0, 0.5, (4, 5)).astype(np.float32)
    mags[2, 3] = np.nan
    found = e_bv_of(torch.from_numpy(mags))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), extinction.e_bv(mags), rtol=1e-12)
    assert np.isnan(found.numpy()).tolist() == [False, False, True, False]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return galaxies(tmp_path_factory.mktemp("set"), count=24, labelled=1.0).in_memory()


def models(folder):
    paths = [folder / f"{seed}.pt" for seed in range(2)]
    for seed, path in enumerate(paths):
        with seeded(seed):
            net = PhotozNet(Encoder(SPEC), Bins(), seed)
        save_model(path, net, deredden=False)
    return paths


def test_nets_of_two_seeds_are_averaged_each_told_the_dust(tmp_path, images):
    paths = models(tmp_path)
    both = photoz.load_models(paths)
    photoz.apply_models(both, images, tmp_path / "both.parquet")
    found = np.stack(pq.read_table(tmp_path / "both.parquet")["pdf"].to_numpy())
    mags = torch.from_numpy(images.extinction)
    stamps = centre(torch.from_numpy(images.read(np.arange(len(images)))), mags, 16, False)
    dust = torch.from_numpy(extinction.e_bv(images.extinction)).float()
    with torch.no_grad():
        pdfs = [model.net(stamps, dust).softmax(dim=1).numpy() for model in both]
        clear = [model.net(stamps).softmax(dim=1).numpy() for model in both]
    assert found == pytest.approx((pdfs[0] + pdfs[1]) / 2, abs=1e-6)
    assert np.abs(pdfs[0] - pdfs[1]).max() > 1e-4
    assert np.abs(found - (clear[0] + clear[1]) / 2).max() > 1e-5


def test_vectors_are_told_the_dust(tmp_path, images):
    encoder, _ = checkpoint.load_encoder(models(tmp_path)[0])
    found = np.concatenate([block["pooled"] for _, block in embed(images, encoder, deredden=False)])
    mags = torch.from_numpy(images.extinction)
    stamps = centre(torch.from_numpy(images.read(np.arange(len(images)))), mags, 16, False)
    with torch.no_grad():
        told = encoder(stamps, e_bv_of(mags)).numpy()
        assert np.abs(found - encoder(stamps).numpy()).max() > 1e-5
    assert found == pytest.approx(told, abs=1e-6)
