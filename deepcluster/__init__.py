"""DeepCluster: from a folder of unlabelled images to clusters, features and a model that places new images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcluster.estimator import DeepCluster
    from deepcluster.storage.model_files import load

__version__ = "0.1.0"
__all__ = ["DeepCluster", "load"]


def __getattr__(name: str) -> Any:
    """Import at first use: `deepcluster --help` shall not wait for torch."""
    if name == "load":
        from deepcluster.storage.model_files import load

        return load
    if name == "DeepCluster":
        from deepcluster.estimator import DeepCluster

        return DeepCluster
    raise AttributeError(f"module 'deepcluster' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
