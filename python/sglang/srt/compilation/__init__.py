"""Graphs of parts of a model. Compatibility: models run eagerly or as whole graphs, so there are no parts."""
