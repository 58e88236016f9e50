"""The pending map: how a node of the graph still reaches the representation, as a small network of factors."""
