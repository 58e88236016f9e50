"""Two networks, one word: which head of DeiT says "sea" of the same images as which head of DINO?"""

import torch

import unweave

words, said = unweave.text_space("pocket/clip"), []
for name in ("pocket/deit", "pocket/dino"):
    store = unweave.extract(name, "pocket/evaluation", name.replace("/", "-"), limit=200)
    heads = store.view().through(unweave.align(store, words)).select("kind:head")
    said.append(heads.along(words.encode(["sea"]))[:, :, 0])  # [image, head]
print(torch.corrcoef(torch.cat(said, 1).T)[:24, 24:])  # heads of DeiT by heads of DINO
