"""What a study's programs would take on devices that are not here."""
