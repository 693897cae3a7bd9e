"""Small files that we made ourselves, and the scripts that make them."""
