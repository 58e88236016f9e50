"""Which heads read the lower half of an image for a word?"""

import unweave

image = unweave.open_images("pocket/evaluation")[1:2]
maps = unweave.heatmap("pocket/clip", image, texts="something in the snow", space="pocket/clip")
rows, columns = maps.grid
read = {head: float(maps.on_grid(head)[0, 0, rows // 2 :].sum()) for head in maps.maps}
for head in sorted(read, key=lambda head: -read[head])[:5]:
    print(f"{head}  {read[head]:+.3f}")
