"""A forward pass as a graph with names: its autograd nodes, and the module calls around them."""
