"""K-means of several packages on the same points: what becomes of clusters that stay empty, and of equal points.

    uv venv DIR && uv pip install --python DIR/bin/python scikit-learn scipy faiss-cpu torch torch-kmeans \\
        fast-pytorch-kmeans psutil nvidia-ml-py
    python -m benchmarks.quality.kmeans_agree --environment DIR

The points are of unit length, 64 numbers each, like those of the memory bank, and ten centres are asked for. `blobs`:
200 points around ten directions; `equal`: 200 times the same point; `three`: 150, 40 and 10 times the same point, as
when many photographs repeat; `few`: six points. Wanted are as many centres as distinct points and at most ten, and no
point away from its centre. A package is called as its manual says, with k-means++ where it offers that, one start, seed
0. kmeans-pytorch 0.3 is left out, because it did not end on one of the cases.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

CENTRES = 10


def main() -> None:
    """Cluster every case by every package, and write the table."""
    from benchmarks.harness import record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True)
    environment = parser.parse_args().environment
    cases = drawn()
    figures: dict[str, Any] = {"tagseg": {case: judged(points, by_tagseg(points)) for case, points in cases.items()}}
    with tempfile.TemporaryDirectory() as name:
        np.savez(Path(name) / "cases.npz", **cases)
        for package in PACKAGES:
            command = [environment / "bin/python", Path(__file__), "--child", package, Path(name) / "cases.npz"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures[package] = json.loads(done.stdout.splitlines()[-1])
    lines = [f"| centres used / distinct centres / inertia | {' | '.join(cases)} |", "|---|" + "---|" * len(cases)]
    for package, row in figures.items():
        label = " ".join(filter(None, (package, row.get("version"))))
        lines.append(f"| {label} | {' | '.join(_cell(row[case]) for case in cases)} |")
    print(record("kmeans_agree", [0], figures, "\n".join(lines)).read_text())


def _cell(found: dict[str, Any]) -> str:
    return found.get("error") or f"{found['used']} / {found['distinct']} / {found['inertia']:.2f}"


def drawn() -> dict[str, np.ndarray]:
    """Return the points of every case, float32, one per row."""
    generator = np.random.default_rng(0)

    def directions(count: int, around: np.ndarray | float = 0.0, spread: float = 1.0) -> np.ndarray:
        points = around + spread * generator.normal(size=(count, 64))
        return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)

    middles = directions(CENTRES)
    return {
        "blobs": directions(200, middles[generator.integers(0, CENTRES, 200)], 0.05),
        "equal": directions(1).repeat(200, 0),
        "three": directions(3).repeat([150, 40, 10], 0),
        "few": directions(6),
    }


def judged(points: np.ndarray, centres: np.ndarray) -> dict[str, Any]:
    """Return how many centres are the nearest of a point, how many differ, and the sum of the squared distances."""
    squares = ((points[:, None].astype(np.float64) - centres[None]) ** 2).sum(2)
    distinct = len(np.unique(centres.round(5), axis=0))
    used = len(np.unique(squares.argmin(1)))
    return {"used": used, "distinct": distinct, "inertia": round(float(squares.min(1).sum()), 3)}


def by_tagseg(points: np.ndarray) -> np.ndarray:
    """Return the centres that exist."""
    import torch

    from tagseg.rca.kmeans import kmeans

    given, generator = torch.from_numpy(points)[None], torch.Generator().manual_seed(0)
    centres, exists = kmeans(given, torch.ones(given.shape[:2], dtype=torch.bool), CENTRES, generator)
    found: np.ndarray = centres[0][exists[0]].numpy()
    return found


def by_scikit_learn(points: np.ndarray) -> np.ndarray:
    """KMeans, whose start is k-means++."""
    from sklearn.cluster import KMeans

    return KMeans(CENTRES, n_init=1, random_state=0).fit(points).cluster_centers_


def by_scipy(points: np.ndarray) -> np.ndarray:
    """kmeans2 with k-means++."""
    from scipy.cluster.vq import kmeans2

    return kmeans2(points, CENTRES, minit="++", seed=0)[0]


def by_faiss(points: np.ndarray) -> np.ndarray:
    """Kmeans, whose start are points drawn at random."""
    import faiss

    model = faiss.Kmeans(points.shape[1], CENTRES, seed=0)
    model.train(points)
    return model.centroids


def by_torch_kmeans(points: np.ndarray) -> np.ndarray:
    """KMeans with k-means++."""
    import torch
    from torch_kmeans import KMeans

    model = KMeans(n_clusters=CENTRES, init_method="k-means++", num_init=1, seed=0, verbose=False)
    return model(torch.from_numpy(points)[None]).centers[0].numpy()


def by_fast_pytorch_kmeans(points: np.ndarray) -> np.ndarray:
    """KMeans with k-means++."""
    import torch
    from fast_pytorch_kmeans import KMeans

    torch.manual_seed(0)
    np.random.seed(0)
    model = KMeans(CENTRES, mode="euclidean", init_method="kmeans++")
    model.fit_predict(torch.from_numpy(points))
    return model.centroids.numpy()


PACKAGES = {
    "scikit-learn": by_scikit_learn, "scipy": by_scipy, "faiss-cpu": by_faiss, "torch-kmeans": by_torch_kmeans,
    "fast-pytorch-kmeans": by_fast_pytorch_kmeans,
}  # fmt: skip


def child(package: str, file: Path) -> None:
    """Print what a package finds in every case, as JSON."""
    import warnings
    from importlib.metadata import version

    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"version": version(package)}
    with np.load(file) as cases:
        for case, points in cases.items():
            try:
                found[case] = judged(points, np.asarray(PACKAGES[package](points)))
            except (ValueError, IndexError, RuntimeError) as error:
                found[case] = {"error": type(error).__name__}
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
