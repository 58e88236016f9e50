"""Which components write what the model sees of one object, and does it speak for a text?"""

import unweave

image = unweave.open_images("pocket/evaluation")[1:2]
parts = unweave.decompose("pocket/clip", image.at("mask each"))
text = unweave.text_space("pocket/clip").encode(["something in the snow"])[0]
scores = parts.values[0] @ text
for place in scores.argsort(descending=True)[:5].tolist():
    print(f"{parts.components[place]}  {float(scores[place]):+.3f}")
