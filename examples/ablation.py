"""Switch the heads of the last two layers off, one layer after the other: how well are objects told without them?"""

import unweave

store = unweave.extract("pocket/deit", unweave.open_images("pocket/evaluation", limit=400), "out")
ablation = unweave.ablate(store, ["blocks.5.attn.head.*", "blocks.4.attn.head.*"])
print(ablation)
ablation.figure().savefig("ablation.png")
