"""Which heads of DINO say where a scene is, at the sea or in a city?"""

import unweave

store = unweave.extract("pocket/dino", unweave.open_images("pocket/evaluation", limit=300), "out")
unweave.align(store, "pocket/clip").save("aligner")  # a linear map for each component into a space of words
scores = unweave.score(store, ["location", "colour", "pattern"], space="aligner")
print(scores)
print(*scores.top("location", 3))
scores.figure().savefig("scores.png")
