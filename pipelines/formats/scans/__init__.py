"""Brain scans of every format that people upload: one module a family, numbers read only where they are asked for."""
