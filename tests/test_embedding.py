"""Vectors of images against one image at a time, turns, and what cannot be embedded."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_vectors import CROP, make_set

from pipeline.images.reader import open_set
from pipeline.learning.augment import centre
from pipeline.learning.embedding import embed
from pipeline.learning.encoder import Encoder, EncoderSpec, Projection, seeded
from pipeline.run import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    torch.set_num_threads(1)
    return open_set(make_set(tmp_path_factory.mktemp("set"))).in_memory()


@pytest.fixture(scope="module")
def nets():
    with seeded(1):
        encoder = Encoder(EncoderSpec("resnet10", width=0.125, crop=CROP))
        return encoder, Projection(encoder.feature_dim, dim=16)


def together(blocks):
    """All blocks as whole arrays, and the rows they start at."""
    firsts, parts = zip(*blocks, strict=True)
    return firsts, {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}


@pytest.mark.parametrize("deredden", [True, False])
def test_vectors_are_those_of_each_image_alone(images, nets, deredden):
    firsts, found = together(embed(images, *nets, deredden=deredden, batch=17))
    assert firsts == (0, 17, 34)
    encoder, projection = nets
    for row in range(0, 40, 7):
        stamp = torch.from_numpy(images.read(np.array([row])))
        extinction = torch.from_numpy(images.extinction[[row]])
        with torch.no_grad():
            pooled = encoder(centre(stamp, extinction, CROP, deredden))
            contrastive = projection(pooled)[0].numpy()
        assert np.allclose(found["pooled"][row], pooled[0].numpy(), rtol=1e-5, atol=1e-6)
        expected = contrastive / np.sqrt((contrastive**2).sum())
        assert np.allclose(found["contrastive"][row], expected, atol=1e-5)
    assert found["pooled"].dtype == found["contrastive"].dtype == np.float32
    assert np.allclose(np.linalg.norm(found["contrastive"], axis=1), 1, atol=1e-6)


def test_dereddening_changes_the_vectors_and_unknown_extinction_is_none(images, nets):
    _, dark = together(embed(images, *nets, deredden=False))
    _, clear = together(embed(images, *nets, deredden=True))
    assert np.abs(clear["pooled"] - dark["pooled"]).max() > 1e-3
    unknown = replace(images, extinction=np.full_like(images.extinction, np.nan))
    _, same = together(embed(unknown, *nets, deredden=True))
    assert np.allclose(same["pooled"], dark["pooled"], rtol=1e-6)


def test_with_eight_turns_a_turned_stamp_has_the_same_vectors(images, nets):
    _, plain = together(embed(images, *nets, turns=8))
    for turn in (lambda x: np.rot90(x, 1, (2, 3)), lambda x: x[..., ::-1]):
        turned = replace(images, pixels=np.ascontiguousarray(turn(images.pixels)))
        _, found = together(embed(turned, *nets, turns=8))
        for kind in ("pooled", "contrastive"):
            assert np.allclose(found[kind], plain[kind], atol=2e-5)
        _, once = together(embed(turned, *nets))
        assert not np.allclose(once["pooled"], plain["pooled"], atol=1e-3)
    assert np.allclose(np.linalg.norm(plain["contrastive"], axis=1), 1, atol=1e-6)


def test_without_a_projection_there_are_pooled_vectors_only(images, nets):
    encoder, projection = nets
    _, both = together(embed(images, encoder, projection))
    _, found = together(embed(images, encoder))
    assert list(found) == ["pooled"]
    assert np.array_equal(found["pooled"], both["pooled"])


def test_embedding_is_in_evaluation_mode(images, nets):
    """Running averages stay as they are, and a batch's companions do not matter."""
    encoder, projection = nets
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    _, one = together(embed(images, encoder, projection, batch=40))
    _, other = together(embed(images, encoder, projection, batch=3))
    assert np.allclose(one["pooled"], other["pooled"], rtol=1e-5, atol=1e-6)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_encoder_that_is_not_finite_is_refused(images, nets):
    encoder, projection = nets
    spoilt = Encoder(encoder.spec)
    spoilt.net.conv1.weight.data[0, 0, 0, 0] = torch.nan
    first = images.objid[0]
    with pytest.raises(UserError, match=f"galaxy {first}: the encoder's output is not finite"):
        list(embed(images, spoilt, projection))


def test_a_crop_larger_than_the_stamps_is_refused(images):
    with pytest.raises(UserError, match="crop: 16 px do not fit"):
        list(embed(images, Encoder(EncoderSpec("resnet10", width=0.125, crop=16))))


def test_images_of_float64_have_the_same_vectors(images, nets):
    encoder, projection = nets
    wide = replace(images, pixels=images.pixels.astype("f8"))
    (_, one), (_, other) = (
        next(embed(each, encoder, projection, batch=8)) for each in (images, wide)
    )
    for kind in one:
        assert other[kind].dtype == np.float32
        assert other[kind] == pytest.approx(one[kind], abs=1e-6)
