"""A model as an operation graph: capture, trunk and branches, token grids."""
