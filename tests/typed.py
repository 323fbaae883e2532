"""Read by mypy alone: scikit-learn has no types, and with its classes as bases every attribute would be Any."""

from deepcluster import DeepCluster

fitted = DeepCluster().fit("photos")
fitted.fti("photos")  # type: ignore[attr-defined]
fitted.predict("photos").fti()  # type: ignore[attr-defined]
