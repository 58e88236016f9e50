"""Images whose pattern is like that of one image, whatever else they show."""

import unweave

store = unweave.extract("pocket/clip", unweave.open_images("pocket/evaluation", limit=400), "out")
striped = store.view().where(pattern="striped").ids[0]
alike = unweave.search(store, image=striped, choice=unweave.Choice(["pattern"]), space="pocket/clip", count=5)
print(alike)
alike.figure().savefig("found.png")
