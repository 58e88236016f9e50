"""A name for every head: the words along which it varies most, beside the images that it writes most about."""

import unweave

store = unweave.extract("pocket/clip", unweave.open_images("pocket/evaluation", limit=300), "out")
names = unweave.label(store.view().select("kind:head"), space="pocket/clip")  # a CLIP needs no aligner
print(names)
print([name.phrase for name in names.of("blocks.5.attn.head.3").names])
names.save("names")  # a table, a figure, and what `unweave.Names.load("names")` reads
