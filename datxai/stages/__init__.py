"""The stages, one module each: ``depends`` (settings that shape the output), ``outputs`` (files), ``make``.

A stage reads what it needs from the run folder and hands plain data from room to room. Every finished case is kept
with the stage's fingerprint beside it, so that work goes on where it was killed and nothing is made twice.
"""
