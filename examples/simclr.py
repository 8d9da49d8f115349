"""SimCLR on an array of images, in twenty lines: the README's, executed by tests/test_examples.py.

Run it beside a file of 32×32 images; this command makes one of the embedded doodles:

    python -c 'import minisimclr as ms, numpy; numpy.save("images", ms.load_dataset("doodles").images)'
    python examples/simclr.py
"""

import numpy as np

import minisimclr as ms

images = np.load("images.npy")  # uint8 (N,32,32,3)
rng = np.random.default_rng(0)

encoder = ms.resnet_small(rng=rng)  # or ms.resnet18(stem="cifar", rng=rng) …
model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, encoder.features, 128, rng=rng))
optimizer = ms.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)

steps, batch = 1000, 128
for step in range(steps):
    chosen = rng.choice(len(images), batch, replace=False)
    a, b = ms.two_views(images[chosen], rng, size=32, strength=0.5)
    loss, za, zb = model.loss(a, b, temperature=0.2)  # chance level: log(2·batch − 1)
    loss.backward()
    optimizer.step(ms.warmup_cosine(step, steps, warmup_steps=steps // 20, peak=0.1))
    optimizer.zero_grad()
    if step % 100 == 0:
        print(f"step {step:4}  loss {loss.item():.3f}  top-1 {ms.contrastive_accuracy(za, zb):.3f}")

h, z = ms.embed(model, images)  # use h; z is what the loss acts on
