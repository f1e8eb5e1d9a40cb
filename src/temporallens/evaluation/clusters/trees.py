"""The tree of features: average linkage, the cut that the silhouette chooses, and how well the tree keeps the distances.

Average linkage joins stragglers one by one near the top, so a tree that is cut into K branches is often one large branch and K - 1
features. A branch of fewer than `least` features is therefore no cluster: its features are scattered (label -1) and count as a
silhouette of 0. Every cut into up to `CUTS` branches is looked at; the cut with the best mean silhouette among those with 2 to `most`
clusters is taken. Clusters are numbered in the order of the tree's leaves.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

CUTS = 192
"""Branches that a tree is cut into at most."""
BLOCK = 512
"""Rows of the distance matrix that are unfolded at a time."""
PAIRS = 1 << 22
"""Pairs in a piece of the condensed distances: a whole copy is a gigabyte for 16,384 features."""
EQUAL = 1e-9
"""Distances that spread by less than this share of their mean are equal: the rest is rounding."""
SCATTERED = -1


class Tree(NamedTuple):
    """A dendrogram of n features."""

    merges: Float[np.ndarray, "m 4"]  # scipy's linkage matrix: two nodes, height, features
    order: Int[np.ndarray, " n"]  # features as leaves from left to right

    @property
    def leaves(self) -> int:
        return len(self.order)


class Cut(NamedTuple):
    """One way to cut a tree."""

    clusters: int  # 1 where no cut has two clusters
    silhouette: float | None  # mean over all features; None for one cluster
    labels: Int[np.ndarray, " n"]  # cluster of each feature, -1 for scattered ones
    widths: Float[np.ndarray, " n"]  # silhouette of each feature
    explained: float  # by how much nearer features are to their own cluster than to all features, in the mean and in units of distance


class Cuts(NamedTuple):
    """The best cut of a tree, and what other numbers of clusters would have reached."""

    best: Cut
    by_clusters: dict[int, float]  # best mean silhouette of each number of clusters


def grow(distances: Float[np.ndarray, " pairs"]) -> Tree:
    """Average linkage of condensed distances."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # a second to import

    merges = linkage(distances, "average")
    return Tree(merges, leaves_list(merges).astype(np.int64))


def cophenetic_correlation(tree: Tree, distances: Float[np.ndarray, " pairs"]) -> float | None:
    """Pearson's correlation of distances and heights at which pairs join; None where one of them does not vary."""
    from scipy.cluster.hierarchy import cophenet

    heights = cophenet(tree.merges)
    x_mean, y_mean = distances.mean(), heights.mean()
    squares = np.zeros(3)
    for start in range(0, len(distances), PAIRS):
        x, y = distances[start : start + PAIRS] - x_mean, heights[start : start + PAIRS] - y_mean
        squares += [x @ x, y @ y, x @ y]
    x_spread, y_spread, product = squares / len(distances)
    if x_spread <= (EQUAL * x_mean) ** 2 or y_spread <= (EQUAL * y_mean) ** 2:
        return None
    return float(product / np.sqrt(x_spread * y_spread))


def cut(tree: Tree, distances: Float[np.ndarray, " pairs"], least: int, most: int, wanted: int | None = None) -> Cuts:
    """The cut with the best silhouette; among those with `wanted` clusters where that is given and there are any."""
    count = tree.leaves
    branches = min(CUTS, count)
    finest, joins = _branches(tree, branches)
    sums = _distance_sums(distances, finest, branches)
    sizes = np.bincount(finest, minlength=branches).astype(np.float64)
    branch = finest.copy()
    alive = np.ones(branches, dtype=bool)
    best = one_cluster(count)
    by_clusters: dict[int, float] = {}
    far = sums.sum(1) / max(count - 1, 1)
    chosen: tuple[float, np.ndarray, np.ndarray, float] | None = None
    for number in range(branches, 1, -1):
        proper = np.flatnonzero(alive & (sizes >= least))
        if 2 <= len(proper) <= most:
            widths, near = _widths(sums, sizes, branch, proper)
            mean = float(widths.mean())
            by_clusters[len(proper)] = max(mean, by_clusters.get(len(proper), -1.0))
            if (wanted is None or wanted == len(proper)) and (chosen is None or mean > chosen[0]):
                inside = np.isin(branch, proper)
                explained = float(np.where(inside, far - near, 0.0).mean())
                chosen = mean, np.where(inside, branch, SCATTERED), widths, explained
        target, merged = joins[branches - number]
        sums[:, target] += sums[:, merged]
        sizes[target] += sizes[merged]
        alive[merged] = False
        branch[branch == merged] = target
    if chosen is None and wanted is not None and by_clusters:
        return cut(tree, distances, least, most)
    if chosen is not None:
        labels = _numbered(chosen[1], tree.order)
        best = Cut(int(labels.max()) + 1, chosen[0], labels, chosen[2], chosen[3])
    return Cuts(best, dict(sorted(by_clusters.items())))


def one_cluster(count: int) -> Cut:
    """All features together, none of them set apart."""
    return Cut(1, None, np.zeros(count, dtype=np.int64), np.zeros(count), 0.0)


def _branches(tree: Tree, branches: int) -> tuple[Int[np.ndarray, " n"], list[tuple[int, int]]]:
    """The branch of each feature when the tree is cut into so many, and which are joined, one pair after the other, up to the root."""
    count = tree.leaves
    pairs = tree.merges[:, :2].astype(np.int64)
    root = np.arange(2 * count - 1)
    for node in range(2 * count - branches - 1, count - 1, -1):  # from the top of each branch down
        root[pairs[node - count]] = root[node]
    names = {int(node): name for name, node in enumerate(np.unique(root[:count]))}
    labels = np.array([names[int(node)] for node in root[:count]])
    joins = []
    for node in range(2 * count - branches, 2 * count - 1):
        target, merged = (names[int(child)] for child in pairs[node - count])
        joins.append((target, merged))
        names[node] = target
    return labels, joins


def _distance_sums(distances: Float[np.ndarray, " pairs"], branch: Int[np.ndarray, " n"], branches: int) -> Float[np.ndarray, "n b"]:
    """Sum of each feature's distances to the features of each branch."""
    count = len(branch)
    member = np.zeros((count, branches), dtype=np.float32)
    member[np.arange(count), branch] = 1.0
    sums = np.zeros((count, branches))
    start = 0
    for first in range(0, count, BLOCK):
        rows = min(BLOCK, count - first)
        part = np.zeros((rows, count - first), dtype=np.float32)  # the upper triangle: a pair is in one block only
        for row in range(rows):
            length = count - first - row - 1
            part[row, row + 1 :] = distances[start : start + length]
            start += length
        sums[first : first + rows] += part @ member[first:]
        sums[first:] += part.T @ member[first : first + rows]
    return sums


def _widths(
    sums: Float[np.ndarray, "n b"], sizes: Float[np.ndarray, " b"], branch: Int[np.ndarray, " n"], proper: Int[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Silhouette of every feature, how much nearer its own cluster is than the nearest other one, and its mean distance to its own
    cluster; 0 for scattered features."""
    column_of = np.full(len(sizes), -1)
    column_of[proper] = np.arange(len(proper))
    columns = column_of[branch]
    inside = columns >= 0
    mean = sums[inside][:, proper] / sizes[proper]
    rows, column = np.arange(len(mean)), columns[inside]
    size = sizes[proper][column]
    near = mean[rows, column] * size / np.maximum(size - 1, 1)  # its distance to itself counts for nothing
    mean[rows, column] = np.inf
    other = mean.min(1)
    largest = np.maximum(near, other)
    widths, within = np.zeros(len(branch)), np.zeros(len(branch))
    widths[inside] = np.divide(other - near, largest, out=np.zeros(len(mean)), where=(largest > 0) & (size > 1))
    within[inside] = near
    return widths, within


def _numbered(labels: Int[np.ndarray, " n"], order: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Clusters numbered from 0 in the order in which they first appear among the leaves."""
    numbers: dict[int, int] = {}
    for label in labels[order].tolist():
        if label != SCATTERED:
            numbers.setdefault(label, len(numbers))
    return np.array([numbers.get(label, SCATTERED) for label in labels.tolist()])


def part_of(tree: Tree, leaves: Int[np.ndarray, " m"]) -> Tree:
    """The tree of some of its leaves, with the heights at which they join in the whole one; they are numbered 0 to m - 1 as given."""
    count = tree.leaves
    node = np.full(2 * count - 1, -1)  # what stands for each node in the small tree
    node[leaves] = np.arange(len(leaves))
    size = np.zeros(2 * count - 1, dtype=np.int64)
    size[leaves] = 1
    merges = []
    for number, (left, right, height, _) in enumerate(tree.merges.tolist()):
        a, b, new = int(left), int(right), count + number
        size[new] = size[a] + size[b]
        if node[a] >= 0 and node[b] >= 0:
            merges.append([float(node[a]), float(node[b]), height, float(size[new])])
            node[new] = len(leaves) + len(merges) - 1
        else:
            node[new] = max(node[a], node[b])
    rank = np.empty(count, dtype=np.int64)
    rank[tree.order] = np.arange(count)
    return Tree(np.array(merges).reshape(-1, 4), np.argsort(rank[leaves]))
