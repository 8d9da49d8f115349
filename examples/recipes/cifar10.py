"""CIFAR-10: read the binary files of https://www.cs.toronto.edu/~kriz/cifar.html, and train."""

from pathlib import Path

import numpy as np

import minisimclr as ms

FOLDER = Path("cifar-10-batches-bin")  # what cifar-10-binary.tar.gz unpacks to


def load(*files: str) -> tuple[np.ndarray, np.ndarray]:
    """A record is a label and 3072 bytes: the red plane, the green one, the blue one."""
    records = np.concatenate([np.fromfile(FOLDER / file, np.uint8) for file in files]).reshape(-1, 3073)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N,32,32,3)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int64)


images, labels = load(*(f"data_batch_{k}.bin" for k in range(1, 6)))
test_images, test_labels = load("test_batch.bin")
config = ms.Config(batch=256, epochs=30, lr=0.12, temperature=0.2, weight_decay=2e-4)  # 48 minutes on two busy cores
run = ms.pretrain(config, images, folder="runs/cifar10")
h, test_h = run.embed(images)[0], run.embed(test_images)[0]
print(f"kNN {ms.knn_accuracy(h, labels, test_h, test_labels, k=200):.1%}")
print(f"linear {ms.linear_probe(h, labels, test_h, test_labels):.1%}")
