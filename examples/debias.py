"""A bird classifier that looks at the water, mended: without the components that say what is behind the bird."""

import unweave

parts = {"train": 200, "validation": 120, "test": 120}
stores = [unweave.extract("pocket/clip", f"pocket/birds/0/{part}/{count}", part) for part, count in parts.items()]
sides = unweave.Sides(*stores)
how = unweave.Classification("probe", space="pocket/clip", regularisation=0.04)
debiasing = unweave.debias(sides, "background", classification=how, k=5)
print(debiasing)
print(unweave.checkpoint(debiasing, sides, "debiased.safetensors"))
