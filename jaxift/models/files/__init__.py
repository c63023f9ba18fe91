"""Where a model's files are, what is in them, and how their bytes get to devices and back."""
