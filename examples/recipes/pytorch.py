"""PyTorch in and out: the names and layouts of all weights are torchvision's (pip install torch torchvision)."""

import numpy as np
import torch
import torchvision

import minisimclr as ms

encoder = ms.resnet18(stem="imagenet", rng=np.random.default_rng(0))  # or ms.load_run("runs/photos").model.encoder
images = ms.load_dataset("doodles", size=64, limit=4).images

network = torchvision.models.resnet18()
network.fc = torch.nn.Identity()  # its output is h
state = {name: torch.from_numpy(array) for name, array in encoder.state_dict().items()}
missing, unexpected = network.load_state_dict(state, strict=False)
assert not unexpected
assert all(name.endswith("num_batches_tracked") for name in missing)
network.eval()  # running statistics
with torch.no_grad():  # (N,3,H,W) in [0,1]; there is no mean to subtract
    there = network(torch.from_numpy(ms.to_float(images)).permute(0, 3, 1, 2).contiguous()).numpy()
here = encoder(ms.to_float(images), train=False).data
print("out: largest difference", np.abs(there - here).max())

weights = {name: value.numpy() for name, value in network.state_dict().items()}
encoder.load_state_dict(weights)  # in, for example torchvision.models.resnet18(weights="DEFAULT"), without its fc
