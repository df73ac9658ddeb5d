"""The configuration tree, installed with the package as ``datxai.conf``."""
