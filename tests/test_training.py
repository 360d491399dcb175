"""Training of a photo-z net: it learns, resumes to the bit, selects, and refuses what cannot be."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
from small_photoz import galaxies, small_net

from pipeline.images.reader import members
from pipeline.learning import checkpoint, predict, tasks, training
from pipeline.learning.colours import ColourTask, measure
from pipeline.learning.labelnet import LabelNet
from pipeline.learning.ranks import Ranks
from pipeline.learning.training import Data, Keeping, Settings, fit
from pipeline.run import UserError

torch.set_num_threads(1)
QUICK = Settings(steps=6, batch=16, lr=0.02, jitter=3, check_every=2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return galaxies(tmp_path_factory.mktemp("set"), count=240)


@pytest.fixture(scope="module")
def data(images) -> Data:
    parts = {name: images.take(members(images, name)) for name in ("train", "valid", "unlabelled")}
    return Data(**parts)


def keeping(folder, fingerprint="a", minutes=1e9) -> Keeping:
    return Keeping(folder / "state.pt", folder / "history.csv", fingerprint, minutes)


def run_fit(folder, data, settings, **options):
    folder.mkdir(exist_ok=True)
    net = small_net()
    task = tasks.redshifts(net.bins, settings.loss)
    return fit(net, data, settings, keeping(folder, **options), Ranks(), task)


def same(one, two) -> bool:
    one, two = one.state_dict(), two.state_dict()
    return all(torch.equal(one[name], two[name]) for name in one)


def prior_crps(z) -> float:
    """CRPS of the best guess that looks at no image: the redshifts themselves as the PDF."""
    distance = np.abs(z[:, None] - z[None])
    return distance.mean() / 2


def test_some_steps_bring_crps_far_below_that_of_the_prior(tmp_path, data):
    settings = dataclasses.replace(
        QUICK, steps=80, batch=32, check_every=20, loss="crps", optimiser="adamw", lr=0.003
    )
    net, facts = run_fit(tmp_path, data, settings)
    table = predict.predictions(net, data.valid)
    assert table["crps"].mean() < 0.4 * prior_crps(table["z"].to_numpy())
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["step"].tolist() == [20, 40, 60, 80]
    assert history["loss"].iloc[-1] < 0.6 * history["loss"].iloc[0]
    # the weights given are those of the best check
    assert facts["valid_crps"] == pytest.approx(history["valid_crps"].min(), rel=1e-6)
    assert table["crps"].mean() == pytest.approx(facts["valid_crps"], rel=1e-9)
    assert facts["labels"] == len(data.train) and facts["batch"] == 32


VARIANTS = {
    "sgd": {},
    "adamw, averaged": {"optimiser": "adamw", "lr": 1e-3, "ema": 0.9, "weight_decay": 0.01},
    "colours": {"colour_weight": 0.5},
    "frozen": {"freeze": True, "ema": 0.5},
    "crps, warm-up": {"loss": "crps", "warmup": 3, "schedule": "step", "select": "last"},
}


class Killed(Exception):
    pass


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_training_that_was_killed_ends_as_an_unbroken_one(tmp_path, data, monkeypatch, variant):
    settings = dataclasses.replace(QUICK, **variant)
    whole, facts = run_fit(tmp_path / "whole", data, settings)
    original = training._Training.step

    def dies(self, batch):
        if batch.step == 3:
            raise Killed
        original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(training._Training, "step", dies)
        with pytest.raises(Killed):
            run_fit(tmp_path / "broken", data, settings, minutes=0)
    broken, again = run_fit(tmp_path / "broken", data, settings, minutes=0)
    assert same(whole, broken) and facts == again
    ours, theirs = (tmp_path / name / "history.csv" for name in ("whole", "broken"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_amp_of_the_device_is_none_on_a_cpu(tmp_path, data):
    whole, _ = run_fit(tmp_path / "a", data, QUICK)
    assert same(whole, run_fit(tmp_path / "b", data, dataclasses.replace(QUICK, amp=None))[0])


def test_a_state_of_other_settings_is_not_taken_up(tmp_path, data):
    run_fit(tmp_path / "one", data, QUICK, minutes=0)
    checkpoint.load(tmp_path / "one" / "state.pt", "state")  # it is there, after step 5
    other = dataclasses.replace(QUICK, lr=0.01)
    fresh, _ = run_fit(tmp_path / "two", data, other)
    over, _ = run_fit(tmp_path / "one", data, other, fingerprint="b")
    assert same(fresh, over)


def test_a_spoilt_state_is_told_of_and_not_taken_up(tmp_path, data, caplog):
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04 cut off")
    net, _ = run_fit(tmp_path, data, QUICK)
    assert "begun anew" in caplog.text and "state.pt: cannot be read" in caplog.text
    assert same(net, run_fit(tmp_path / "clean", data, QUICK)[0])


def test_last_takes_the_last_weights_and_best_the_best(tmp_path, data, monkeypatch):
    scores = iter([3.0, 1.0, 2.0] * 2)
    monkeypatch.setattr(
        predict, "predictions", lambda *_, **__: pd.DataFrame({"crps": [next(scores)]})
    )
    best = run_fit(tmp_path / "best", data, QUICK)[1]
    last = run_fit(tmp_path / "last", data, dataclasses.replace(QUICK, select="last"))[1]
    assert (best["step"], best["valid_crps"]) == (4, 1.0)
    assert (last["step"], last["valid_crps"]) == (6, 2.0)


def test_without_valid_galaxies_the_last_weights_are_taken(tmp_path, data):
    none = dataclasses.replace(data, valid=data.valid.take(np.zeros(0, int)))
    _, facts = run_fit(tmp_path, none, QUICK)
    assert facts["step"] == 6 and facts["valid_crps"] is None


def test_encoder_and_head_learn_at_their_own_rates(tmp_path, data):
    start = small_net()
    settings = dataclasses.replace(QUICK, steps=1, encoder_rate=0.0)
    net, _ = run_fit(tmp_path, data, settings)
    for (name, before), after in zip(start.named_parameters(), net.parameters(), strict=True):
        assert torch.equal(before, after) == name.startswith("encoder.")
    learner = training._Learner(start, None)
    groups = training._optimiser(learner, dataclasses.replace(QUICK, encoder_rate=0.1)).param_groups
    assert [group["factor"] for group in groups] == [0.1, 1.0]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in start.fc.parameters()}


def test_a_frozen_encoder_does_not_change_at_all(tmp_path, data):
    net, _ = run_fit(tmp_path, data, dataclasses.replace(QUICK, freeze=True))
    assert same(net.encoder, small_net().encoder)
    assert not same(net.fc, small_net().fc)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path, data):
    settings = dataclasses.replace(QUICK, lr=1e30, schedule="constant", check_every=50)
    text = r"step \d+: the loss is (nan|inf); give a smaller lr or .*the last good state is kept in"
    with pytest.raises(UserError, match=text):
        run_fit(tmp_path, data, settings, minutes=0)
    state = checkpoint.load(tmp_path / "state.pt", "state")
    assert 1 <= state["step"] < 6 and np.isfinite(state["losses"]).all()


@pytest.mark.parametrize(("check", "what"), [(1, "what the net says"), (50, "the loss is")])
def test_where_no_state_was_written_none_is_said_to_be_kept(tmp_path, data, check, what):
    settings = dataclasses.replace(QUICK, lr=1e30, schedule="constant", check_every=check)
    with pytest.raises(UserError, match=rf"{what} .*\(no state was kept in .*\)"):
        run_fit(tmp_path, data, settings)


@pytest.mark.parametrize(
    ("labels", "batch", "groups", "expected"),
    [(1000, 256, 1, 256), (100, 256, 1, 100), (100, 256, 8, 96), (4, 256, 1, 4), (16, 256, 8, 16)],
)
def test_the_batch_shrinks_to_the_labels(labels, batch, groups, expected):
    assert Settings(batch=batch, groups=groups).batch_of(labels) == expected


@pytest.mark.parametrize(
    ("settings", "labels", "ranks", "text"),
    [
        ({}, 3, 1, "3 labels, but batch normalisation in 1 groups needs 4; give more"),
        ({"groups": 8}, 15, 1, "15 labels, but batch normalisation in 8 groups needs 16"),
        ({"groups": 8, "batch": 8}, 100, 1, "batch: 8 leaves 8 groups .*give 16"),
        ({"groups": 3}, 100, 2, "groups: 3 is not a multiple of 2 ranks"),
    ],
)
def test_too_few_labels_are_refused_with_their_number(settings, labels, ranks, text):
    with pytest.raises(UserError, match=text):
        Settings(**settings).batch_of(labels, ranks)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"lr": 0.0}, "lr: 0.0"),
        ({"lr": float("nan")}, "lr: nan"),
        ({"loss": "l2"}, "loss: l2; give one of"),
        ({"optimiser": "lamb"}, "optimiser: lamb; give one of"),
        ({"schedule": "linear"}, "schedule: linear"),
        ({"freeze": True, "colour_weight": 1.0}, "a frozen encoder learns nothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, text):
    with pytest.raises(UserError, match=text):
        Settings(**settings)


def test_colours_are_learnt_from_unlabelled_images(tmp_path, data):
    """With the labels' share of the loss gone, the colour layer alone must come to tell them."""
    settings = dataclasses.replace(QUICK, steps=40, colour_weight=30.0, lr=0.003, batch=32)
    trainings = []
    original = training._Training.__init__

    class Spy(training._Training):
        def __init__(self, *args):
            original(self, *args)
            trainings.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_Training", Spy)
        net, _ = run_fit(tmp_path, data, settings)
    task, clean, features = trainings[0].colours, [], []
    for output in predict.outputs(net, data.valid):
        clean.append(output.colours)
        features.append(output.features)
    asked = (torch.from_numpy(np.concatenate(clean)) - task.centre) / task.spread
    told = task.head(torch.from_numpy(np.concatenate(features))).detach()
    for at in range(5):
        assert np.corrcoef(asked[:, at], told[:, at])[0, 1] > 0.5


def test_the_colour_task_is_zero_only_for_the_stamps_own_colours():
    random = torch.Generator().manual_seed(0)
    clean = 1 + torch.rand(6, 5, 16, 16, generator=random)
    task = ColourTask(3, measure(clean))
    with torch.no_grad():
        task.head.weight.zero_()
        task.head.bias.copy_((measure(clean[:1]) - task.centre)[0] / task.spread)
        assert float(task(torch.zeros(1, 3), clean[:1])) == pytest.approx(0, abs=1e-10)
        assert float(task(torch.zeros(5, 3), clean[1:])) > 0.01


def test_colours_without_unlabelled_images_are_refused(tmp_path, data):
    settings = dataclasses.replace(QUICK, colour_weight=1.0)
    with pytest.raises(UserError, match="needs unlabelled images, a batch of 16.*has 0"):
        run_fit(tmp_path, dataclasses.replace(data, unlabelled=None), settings)


def _train_rank(rank, ranks, data, folder):
    torch.set_num_threads(1)
    if ranks > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
        )
    place = Ranks(rank, ranks, torch.device("cpu"))
    settings = dataclasses.replace(QUICK, groups=2, steps=5, check_every=100, ema=0.9)
    net = small_net().double()
    task = tasks.redshifts(net.bins, settings.loss)
    made = training._Training(net, data, settings, keeping(folder), place, task)
    losses = []
    for batch in made.batches.steps(0, settings.steps):
        made.step(batch)
        losses.append(made.losses[-1])
    made.check(5, 0, SimpleNamespace(row=lambda *_, **__: None) if rank == 0 else None)
    if rank == 0:
        net, _ = made.chosen()
        torch.save([losses, net.state_dict()], folder / f"{ranks}.pt")
    place.close()


CHANGING = dataclasses.replace(
    QUICK, groups=2, ema=0.9, optimiser="adamw", lr=1e-3, colour_weight=0.5, check_every=3
)


def _in_hands(rank, ranks, data, folder, task, stop=None):
    """As `_train_rank`, the whole of `fit` in `folder`, with a state each step; up to step `stop`.

    What there is already is taken up, whatever number of ranks has left it.
    """
    torch.set_num_threads(1)
    if ranks > 1:
        meeting = f"file://{folder}/meet-{stop}"
        torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=ranks)
    place = Ranks(rank, ranks, torch.device("cpu"))
    original = training._Training.step

    def step(self, batch):
        if batch.step == stop:
            raise Killed
        original(self, batch)

    training._Training.step = step
    try:
        net = NETS[task](data)
        net, facts = fit(net, data, CHANGING, keeping(folder, minutes=0), place, TASKS[task](data))
        if rank == 0:
            torch.save([facts, net.state_dict()], folder / "made.pt")
    except Killed:
        pass
    finally:
        training._Training.step = original
        place.close()


NETS = {
    "photoz": lambda data: small_net().double(),
    "morphology": lambda data: LabelNet(small_net().encoder, 2, 0).double(),
}
TASKS = {
    "photoz": lambda data: tasks.redshifts(small_net().bins, CHANGING.loss),
    "morphology": lambda data: tasks.types(
        *(np.concatenate([of(part) for part in (data.train, data.valid)])
          for of in (lambda part: part.objid, lambda part: part.objid % 2 == 0))
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", NETS)
def test_a_state_goes_from_one_rank_to_two_and_back(tmp_path, data, task):
    def by(ranks, name, stop=None):
        (tmp_path / name).mkdir(exist_ok=True)
        given = (ranks, data, tmp_path / name, task, stop)
        if ranks == 1:
            _in_hands(0, *given)
        else:
            mp.start_processes(_in_hands, given, nprocs=ranks, start_method="fork")

    by(1, "unbroken")
    for name, first, then in (("from-one", 1, 2), ("from-two", 2, 1)):
        by(first, name, stop=4)
        assert checkpoint.load(tmp_path / name / "state.pt", "state")["step"] == 4
        by(then, name)
    whole, *others = (
        torch.load(tmp_path / name / "made.pt", weights_only=True)
        for name in ("unbroken", "from-one", "from-two")
    )
    for facts, weights in others:
        assert facts == pytest.approx(whole[0], abs=1e-8)
        for name, value in whole[1].items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-8, msg=name)


def test_two_ranks_train_as_one_with_the_same_groups(tmp_path, data):
    _train_rank(0, 1, data, tmp_path)
    # forked, as importing everything anew takes longer than the test
    mp.start_processes(_train_rank, (2, data, tmp_path), nprocs=2, start_method="fork")
    one, two = (torch.load(tmp_path / f"{ranks}.pt", weights_only=True) for ranks in (1, 2))
    assert one[0] == pytest.approx(two[0], abs=1e-8)
    for name, value in one[1].items():
        assert torch.allclose(value.double(), two[1][name].double(), atol=1e-8), name
