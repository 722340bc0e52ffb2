"""JSON web tokens for programs that sign in as a person: a short-lived one for requests, a longer one to renew both.

Each renewal ends the token it was asked with. All end with the person's account and with a change of the password.
"""
