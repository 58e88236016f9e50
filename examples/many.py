"""A hundred thousand images. Interrupt it: the same call goes on where it stopped, and does nothing when all is done."""

import unweave

limit = 200  # to see it work; None for all hundred thousand
store = unweave.extract("pocket/deit", "pocket/world/0/100000", "out", limit=limit)
print(store)
for part in store.view().select("last:2").batches(64):  # more than the memory holds, a piece at a time
    print(part.ids[0], tuple(part.values().shape))
