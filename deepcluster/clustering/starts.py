"""Places for the centroids of k-means: at the start, and for those that lost their rows."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def spread_rows(rows: Tensor, k: int, random: np.random.RandomState) -> list[int]:
    """Return ``k`` rows far from one another: k-means++ (Arthur and Vassilvitskii 2007), with a few draws a row.

    It draws the same rows as scikit-learn, whose import takes as long as ten such k-means.
    """
    points = rows.double()
    lengths = points.square().sum(1)

    def squares(chosen: npt.NDArray[np.int64] | list[int]) -> Tensor:
        distances = lengths[chosen, None] + lengths - 2 * points[chosen] @ points.T
        return distances.clamp(min=0)

    rows_chosen = [int(random.choice(len(rows), p=np.full(len(rows), 1 / len(rows))))]
    to_chosen = squares(rows_chosen)[0]
    while len(rows_chosen) < k:
        sums = to_chosen.cumsum(0).numpy()
        drawn = np.searchsorted(sums, random.uniform(size=2 + int(np.log(k))) * sums[-1]).clip(max=len(rows) - 1)
        nearer = squares(drawn).minimum(to_chosen)
        best = int(nearer.sum(1).argmin())
        rows_chosen.append(int(drawn[best]))
        to_chosen = nearer[best]
    return rows_chosen


def random_rows(x: Tensor, k: int, random: torch.Generator) -> Tensor:
    """Draw k rows without replacement; repeated rows only follow if all distinct ones are drawn."""
    order = torch.randperm(len(x), generator=random)
    count = k
    while True:
        candidates = x[order[:count].to(x.device)].float()
        first = first_occurrences(candidates)
        if len(first) >= k or count == len(x):
            break
        count = min(len(x), 2 * count)
    repeated = torch.ones(count, dtype=torch.bool)
    repeated[first] = False
    chosen = torch.cat([first, torch.nonzero(repeated).flatten()])[:k]
    return candidates[chosen.to(x.device)]


def first_occurrences(x: Tensor) -> Tensor:
    """Return the indices, ascending, of the rows that equal no earlier row."""
    # Compared as bytes, which is 5 times faster than torch.unique(dim=0). Adding 0 makes -0 and 0 the same.
    whole = (x + 0.0).cpu().contiguous().numpy()
    whole = whole.view(np.dtype((np.void, whole.shape[1] * whole.itemsize))).ravel()
    return torch.from_numpy(np.sort(np.unique(whole, return_index=True)[1]))


def beside_large(centroids: Tensor, sizes: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return new centroids for ``split``: 1/1024 away, in a random direction, from centroids drawn by size."""
    donors = torch.multinomial((sizes - 1).clamp(min=0).float().cpu(), count, replacement=True, generator=random)
    signs = 2.0 * torch.randint(2, (count, centroids.shape[1]), generator=random) - 1
    return centroids[donors.to(centroids.device)] * (1 + signs / 1024).to(centroids)


def as_faiss(centroids: Tensor, sizes: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return new centroids for ``faiss``, beside donors drawn by size - 1, whose sizes halve and which move too.

    Coordinates are multiplied by 1 + 1/1024 and 1 - 1/1024 alternately, the donor's the other way round.
    """
    sizes = sizes.clone().cpu()
    away = torch.full((centroids.shape[1],), 1 / 1024, device=centroids.device)
    away[1::2] *= -1
    vacant = torch.nonzero(sizes == 0).flatten()
    for cluster in vacant.tolist():
        donor = int(torch.multinomial((sizes - 1).clamp(min=0).float(), 1, generator=random))
        centroids[cluster] = centroids[donor] * (1 + away)
        centroids[donor] *= 1 - away
        sizes[cluster] = sizes[donor] // 2
        sizes[donor] -= sizes[cluster]
    return centroids[vacant]


def farthest_distinct(x: Tensor, distances: Tensor, count: int) -> Tensor:
    """Return up to ``count`` distinct rows with a positive distance, farthest first."""
    order = torch.argsort(distances, descending=True, stable=True)[: 8 * count]
    order = order[distances[order] > 0]
    rows = x[order].float()
    return rows[first_occurrences(rows).to(x.device)][:count] if len(rows) else rows
