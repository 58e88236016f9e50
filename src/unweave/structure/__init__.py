"""What can be told from the graph of operations alone: the residual stream, the attention layers, where tokens lie."""
