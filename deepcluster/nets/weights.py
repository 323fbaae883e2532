"""Load weights into a network without executing code, or leave a network without weights."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile  # noqa: TID251 (reads the table of contents)

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deepcluster.errors import ModelError, first_line

# Averaged weights first: if a checkpoint has both, its authors evaluated these.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "model.", "backbone.", "body.")
HEADS = ("head",)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors of a file, at its top level or under ``state_dict`` or another of ``WRAPPERS``.

    ModelError if the file is missing or damaged, has code in it, or holds no named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: there is no such weights file")
    if not path.stat().st_size:  # not opened: files of /proc look empty, and some never end
        raise ModelError(f"{path}: the file is empty: give a .safetensors file, or a state_dict written by torch.save")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            _check_archive(path)
            # Explicit, so that TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD cannot turn it off.
            content = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # torch meets strange bytes with a dozen kinds of error
        raise ModelError(
            f"{path}: cannot be read as weights ({_reason(error)}): is it damaged? "
            "Give a .safetensors file, or a state_dict written by torch.save"
        ) from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(map(_is_named_tensor, content.items())):
        raise ModelError(f"{path}: holds no state_dict (tensors by name)")
    return dict(content)


def _reason(error: Exception) -> str:
    """Return why a file is refused, but not in torch's words if they advise to execute its content."""
    # Compared by name, because this package never imports pickle.
    if type(error).__name__ == "UnpicklingError" or "weights_only" in str(error):
        return "it holds no tensors, or more than tensors; nothing in it was executed"
    return first_line(error)


def _check_archive(path: Path) -> None:
    """Raise ValueError for a zip archive that takes more memory than disk: a few kilobytes of it may be gigabytes."""
    if not is_zipfile(path):
        return
    with ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != ZIP_STORED for entry in entries):
        raise ValueError("a compressed archive, which torch.save never writes")
    claimed = sum(max(entry.file_size, entry.compress_size) for entry in entries)
    if claimed > path.stat().st_size:  # records overlap, or one is listed many times
        raise ValueError(f"an archive of {path.stat().st_size:,} bytes whose records claim {claimed:,}")


def load_body(
    body: nn.Module,
    state: Mapping[str, Tensor],
    *,
    path: str | Path,
    name: str,
    heads: tuple[str, ...],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Copy ``state`` into ``body``, which changes only if everything fits. ``path`` and ``name`` are for messages.

    Prefixes of the names (``module.``, ``body.``, ...) are removed. Tensors of the classifiers ``heads`` are ignored
    unless ``body`` has them. Only the step counts of batch normalisation (``num_batches_tracked``) may be missing:
    files older than PyTorch 0.4.1 have none. ``convert`` turns another layout into ``body``'s, for a file that
    does not fit as it is.

    ModelError if a name is missing, is left over, or has another shape or type, or if a number is not finite.
    """
    expected = body.state_dict()
    plain = _unprefixed(state, expected)
    tensors = _without(plain, heads, unless=expected)
    if convert is not None and _misfits(tensors, expected):
        tensors = _without(_unprefixed(convert(plain), expected), heads, unless=expected)
    if problems := _misfits(tensors, expected):
        counts = "; ".join(f"{len(keys)} {kind} ({', '.join(keys[:3])})" for kind, keys in problems.items())
        raise ModelError(
            f"{path}: these weights do not fit the network {name} with its {len(expected)} tensors: {counts}. "
            f"Is it the right --backbone, with the --image-size and Sobel setting that the weights were made with?"
        )
    for key in expected:
        if key in tensors and not torch.isfinite(tensors[key]).all():
            raise ModelError(
                f"{path}: {key} has numbers that are not finite (NaN or infinity): the file is damaged, or the training"
                " that made it had failed; give other --weights"
            )
    body.load_state_dict(expected | tensors)


def classifier_of(state: Mapping[str, Tensor], heads: Sequence[str], width: int) -> tuple[Tensor, Tensor] | None:
    """Return the weight (K x ``width``) and bias (K) of the linear classifier in a file of weights, if it has one."""
    for name, weight in state.items():
        bias = state.get(name.removesuffix("weight") + "bias")
        of_head = name.endswith(".weight") and not {*heads}.isdisjoint(name.split("."))
        if of_head and bias is not None and weight.shape == (len(bias), width) and weight.dtype in FLOATS:
            weight, bias = weight.float(), bias.float()
            return (weight, bias) if torch.isfinite(weight).all() and torch.isfinite(bias).all() else None
    return None


def _misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the names of the tensors that do not fit, by the kind of their problem; with both shapes and types."""
    missing = [key for key in expected if key not in tensors and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in tensors if key not in expected]
    pairs = [(key, tensors[key], right) for key, right in expected.items() if key in tensors]
    misshapen = [
        f"{key} {tuple(tensor.shape)} {tensor.dtype} instead of {tuple(right.shape)} {right.dtype}"
        for key, tensor, right in pairs
        if tensor.shape != right.shape or (right.dtype in FLOATS and tensor.dtype not in FLOATS)
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape or type": misshapen}
    return {kind: keys for kind, keys in problems.items() if keys}


def _unprefixed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` without the common prefix of the names; a head beside the prefixed part is dropped with it."""
    state = dict(state)
    while not any(key in expected for key in state):
        inner = _without(state, HEADS)
        prefix = next((prefix for prefix in PREFIXES if inner and all(key.startswith(prefix) for key in inner)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in inner.items()}
    return state


def _without(
    state: Mapping[str, Tensor], layers: Iterable[str], unless: Container[str] = frozenset()
) -> dict[str, Tensor]:
    """Return ``state`` without the tensors in ``layers``, except those named in ``unless``."""
    starts = tuple(f"{layer}." for layer in layers)
    return {key: tensor for key, tensor in state.items() if key in unless or not key.startswith(starts)}


def _is_named_tensor(item: tuple[object, object]) -> bool:
    key, tensor = item
    if not isinstance(key, str) or not isinstance(tensor, Tensor):
        return False
    # A sparse, quantised or storage-less (meta) tensor cannot be copied into a layer.
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


class _NoRandomNumbers(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")) and first.is_meta:
            return first
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build networks on torch's meta device inside, which takes no memory for the weights, and no time.

    Random numbers are skipped: they have no value there, and the first one imports torch's compiler (2 s). So does a
    forward pass: give ``build`` the ``feature_dim``.
    """
    with torch.device("meta"), _NoRandomNumbers():
        yield
