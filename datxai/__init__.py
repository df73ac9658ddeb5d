"""datxai: explainable classification of dopamine transporter SPECT."""

__version__ = "0.2.0"
