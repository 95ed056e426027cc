"""One folder per generation system; each declares itself once and reads like its paper's method section."""
