"""datxai: explainable classification of dopamine transporter SPECT."""

__version__ = "0.1.0"
