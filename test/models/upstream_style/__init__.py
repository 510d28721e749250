"""Model files in the style of those that people have outside of this tree: everything by hand on the layers, own `load_weights`."""
