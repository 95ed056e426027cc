"""Everything a person or a script touches: settings, Studio, UI, command line, library."""
