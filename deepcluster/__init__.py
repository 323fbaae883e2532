"""DeepCluster: from a folder of unlabelled images to clusters, features and a model that places new images."""

from collections.abc import Callable, Mapping
from importlib import import_module  # noqa: TID251 (its own modules)
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcluster.estimator import DeepCluster
    from deepcluster.storage.model_files import load

__version__ = "0.1.0"
__all__ = ["DeepCluster", "load"]


def at_first_use(homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package that imports names at first use: `--help` must not wait for torch.

    ``homes``: The modules of the names.
    """

    def imported(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return imported


__getattr__ = at_first_use({"DeepCluster": "deepcluster.estimator", "load": "deepcluster.storage.model_files"})


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
