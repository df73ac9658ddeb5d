"""Commands other than the stages of a run: one module each, with ``run(settings, folder)``."""
