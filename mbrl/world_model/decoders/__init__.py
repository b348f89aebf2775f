"""Decoders: the observation likelihoods p(x | z, h) a world model can be trained with."""
