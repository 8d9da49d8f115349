"""MedMNIST: train on one of its .npz files (https://medmnist.com), grey or in colour."""

import numpy as np

import minisimclr as ms

with np.load("pathmnist.npz", allow_pickle=False) as file:
    splits = {
        name: (file[f"{name}_images"], file[f"{name}_labels"][:, 0].astype(np.int64)) for name in ("train", "test")
    }


def in_colour(images: np.ndarray) -> np.ndarray:
    """(N,28,28) or (N,28,28,3) -> (N,28,28,3): a grey image has three equal channels."""
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)


(images, labels), (test_images, test_labels) = ((in_colour(i), y) for i, y in splits.values())
config = ms.Config(size=28, batch=256, epochs=20, temperature=0.2, strength=0.5)
run = ms.pretrain(config, images, folder="runs/pathmnist")
h, test_h = run.embed(images)[0], run.embed(test_images)[0]
print(f"linear {ms.linear_probe(h, labels, test_h, test_labels):.1%}")
