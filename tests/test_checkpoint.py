"""Checkpoints: ours and the paper's, and those that are refused."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.learning import checkpoint
from pipeline.learning.encoder import Encoder, EncoderSpec, Projection, seeded
from pipeline.run import UserError

SPEC = EncoderSpec("resnet10", 0.125, 32, 2, "asinh", (1.0, 2.0, 3.0, 4.0, 5.0))


@pytest.fixture(scope="module")
def encoder():
    with seeded(0):
        encoder = Encoder(SPEC, groups=2)
        encoder.net.bn1.running_mean.normal_()
    return encoder


@pytest.fixture(scope="module")
def resnet50():
    """Weights with the names of torchvision's ResNet50."""
    with seeded(3):
        return Encoder(EncoderSpec()).net.state_dict()


def test_an_encoder_comes_back_with_what_lay_beside_it(encoder, tmp_path):
    path = tmp_path / "encoder.pt"
    head = Projection(encoder.feature_dim).state_dict()
    checkpoint.save_encoder(path, encoder, projection=head, deredden=True, mad=(0.1, 0.2))
    again, extra = checkpoint.load_encoder(path)
    assert again.spec == SPEC and not again.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert extra["deredden"] is True and extra["mad"] == (0.1, 0.2)
    assert torch.equal(checkpoint.projection(path, extra)[2].weight, head["2.weight"])
    assert checkpoint.projection(path, {}) is None


def test_same_content_same_bytes(tmp_path):
    row = torch.arange(12.0).reshape(3, 4)
    key = "".join(["na", "me"])
    checkpoint.save(tmp_path / "a.pt", "state", {"x": row[1], "name": {"name": 1}, "y": "name"})
    checkpoint.save(tmp_path / "b.pt", "state",
                    {"x": row[1].clone(), key: {"".join(["nam", "e"]): 1}, "y": key})  # fmt: skip
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert (tmp_path / "a.pt").stat().st_size < 3000
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.pt", "b.pt"]


def test_only_plain_content_is_saved(tmp_path):
    with pytest.raises(TypeError, match="no set"):
        checkpoint.save(tmp_path / "a.pt", "state", {"x": {1, 2}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("state_key", [None, "state_dict", "model_state"])
def test_the_papers_pretrained_names_load(resnet50, tmp_path, state_key):
    path = tmp_path / "pretrained_paper_model.pth.tar"
    head = Projection(2048).state_dict()
    state = {f"module.encoder_q.{name}": value for name, value in resnet50.items()}
    state |= {f"module.encoder_q.fc.{name}": value for name, value in head.items()}
    state |= {"module.encoder_k.conv1.weight": torch.zeros(1), "module.queue": torch.zeros(2, 3)}
    torch.save({"epoch": 101, state_key: state} if state_key else state, path)
    encoder, extra = checkpoint.load_encoder(path)
    with torch.no_grad():
        assert encoder(torch.zeros(1, 5, 64, 64)).shape == (1, 2048)
    assert torch.equal(encoder.net.layer4[2].conv3.weight, resnet50["layer4.2.conv3.weight"])
    assert torch.equal(extra["projection"]["2.bias"], head["2.bias"])


def test_the_papers_supervised_names_load(resnet50, tmp_path):
    path = tmp_path / "photoz.pth.tar"
    fc = nn.Linear(2048, 180).state_dict()
    state = {f"module.{name}": value for name, value in resnet50.items()}
    torch.save({"model_state": state | {f"module.fc.{name}": fc[name] for name in fc}}, path)
    encoder, extra = checkpoint.load_encoder(path)
    assert torch.equal(encoder.net.conv1.weight, resnet50["conv1.weight"])
    assert torch.equal(extra["fc"]["weight"], fc["weight"])


def other(resnet50, change):
    state = {f"module.encoder_q.{name}": value for name, value in resnet50.items()}
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("module.encoder_q.layer3.5.bn2.bias"), "misses layer3.5.bn2.bias"),
        (lambda s: s.update({"module.encoder_q.stem.weight": torch.zeros(1)}),
         "does not know stem.weight"),
        (lambda s: s.update({"module.encoder_q.conv1.weight": torch.zeros(64, 3, 7, 7)}),
         r"conv1.weight has shape \(64, 3, 7, 7\), that of the net \(64, 5, 7, 7\)"),
        (lambda s: s.update({"module.encoder_q.fc.3.weight": torch.zeros(1)}), "fc.3.weight"),
        (lambda s: (s.clear(), s.update({"conv1.weight": torch.zeros(1)})), "paper's names"),
    ],
)  # fmt: skip
def test_another_architecture_is_refused_with_names(resnet50, tmp_path, change, said):
    path = tmp_path / "other.pth.tar"
    torch.save({"state_dict": other(resnet50, change)}, path)
    with pytest.raises(UserError, match=said) as error:
        checkpoint.load_encoder(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def refused(path, kind="encoder"):
    with pytest.raises(UserError) as error:
        checkpoint.load(path, kind)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_files_that_are_no_checkpoint_are_refused(encoder, tmp_path):
    path = tmp_path / "encoder.pt"
    assert "no such checkpoint" in refused(path)
    assert "a folder" in refused(tmp_path)
    checkpoint.save_encoder(path, encoder)
    assert "kind encoder, not model" in refused(path, "model")
    whole = path.read_bytes()
    for count in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:count])
        assert "cannot be read as a checkpoint" in refused(path)
    torch.save([1, 2], path)
    assert "holds a list" in refused(path)
    torch.save({"format": checkpoint.FORMAT, "version": 99, "kind": "encoder"}, path)
    assert "version 99" in refused(path)
    torch.save({"x": 1}, path)
    assert "not a checkpoint of ugriz" in refused(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_file_with_what_is_not_taken_is_not_called_truncated(tmp_path, zipped):
    path = tmp_path / "numpy.pt"
    content = {"state_dict": {"module.conv1.weight": torch.zeros(1)}, "best": np.float64(0.1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    said = refused(path)
    assert "multiarray.scalar, and only tensors, plain numbers and text are taken" in said
    assert "truncated" not in said and said.isprintable()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_of_another_protocol_is_told_so(tmp_path):
    path = tmp_path / "other.pt"
    path.write_bytes(pickle.dumps({"x": 1}, protocol=4))
    assert "not pickled as torch.save does it" in refused(path)


def test_whether_a_state_is_kept_is_looked_up(tmp_path):
    path = tmp_path / ".state.pt"
    assert checkpoint.kept(path) == f"no state was kept in {tmp_path}"
    checkpoint.save(path, "state", {})
    assert checkpoint.kept(path) == f"the last good state is kept in {tmp_path}"


class Evil:
    def __reduce__(self):
        return (print, ("run by a pickle",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"x": Evil()}, path)
    assert "cannot be read" in refused(path)
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    assert "cannot be read" in refused(path)
    assert "run by a pickle" not in capsys.readouterr().out
