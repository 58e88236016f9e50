"""Switch the heads of the last two layers off, one layer after the other: how well are objects told without them?"""

import unweave

store = unweave.extract("pocket/deit", "pocket/evaluation", "out", limit=400)
ablation = unweave.ablate(store, ["blocks.5.attn.head.*", "blocks.4.attn.head.*"])
print(ablation)
ablation.figure().savefig("ablation.png")
