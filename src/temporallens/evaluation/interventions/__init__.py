"""Whether a model uses what is encoded of position: features and means of positions are taken away, and the model goes on."""
