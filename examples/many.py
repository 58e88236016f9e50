"""A hundred thousand images. Interrupt it: the same call goes on where it stopped, and does no work twice."""

import unweave

images = "pocket/world/0/200"  # or pocket/world/0/100000, photos/, imagenet/train
store = unweave.extract("pocket/deit", images, "out")
print(store)
for part in store.view().select("last:2").batches(64):  # more than the memory holds, a piece at a time
    print(part.ids[0], tuple(part.values().shape))
