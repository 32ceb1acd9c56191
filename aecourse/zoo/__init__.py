"""Further models: one file each, over the parts that the rest of the library is made of."""
