"""The permission catalog as text: the built-in one, and what becomes of a text that an operator applies."""
