"""Reading the audit trail: a page, a file and a REST list. `accounts.audit` writes it."""
