"""How good is the demo? `deepcluster fit sklearn:digits -k 10` over seeds, beside k-means on the pixels.

python benchmarks/digits.py [--seeds 0 1 2]
"""

import argparse

from common import METRICS, fit, save, spread
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from deepcluster.clustering.agreement import scores


def pixels(seed: int) -> dict[str, float]:
    """Scores of scikit-learn's k-means (10 starts) on the 64 raw pixels."""
    digits = load_digits()
    found = KMeans(10, n_init=10, random_state=seed).fit_predict(digits.data)
    return scores(digits.target, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    runs = [fit("sklearn:digits", ["-k", "10", "--labels", "folders", "--seed", str(seed)]) for seed in seeds]
    baseline = [pixels(seed) for seed in seeds]
    print(f"{'':24}" + "".join(f"{name.upper():>16}" for name in METRICS))
    for title, prefix, values in (
        ("k-means on pixels", "", baseline), ("untrained network", "baseline_", runs), ("deepcluster fit", "", runs)
    ):  # fmt: skip
        print(f"{title:24}" + "".join(f"{spread([one[prefix + name] for one in values]):>16}" for name in METRICS))
    print(
        f"seconds {spread([run['seconds'] for run in runs])}, peak MB {spread([run['peak_memory_mb'] for run in runs])}"
    )
    save("digits", {"seeds": seeds, "runs": runs, "pixels": baseline})


main()
