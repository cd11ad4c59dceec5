"""Infrastructure that does not depend on diffusion: files, recipes, parsers, errors, distributed collectives."""
