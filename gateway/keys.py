"""Who holds this API key? Asked from asynchronous code."""

from channels.db import database_sync_to_async

from accounts import keys

authenticate = database_sync_to_async(keys.authenticate)
