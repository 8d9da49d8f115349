"""One per cent of labels: train on all images, and the classifier on one label in a hundred."""

import numpy as np

import minisimclr as ms

run = ms.load_run("runs/photos")
train = ms.load_dataset("photos", "train", size=run.config.size)
test = ms.load_dataset("photos", "test", size=run.config.size)
h, test_h = run.embed(train.images)[0], run.embed(test.images)[0]

share = 0.01
rng = np.random.default_rng(0)
labelled = np.concatenate(  # as many of each class, and at least two, or a class would be unknown
    [
        rng.permutation(np.flatnonzero(train.labels == label))[: max(2, round(share * len(train) / len(classes)))]
        for classes in [np.unique(train.labels)]
        for label in classes
    ]
)
few = ms.linear_probe(h[labelled], train.labels[labelled], test_h, test.labels)
every = ms.linear_probe(h, train.labels, test_h, test.labels)
print(f"{len(labelled)} labels: {few:.1%}   all {len(train)}: {every:.1%}")
