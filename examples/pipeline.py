"""Features learnt without labels, in a scikit-learn pipeline: how well digits are told apart, beside their raw pixels.

python examples/pipeline.py [SEED [ROUNDS]]
"""

import sys

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from deepcluster import DeepCluster


def main(seed: int, rounds: int | None) -> None:
    digits = load_digits()
    train, test, labels, truth = train_test_split(
        digits.images / 16, digits.target, test_size=0.25, stratify=digits.target, random_state=seed
    )
    # With labels for few images only, features matter most.
    few, _ = train_test_split(range(len(train)), train_size=50, stratify=labels, random_state=seed)
    features = DeepCluster(n_clusters=10, rounds=rounds, random_state=seed)
    pixels = make_pipeline(FunctionTransformer(lambda images: images.reshape(len(images), -1)), StandardScaler())
    # No scaler after the features: that some directions are longer than others is part of what they say.
    for name, first in (("raw pixels", pixels), ("DeepCluster", features)):
        classifier = GridSearchCV(LogisticRegression(max_iter=5000), {"C": [0.01, 0.1, 1, 10, 100, 1000]}, cv=3)
        pipeline = make_pipeline(first, classifier).fit(train, labels)
        with_all = pipeline.score(test, truth)
        classifier.fit(first.transform(train[few]), labels[few])
        with_few = pipeline.score(test, truth)
        print(f"{name:12} held-out accuracy {with_all:.3f} with {len(train):,} labels, {with_few:.3f} with 50")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0, int(sys.argv[2]) if len(sys.argv) > 2 else None)
