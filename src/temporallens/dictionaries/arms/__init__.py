"""The arms: one kind of dictionary in each file, its formula at the head."""
