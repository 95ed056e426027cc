"""Network modules that no library has."""
