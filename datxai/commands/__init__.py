"""What stands beside the journey: one module a command, with ``run(settings, folder)``."""
