# %% [markdown]
# # SimCLR in ten minutes
#
# This notebook shows what SimCLR does, from two views of a drawing to neighbours that it found without a
# single label. Everything runs in NumPy, on a CPU, in about three minutes. The book explains each
# step: `docs/index.md`.
#
# Install the package from a checkout first: `pip install .`

# %%
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import minisimclr as ms

# %% [markdown]
# ## The images
#
# The data set is drawn, not downloaded: sixteen things in five styles. Labels come with it. Training never
# looks at them.

# %%
data = ms.load_dataset("doodles", "train")
test = ms.load_dataset("doodles", "test")
data

# %% [markdown]
# ## Two views
#
# A *view* is a random crop, perhaps mirrored, in changed colours. Below each drawing stand two of its views.
# The network will be asked to see these two as one thing, and all others as different.

# %%
rng = np.random.default_rng(0)


def picture(*rows, zoom=2):
    """Rows of images, uint8 or in [0,1], as one picture."""
    rows = [row if row.dtype == np.uint8 else (row * 255).round().astype(np.uint8) for row in rows]
    whole = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    return Image.fromarray(whole).resize((zoom * whole.shape[1], zoom * whole.shape[0]), Image.Resampling.NEAREST)


some = data.images[:12]
a, b = ms.two_views(some, rng, size=32, min_area=0.3)
picture(some, a, b)

# %% [markdown]
# ## The loss, by hand
#
# Each view is an *anchor* in turn, and picks its other view, the *positive*, among all others. Its score for a
# choice is exp(cosine/τ). Take two images whose views agree perfectly: both views of the first at (1, 0),
# both of the second at (0, 1), and τ = 0.5. An anchor then sees its positive at cosine 1 and two negatives at
# cosine 0.

# %%
positive, negative = np.exp(1 / 0.5), np.exp(0 / 0.5)
by_hand = -np.log(positive / (positive + 2 * negative))
za = zb = np.array([[1.0, 0.0], [0.0, 1.0]])  # the first views, and the second
print(f"by hand    {by_hand:.4f}")
print(f"ms.nt_xent {ms.nt_xent(za, zb, temperature=0.5).item():.4f}")

# %% [markdown]
# ## A gradient check that fails, on purpose
#
# Every operation has a derivative that was written by hand. How do we know that it is right? A *gradient check*
# changes each input a little and looks how the output changes. Here is x², first with the right derivative,
# then with a wrong one.


# %%
@ms.primitive
def square(xp, x):
    return x * x, lambda g: 2 * g * x


@ms.primitive
def wrong_square(xp, x):
    return x * x, lambda g: g * x  # the 2 is missing


x = np.array([1.0, 2.0, 3.0])
print("right:", ms.gradcheck(square, x))
try:
    ms.gradcheck(wrong_square, x)
except ms.GradcheckError as error:
    print("wrong:", error)

# %% [markdown]
# ## Two minutes of training
#
# The model is a small ResNet, and a head that is used for the loss only. Every 60 steps we look at 48 test drawings,
# three of each thing, and draw the cosine similarity of each to each (dark: similar), one square after the other. At
# first a drawing resembles whatever is painted like it. Training dissolves these blocks. What stays dark along the
# diagonal are the threes, the things themselves, which nobody told the network.

# %%
STEPS, BATCH, TEMPERATURE = 300, 128, 0.2
SECONDS = 150  # a slow computer stops here, wherever it is

chosen = np.concatenate([np.flatnonzero(test.labels == label)[:3] for label in range(16)])


def similarity(model):
    """The cosines of h of the 48 drawings, their mean removed, as a picture."""
    h = ms.embed(model, test.images[chosen])[0]
    h = h - h.mean(axis=0)
    u = h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)
    grey = (255 * (1 - np.clip(u @ u.T, 0, 1))).astype(np.uint8)  # (48,48)
    return np.asarray(Image.fromarray(grey).resize((144, 144), Image.Resampling.NEAREST).convert("RGB"))


def look(frames, line):
    """Replace what the cell shows, if this is a notebook; print the line anywhere."""
    try:
        from IPython.display import clear_output, display

        clear_output(wait=True)
        display(Image.fromarray(np.hstack(frames)))
    except ImportError:
        pass
    print(line)


encoder = ms.resnet_small(rng=rng)
model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, encoder.features, 128, rng=rng))
optimizer = ms.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
untrained = ms.embed(model, data.images)[0], ms.embed(model, test.images)[0]
frames, began = [similarity(model)], time.monotonic()

for step in range(STEPS):
    batch = rng.choice(len(data), BATCH, replace=False)
    a, b = ms.two_views(data.images[batch], rng, size=32, min_area=0.3)
    loss, za, zb = model.loss(a, b, TEMPERATURE)
    loss.backward()
    optimizer.step(ms.warmup_cosine(step, STEPS, warmup_steps=15, peak=0.1))
    optimizer.zero_grad()
    if step % 60 == 59 or step == STEPS - 1:
        frames.append(similarity(model))
        top1 = ms.contrastive_accuracy(za, zb)
        look(frames, f"step {step + 1}: loss {loss.item():.2f} (chance {np.log(2 * BATCH - 1):.2f}), top-1 {top1:.0%}")
    if time.monotonic() - began > SECONDS:
        print("stopped by the clock")
        break

# %%
Image.fromarray(np.hstack(frames))

# %% [markdown]
# ## What was learned
#
# *h* is what the encoder gives; we use it, and leave the head away. Only now labels are looked at: how often do the 20
# nearest training drawings of a test drawing vote for its class? Chance is 6 %.

# %%
h, test_h = ms.embed(model, data.images)[0], ms.embed(model, test.images)[0]
pixels = [split.images.reshape(len(split), -1) / 255 for split in (data, test)]
for name, (train_x, test_x) in {"pixels": pixels, "untrained": untrained, "SimCLR": (h, test_h)}.items():
    print(f"{name:10} {ms.knn_accuracy(train_x, data.labels, test_x, test.labels):.1%}")

# %% [markdown]
# ## Neighbours
#
# Twelve test drawings in the top row, and below each its four nearest training drawings.

# %%
run = ms.Run(ms.Config(batch=BATCH, temperature=TEMPERATURE, min_area=0.3), model)
queries = test.images[chosen[::4]]
indices, similarities = run.nearest(queries, among=h, k=4)  # (12,4) each
picture(queries, *(data.images[indices[:, k]] for k in range(4)))

# %% [markdown]
# ## Your own folder
#
# Put the path of a folder of images here. (As long as it is empty, a few doodles are written to a folder and read
# back.) To train on them for longer, with a run that is kept and can be resumed, use the command
# `minisimclr pretrain --data FOLDER --out runs/mine`.

# %%
FOLDER = ""
if not FOLDER:
    FOLDER = tempfile.mkdtemp()
    for k, image in enumerate(test.images[:40]):
        Image.fromarray(image).save(Path(FOLDER) / f"{k:02}.png")
mine = ms.load_dataset(FOLDER, size=32)
mine

# %%
mine_h, _ = run.embed(mine.images)
found = ms.duplicates(mine_h, above=0.98)
print(f"{found.found} pairs of {len(mine)} images are almost the same to this network")
picture(*(mine.images[pair] for pair in found.pairs[:5])) if found.found else None
