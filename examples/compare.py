"""Two networks, one word: for each head of DeiT, which head of DINO says "sea" of the same images?"""

import torch

import unweave

space, said = unweave.text_space("pocket/clip"), []
for name in ("deit", "dino"):
    view = unweave.extract(f"pocket/{name}", unweave.open_images("pocket/evaluation", limit=200), name).view()
    heads = view.through(unweave.align(view, space)).select("kind:head")
    said.append(heads.along(space.encode(["something at sea"]))[:, :, 0])  # [image, head]
print(torch.corrcoef(torch.cat(said, 1).T)[:24, 24:].max(1))  # correlations, and which head
