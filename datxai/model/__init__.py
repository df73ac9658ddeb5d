"""The classifier: the network, its training, its files."""
