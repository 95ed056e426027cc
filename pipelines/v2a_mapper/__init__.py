"""V2A-Mapper: a picture's vector, mapped into the space of sounds, is heard (arXiv 2308.09300)."""
