"""PyTorch in and out: encoders as safetensors under torchvision's names (pip install torchvision safetensors)."""

import numpy as np
import safetensors.torch
import torch
import torchvision

import minisimclr as ms

encoder = ms.resnet18(stem="imagenet", rng=np.random.default_rng(0))  # or ms.load_run("runs/photos").model.encoder
images = ms.load_dataset("doodles", size=64, limit=4).images

ms.save_torchvision(encoder, "encoder.safetensors")  # out: `minisimclr export` does the same
network = torchvision.models.resnet18()
network.fc = torch.nn.Identity()  # its output is h
network.load_state_dict(safetensors.torch.load_file("encoder.safetensors"))
network.eval()  # running statistics, as in ms.embed
with torch.no_grad():  # (N,3,H,W) in [0,1]; there is no mean to subtract
    there = network(torch.from_numpy(ms.to_float(images)).permute(0, 3, 1, 2).contiguous()).numpy()
here = encoder(ms.to_float(images), train=False).data  # (4,512)
print("largest difference", np.abs(there - here).max())

safetensors.torch.save_file(network.state_dict(), "theirs.safetensors")  # or of models.resnet18(weights="DEFAULT")
back = ms.load_torchvision("theirs.safetensors")  # in
print("the same again:", np.array_equal(back(ms.to_float(images), train=False).data, here))
