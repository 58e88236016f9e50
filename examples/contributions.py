"""What every attention head of a network of your own adds to the representation of each image."""

import timm

import unweave

network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10).eval()  # or any module of yours
model = unweave.Model.from_module(network, classifier="head", input_size=(3, 64, 64))
contributions = unweave.decompose(model, unweave.sample_images(), output="out")
print(contributions)
print(contributions["kind:head"].values.shape)  # [image, head, dim]
contributions.figure().savefig("shares.png")
