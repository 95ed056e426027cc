"""XBind: text, picture or sound to a 3D object (arXiv 2411.14715)."""
