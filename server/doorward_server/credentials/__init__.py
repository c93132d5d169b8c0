"""What proves a presented text, and how it is stored: peppers and digests, bcrypt, the comparison (design section 4)."""
