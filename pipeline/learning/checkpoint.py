"""Checkpoints: whole files that load with `weights_only=True`, ours and the paper's.

Ours are {"format", "version", "kind", "content"}, saved with torch; the content is made of
tensors, numbers, text, None, lists, tuples and dicts. The same content gives the same bytes.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from pipeline import run
from pipeline.learning.encoder import Encoder, EncoderSpec, Projection
from pipeline.run import UserError

FORMAT = "ugriz-checkpoint"
VERSION = 1
_PAPER_PREFIXES = ("module.encoder_q.", "module.")
_PAPER_STATES = ("state_dict", "model_state", "model_state_dict", "model")
"""Keys under which training scripts of the paper's kind keep their weights."""


def save(path: str | Path, kind: str, content: dict) -> None:
    """Write `content` as a checkpoint of a `kind` ("encoder", "model", "state", ...), whole."""
    whole = {"format": FORMAT, "version": VERSION, "kind": kind, "content": content}
    with run.whole_file(path) as part, open(part, "wb") as handle:
        torch.save(_plain(whole), handle)


def load(path: str | Path, kind: str) -> dict:
    """The content of a checkpoint that `save` wrote, on the CPU.

    Raises:
        UserError: no such file, truncated, not ours, of another version or another kind.
    """
    whole = _read(path)
    if whole.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of ugriz (no format = {FORMAT}); give another")
    return _content(path, whole, kind)


def kept(path: str | Path) -> str:
    """What an error that ends a training says of its state, `path`: kept, or there is none."""
    path = Path(path)
    what = "the last good state is kept" if path.is_file() else "no state was kept"
    return f"{what} in {path.parent}"


def save_encoder(path: str | Path, encoder: Encoder, **extra: object) -> None:
    """Write `encoder`, its spec and `extra`: "projection" (the head's state), "deredden", ..."""
    content = {"spec": encoder.spec.to_dict(), "net": encoder.net.state_dict(), "extra": extra}
    save(path, "encoder", content)


def load_encoder(path: str | Path) -> tuple[Encoder, dict]:
    """The encoder in a checkpoint, in eval mode, and what was saved beside it.

    Reads ours and the paper's (Hayat et al. 2020), whose parameters are named
    `module.encoder_q.*` or `module.*` and are those of a ResNet50 for 64-pixel stamps in
    nanomaggies. Of the latter, the extra dict holds "projection" where the file has an MLP head,
    and "fc" (weight, bias) where it has a classifier.

    Raises:
        UserError: as `load`, or parameters that are unknown, missing or of another shape.
    """
    whole = _read(path)
    if whole.get("format") == FORMAT:
        content = _content(path, whole, "encoder")
        encoder = Encoder(EncoderSpec.from_dict(content["spec"]))
        load_state(path, encoder.net, content["net"])
        return encoder.eval(), content["extra"]
    encoder = Encoder(EncoderSpec())
    state, extra = _split_head(path, _paper_state(path, whole))
    load_state(path, encoder.net, state)
    return encoder.eval(), extra


def load_state(path: str | Path, module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give `module` the parameters and buffers `state`, which came from `path`.

    Raises:
        UserError: names that `module` does not know or that are missing, or another shape.
    """
    wanted = module.state_dict()
    for text, names in (
        ("does not know", [name for name in state if name not in wanted]),
        ("misses", [name for name in wanted if name not in state]),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise UserError(f"{path}: a checkpoint of another architecture; the net {text} "
                            f"{', '.join(names[:5])}{more}")  # fmt: skip
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{path}: a checkpoint of another architecture; {name} has shape "
                f"{tuple(value.shape)}, that of the net {tuple(wanted[name].shape)}"
            )
    module.load_state_dict(state)


def _read(path: str | Path) -> dict:
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train it first or give another") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; give the checkpoint in it") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: cannot be read as a checkpoint; {_refused(error)}") from None
    except Exception as error:  # torch raises what its unpickler and zip reader happen to
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path}: cannot be read as a checkpoint, truncated perhaps ({reason}); "
                        "make it anew or copy it again") from None  # fmt: skip
    if not isinstance(whole, dict):
        raise UserError(f"{path}: holds a {type(whole).__name__}, not a checkpoint; give another")
    return whole


def _refused(error: pickle.UnpicklingError) -> str:
    """What `weights_only` does not take of a file, and what to do; torch's own text is a page."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if not named:
        return "it is not pickled as torch.save does it; save it anew with that, or give another"
    return (
        f"it holds {named[1]}, and only tensors, plain numbers and text are taken, as others can "
        "run code; save it anew with those alone"
    )


def _content(path: str | Path, whole: dict, kind: str) -> dict:
    if whole.get("version") != VERSION:
        raise UserError(
            f"{path}: checkpoint version {whole.get('version')}, this ugriz reads {VERSION}; "
            "make it anew, or use the ugriz that wrote it"
        )
    if whole.get("kind") != kind:
        raise UserError(f"{path}: a checkpoint of kind {whole.get('kind')}, not {kind}; "
                        "give another")  # fmt: skip
    return whole["content"]


def _paper_state(path: str | Path, whole: dict) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of the paper's kind, by their names after the prefix."""
    for key in _PAPER_STATES:
        if isinstance(whole.get(key), Mapping):
            whole = whole[key]
            break
    tensors = {name: value for name, value in whole.items() if isinstance(value, torch.Tensor)}
    for prefix in _PAPER_PREFIXES:
        found = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        if found:
            return found
    raise UserError(f"{path}: no checkpoint of ugriz, and none with the paper's names "
                    f"({', '.join(prefix + '*' for prefix in _PAPER_PREFIXES)})")  # fmt: skip


def _split_head(path: str | Path, state: dict) -> tuple[dict, dict]:
    head = {name.removeprefix("fc."): state[name] for name in state if name.startswith("fc.")}
    net = {name: value for name, value in state.items() if not name.startswith("fc.")}
    if not head:
        return net, {}
    if head.keys() == {"weight", "bias"}:
        return net, {"fc": head}
    if head.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}:
        return net, {"projection": head}
    raise UserError(f"{path}: a checkpoint of another architecture; its head is made of "
                    f"{', '.join('fc.' + name for name in head)}")  # fmt: skip


def projection(path: str | Path, extra: Mapping) -> nn.Sequential | None:
    """The head in what `load_encoder` gave beside the encoder of `path`; None without one."""
    if extra.get("projection") is None:
        return None
    return Projection.from_state(extra["projection"]).eval()


def _plain(value: object) -> object:
    """`value` so that equal contents are equal bytes: tensors compact and on the CPU, text shared.

    (Pickle tells equal objects from the same object, and a view drags all of its storage along.)
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(each) for each in value)
    if value is None or type(value) in (bool, int, float):
        return value
    raise TypeError(f"a checkpoint holds no {type(value).__name__}")
