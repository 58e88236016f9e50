"""Where in an image do the heads read what speaks for a word?"""

import unweave

images = unweave.open_images("pocket/evaluation", limit=3)
maps = unweave.heatmap("pocket/clip", images, texts="something in the snow", space="pocket/clip")
print(maps)
print(maps.summed().shape)  # [image, text, row, column], signed; what is in no cell is in `maps.beside`
maps.figure().savefig("snow.png")
