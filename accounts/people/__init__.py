"""People's accounts: oneself, and everybody for administrators."""
