"""MoCo: the loss, the queue, the momentum, and that batch statistics give nothing away."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pipeline.learning import moco
from pipeline.learning.encoder import EncoderSpec
from pipeline.learning.moco import MoCo, check_groups, check_queue, info_nce, similarities
from pipeline.learning.resnet import GroupedBatchNorm
from pipeline.run import UserError

SPEC = EncoderSpec("resnet10", 0.125, 16, 2)


def draw(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def units(*shape, seed=0):
    return functional.normalize(draw(*shape, seed=seed), dim=-1)


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_loss_by_closed_form(temperature):
    same = torch.eye(1, 4).double()
    queue = same.repeat(7, 1)
    loss = info_nce(similarities(same.repeat(3, 1), same.repeat(3, 1), queue, temperature))
    assert loss.item() == pytest.approx(math.log(8), rel=1e-14)
    apart = torch.eye(4).double()[1:].repeat(5, 1)  # 15 negatives at right angles
    loss = info_nce(similarities(same, same, apart, temperature)).item()
    assert loss == pytest.approx(math.log1p(15 * math.exp(-1 / temperature)), rel=1e-12)


def test_loss_against_a_slow_reference():
    queries, keys, queue = units(6, 16, seed=1), units(6, 16, seed=2), units(20, 16, seed=3)
    total = 0.0
    for query, key in zip(queries.numpy(), keys.numpy(), strict=True):
        positive = math.exp(float(np.dot(query, key)) / 0.2)
        negatives = sum(math.exp(float(np.dot(query, old)) / 0.2) for old in queue.numpy())
        total += -math.log(positive / (positive + negatives)) / 6
    loss = info_nce(similarities(queries, keys, queue, 0.2)).item()
    assert loss == pytest.approx(total, rel=1e-13)


def test_similarities_of_unlike_vectors_do_not_overflow():
    query = units(1, 8)
    assert torch.isfinite(info_nce(similarities(query, -query, query.repeat(3, 1), 1e-3)))


def test_queue_wraps_and_the_oldest_keys_go():
    method = MoCo(SPEC, queue=12)
    start, blocks = method.queue.clone(), [units(4, moco.DIM, seed=n).float() for n in range(4)]
    assert torch.allclose(start.norm(dim=1), torch.ones(12))
    for number, block in enumerate(blocks[:2]):
        method.after_step((None, block))
        assert method.pointer == 4 * (number + 1)
    assert torch.equal(method.queue, torch.cat([blocks[0], blocks[1], start[8:]]))
    for block in blocks[2:]:
        method.after_step((None, block))
    assert torch.equal(method.queue, torch.cat([blocks[3], blocks[1], blocks[2]]))
    again = MoCo(SPEC, queue=12, seed=9)
    again.load_state_dict(method.state_dict())
    assert again.pointer == 4 and torch.equal(again.queue, method.queue)


def test_momentum_moves_parameters_by_equation_2_and_no_buffer():
    method = MoCo(SPEC, queue=8, momentum=0.9).double()
    for one, other in zip(method.key.parameters(), method.network.parameters(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        for number, each in enumerate(method.network.parameters()):
            each.copy_(draw(*each.shape, seed=number))
        method.network.encoder.net.bn1.running_mean.fill_(7)
    slow = [each.clone() for each in method.key.parameters()]
    for _ in range(3):
        moco.update_momentum(method.key, method.network, 0.9)
        slow = [0.9 * old + (1 - 0.9) * new
                for old, new in zip(slow, method.network.parameters(), strict=True)]  # fmt: skip
    for found, expected in zip(method.key.parameters(), slow, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-16)
    assert method.key.encoder.net.bn1.running_mean.abs().max() == 0


def test_keys_come_from_the_moved_encoder_in_the_order_of_the_batch():
    method = MoCo(SPEC, queue=8, momentum=0.5, groups=2).double()
    with torch.no_grad():
        for number, each in enumerate(method.network.parameters()):
            each.add_(0.1 * draw(*each.shape, seed=number))
    method.key.eval()  # statistics of no company: a key is then a matter of its image alone
    images = draw(8, 5, 16, 16)
    own, everyone = method.prepare([images, images], step=3)
    expected = method.key(images)
    torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(own, everyone) and not own.requires_grad


def test_weights_queue_and_order_follow_from_the_seed():
    one, two, other = (MoCo(SPEC, 8, seed=seed) for seed in (1, 1, 2))
    for name, value in one.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.queue, other.queue)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    orders = [moco.shuffle(1, step, 64) for step in range(20)]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len({tuple(order) for order in orders}) == 20
    assert moco.shuffle(1, 5, 64).tolist() == orders[5].tolist()


class Beacon(nn.Module):
    """Sees of a stamp one pixel that is alike in all, after batch normalisation.

    So its vectors tell galaxies apart by the statistics of their company, and by nothing else.
    """

    def __init__(self, groups):
        super().__init__()
        self.norm = GroupedBatchNorm(5, groups)

    def forward(self, images):
        seen = self.norm(images)[:, 0, 0, 0].clamp(min=1e-3).log()
        vector = torch.stack([torch.cos(seen), torch.sin(seen)], dim=1)
        return functional.pad(vector, (0, moco.DIM - 2))


def beacons(groups, steps=12, rows=32):
    """Queries and keys (steps, rows, dim) of stamps whose views share only how bright they are."""
    method = MoCo(SPEC, queue=rows, groups=groups)
    method.network, method.key = Beacon(groups).double(), Beacon(groups).double()
    queries, keys = [], []
    for step in range(steps):
        bright = torch.exp(draw(rows, 1, 1, 1, seed=1000 + step))
        views = []
        for at in (0, 1):
            noise = draw(rows, 5, 256, seed=2 * step + at)
            noise = (noise - noise.mean(2, keepdim=True)) / noise.std(2, keepdim=True)
            views.append(bright * noise.view(rows, 5, 16, 16))
            views[at][:, :, 0, 0] = 1.0
        keys.append(method.prepare(views, step)[0])
        queries.append(method.network(views[0]).detach())
    return torch.stack(queries), torch.stack(keys)


def own_is_nearest(queries, keys):
    """The share of queries (n, dim) to which no key (n, dim) is nearer than their own."""
    near = queries @ keys.T
    return (near.diagonal() >= near.max(dim=1).values - 1e-9).double().mean().item()


def in_batch(queries, keys):
    return np.mean([own_is_nearest(*pair) for pair in zip(queries, keys, strict=True)])


def across_batches(queries, keys):
    """The share of queries whose nearest key is of their own step."""
    nearest = (queries.flatten(0, 1) @ keys.flatten(0, 1).T).argmax(dim=1) // keys.shape[1]
    step = torch.arange(len(queries)).repeat_interleave(queries.shape[1])
    return (nearest == step).double().mean().item()


def test_statistics_tell_a_querys_key_where_keys_keep_their_company(monkeypatch):
    monkeypatch.setattr(moco, "shuffle", lambda seed, step, count: np.arange(count))
    assert in_batch(*beacons(groups=8)) > 0.8
    # one group: the batch as a whole tells its own keys from the older ones in the queue
    assert across_batches(*beacons(groups=1)) > 0.8


def test_statistics_tell_nothing_where_keys_are_shuffled_among_groups():
    queries, keys = beacons(groups=8)
    assert in_batch(queries, keys) < 0.3  # 1 in 8 by chance, and a little for common members
    assert across_batches(queries, keys) < 0.3


@given(st.integers(1, 5000), st.integers(2, 600), st.integers(1, 3000))
def test_a_refused_queue_comes_with_one_that_fits(queue, batch, images):
    try:
        check_queue(queue, batch, images)
    except UserError as error:
        text, number = str(error).rsplit("give ", 1)
        if text.startswith("batch"):
            assert batch > images // 2
        else:
            check_queue(int(number), batch, images)
    else:
        assert batch <= queue <= images // 2 and queue % batch == 0


def test_refusals_of_a_queue_in_words():
    for given_, said in (
        ((65536, 256, 1000), "queue: 65536 keys are more than half of the set's 1000 images; "
                             "give 256"),
        ((300, 128, 1000), "queue: 300 keys are no multiple of the batch of 128; give 256"),
        ((256, 256, 300), "batch: 256, but half of the set is 150 images"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            check_queue(*given_)
        assert str(error.value).startswith(said)


@given(st.integers(-1, 40), st.integers(2, 300))
def test_refused_groups_come_with_a_number_that_fits(groups, batch):
    try:
        check_groups(groups, batch)
    except UserError as error:
        check_groups(int(str(error).rsplit("give ", 1)[1]), batch)
    else:
        assert groups >= 1 and batch % groups == 0 and batch // groups >= 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"groups": 4, "accumulate": 3}, "groups: 4 cannot be shared.*give a multiple of 3"),
        ({"momentum": 1.0}, "momentum: 1"),
        ({"temperature": 0.0}, "temperature: 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        MoCo(SPEC, 8, **wrong)
