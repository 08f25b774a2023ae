"""Front door of the converter from a checkout: ``python -m convert``; see ``__main__``."""
