"""Functions of linear attention, in plain torch where they exist."""
